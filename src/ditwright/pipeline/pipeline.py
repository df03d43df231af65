"""The pipeline: class labels or prompts in, pictures out, in the words of diffusers.

B batch, H height, W width, C channels; h, w the latents' height and width.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..accel.ready import along, ready
from ..codec.base import Codec, codec_from
from ..config import merge
from ..diffusion.config import SampleConfig
from ..diffusion.process import Denoiser
from ..diffusion.sampler import Step
from ..errors import UserError, did_you_mean, lookup, unknown
from ..text.base import TextEncoder
from ..text.late import Late
from ..train.precision import resolve
from .asks import EMBEDS, Asks, Embeds, at_hand, hears_text, idle, is_guided, of_labels, of_prompts, told_beside
from .batches import in_batches
from .card import Card
from .folder import load, moved, save
from .hub import push
from .labels import Labels, numbers, repeated
from .noise import Generators, Noise, noise_of
from .output import OUTPUTS, Frame, ImagePipelineOutput, go_on_with, with_weights
from .plan import Plan, plan_for, told

TENSORS = ("latents", "x0")  # what a callback may ask for


class Pipeline:
    """Samples a trained denoiser. It keeps no state between calls: one serves any number of threads."""

    def __init__(self, denoiser: Denoiser, card: Card, codec: Codec | None = None, encoder: TextEncoder | None = None):
        """`codec`, `encoder`: those that are there already; otherwise the card's, read when they are first needed."""
        self.denoiser, self.card = denoiser.eval(), card
        self.codec = codec_from(card.codec) if codec is None else codec
        self.encoder = Late(card.text) if encoder is None and card.text.kind != "none" else encoder

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        family: str | None = None,
        heads: int | None = None,
        codec: str = "",
        revision: str = "",
        encoder: TextEncoder | str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Pipeline:
        """From a run folder (its newest checkpoint), a checkpoint, weights of another project, or a name on the hub.

        `family`, `heads`: of foreign weights that do not tell (`convert.read`). `codec`: a folder or hub name that
        takes the place of the autoencoder that the checkpoint names. `revision`: branch, tag or commit of a hub name.
        `encoder`: of prompts, in place of the one that the weights name or that lies beside them: itself
        (`text.base.encoder_from`), or the folder or hub name of one of the same kind. It is looked for when prompts
        are asked. UserError names a missing part.
        """
        parts = load(name, family=family, heads=heads, codec=codec, revision=revision)
        if isinstance(encoder, str):
            encoder = Late(moved(parts.card.text, encoder))
        return cls(*parts, encoder=encoder).to(device, dtype)

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Move network and codec to a device and a type of numbers; returns itself. Samplers stay in float32."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.denoiser.to(device=device, dtype=dtype)
        self.codec = self.codec.to(device, dtype)
        if self.encoder is not None:
            self.encoder = self.encoder.to(device, dtype)
        return self

    def ready(self, precision: str = "auto", *, compiled: bool = False) -> Pipeline:
        """Another pipeline that draws the same pictures sooner: its network laid out once, on the device it is on.

        `precision`: of the matrix products in its blocks, fp32, bf16, fp16, or auto, the faster of fp32 and bf16;
        `compiled`: each block by torch.compile. It cannot be saved or moved: keep this one for that.
        UserError for a precision or a compiler that is not there.
        """
        fast = ready(self.denoiser, resolve(precision, self.device), compiled=compiled)
        return Pipeline(fast, self.card, self.codec, self.encoder)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's numbers."""
        return next(self.denoiser.parameters()).dtype

    def save_pretrained(
        self, path: str | Path, *, with_codec: bool = True, also: Callable[[Path], None] = lambda folder: None
    ) -> None:
        """Write a checkpoint folder with its model card, whole or not at all; `also(folder)` may add files to it.

        `with_codec`: the autoencoder's weights too, where there are any; otherwise the card only names them.
        """
        codec = self.codec if with_codec else None
        save(Path(path), self.denoiser, self.card, codec, encoder=self.encoder, name=Path(path).name, also=also)

    def push_to_hub(
        self, name: str, *, private: bool = False, revision: str | None = None, commit_message: str = "Upload pipeline"
    ) -> str:
        """Upload all that `save_pretrained` writes as the repository OWNER/NAME. Returns the address of the commit."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "repository"
            save(path, self.denoiser, self.card, self.codec, encoder=self.encoder, name=name)
            return push(path, name, private=private, revision=revision, message=commit_message)

    def labels(self, given: Sequence[int | str | None]) -> list[int]:
        """Class numbers from numbers or names, None where the network has no classes. UserError for one not known.

        Where a name is a list of synonyms, as ImageNet's are, any of them will do.
        """
        return numbers(given, self.card.model.num_classes, self.card.class_names)

    def asks(
        self,
        given: Sequence[int | str | None],
        negative_prompt: str | Sequence[str] | None = "",
        embeds: Embeds = MappingProxyType({}),
        *,
        times: int = 1,
        guided: bool = True,
    ) -> Asks:
        """What the network is asked for: classes by number or name; or prompts where it hears text, None for none.

        `embeds`: prompts that are encoded already, in the words of a call, `times` pictures of each; `guided`: false
        where nobody will ask for the negative prompt.
        """
        if hears_text(model := self.card.model):
            encoder = partial(at_hand, self.encoder, model)
            more = {"model": model, "embeds": embeds, "times": times, "guided": guided}
            return of_prompts(given, negative_prompt, encoder, **more).to(self.device, self.dtype)
        if negative_prompt or any(x is not None for x in embeds.values()):
            what = "negative_prompt is" if negative_prompt else "prompt_embeds are"
            raise UserError(f"{what} for networks that hear text; this one is conditioned on classes")
        return of_labels(self.labels(given), self.card.model.num_classes, self.device)

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] = ""
    ) -> dict[str, Tensor]:
        """Prompts as a call takes them encoded: `pipe(**pipe.encode_prompt("a cat"))` draws what `pipe("a cat")` does.

        "prompt_embeds" (B, M, E), "pooled_prompt_embeds" (B, P), "prompt_attention_mask" (B, M) of those that the
        network hears, and the same of the negative prompt after "negative_".
        """
        asks = self.asks(repeated(prompt), negative_prompt)
        signs = {"": asks.cond, "negative_": asks.null}
        return {sign + EMBEDS[name][0]: x for sign, cond in signs.items() for name, x in cond.items()}

    def class_name(self, label: int | None) -> str | None:
        """What a class is called, where it has a name."""
        return None if label is None or not self.card.class_names else self.card.class_names[label]

    def settings(self, given: dict[str, Any]) -> SampleConfig:
        """The checkpoint's settings with some of them replaced. UserError for a name or a value that does not fit."""
        fields = SampleConfig.__dataclass_fields__
        for name in given:
            if name not in fields:
                near = did_you_mean(name, fields)
                raise UserError(f"unknown setting {name!r}; known: {', '.join(fields)}{near}")
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        none = ("clip", "guidance_channels", "dynamic_shift")  # where None is a value; else it means: as saved
        return merge(self.card.sample, {k: v for k, v in plain.items() if v is not None or k in none})

    def size(self, height: int | None, width: int | None, latents: Tensor | None = None) -> tuple[int, int] | None:
        """Height and width in pixels: those given, of the latents given, or as trained; None where nobody knows."""
        trained = self.card.image_size
        if latents is not None and latents.ndim == 4:
            trained = tuple(side * self.card.codec.factor for side in latents.shape[2:])
        if trained is None and None in (height, width):
            return None
        return (trained[0] if height is None else height, trained[1] if width is None else width)

    def plan(self, config: SampleConfig, size: tuple[int, int] | None = None) -> Plan:
        """Sampler, times and latent size for some settings. UserError where they ask for what cannot be done."""
        return plan_for(self.card, self.denoiser.process, config, size, guided=hears_text(self.card.model))

    def steps(
        self,
        asked: Sequence[int | str | None],
        *,
        negative_prompt: str | Sequence[str] | None = "",
        seed: int = 0,
        first: int = 0,
        size: tuple[int, int] | None = None,
        **settings: Any,
    ) -> Iterator[Step]:
        """Sample latents, one for each class label or prompt, step by step; the first is sample `first` of `seed`.

        Sample i of a seed is the same in any batch. `size`: height and width in pixels, the trained one unless given.
        `settings` are fields of SampleConfig; those not given are the checkpoint's.
        """
        config = self.settings(settings)
        asks = self.asks(asked, negative_prompt, guided=is_guided(self.card.model, config))
        noise = noise_of(asks.count, seed, first=first)
        yield from self._walk(asks, config, self.plan(config, size), noise)

    def frames(
        self, class_labels: Sequence[int | str | None], *, codec: Codec | None = None, **settings: Any
    ) -> Iterator[Frame]:
        """Like `steps`, decoded to pictures, where wanted by another codec: a small one is fast enough for previews."""
        decode = (codec or with_weights(self.codec)).decode
        for step in self.steps(class_labels, **settings):
            yield Frame(step.t.item(), decode(step.x), decode(step.x0))

    def draw(
        self,
        class_labels: Sequence[int | str | None],
        *,
        progress: Callable[[int], None] = lambda steps: None,
        **settings: Any,
    ) -> np.ndarray:
        """Sample a picture for each label: (N, H, W, C) uint8. Takes what `steps` takes; `progress(1)` at each step."""
        decode = with_weights(self.codec).decode
        for step in self.steps(repeated(class_labels), **settings):
            progress(1)
            x = step.x
        return decode(x)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Labels = None,
        *,
        class_labels: Labels = None,
        negative_prompt: str | Sequence[str] | None = "",
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Pipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **settings: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample pictures as diffusers' pipelines do: `pipe([207], num_inference_steps=50, guidance_scale=4.0).images`.

        prompt: one text or several, where the network hears text; elsewhere another word for class_labels
        class_labels: one label or several, numbers or names; left out where the network has no classes
        negative_prompt: one for all or one each; what guidance leads away from, nothing in particular unless given
        prompt_embeds, pooled_prompt_embeds, prompt_attention_mask: prompts that are encoded already (`encode_prompt`),
            states (B, M, E), pooled states (B, P), and (B, M), true where there is text; no text encoder is needed
        negative_...: likewise, B or 1 of them, in place of negative_prompt
        height, width: in pixels; as trained unless given
        num_images_per_prompt: pictures of each label, beside each other
        generator: a torch.Generator, or one for each picture; draws the initial latents and the samplers' noise just
            as diffusers does, so that it gives the same pictures there
        seed: in place of a generator; sample i of a seed is the same in any batch and on any device (0 unless given)
        latents: initial latents (N, C, h, w), unit noise, in place of drawn ones
        output_type: "pil", a list; "np", (N, H, W, C) float32 in [0, 1]; "pt", (N, C, H, W) likewise; "latent", the
            final latents (N, C, h, w), for which the autoencoder need not be there
        return_dict: false for a tuple in place of an object with `.images`
        callback_on_step_end: called as (pipe, i, t, tensors) -> tensors after every step; t is what the network was
            told of the time; latents that it returns are gone on with
        callback_on_step_end_tensor_inputs: what it is shown: "latents", and "x0" for a preview of the clean sample
        settings: fields of SampleConfig: num_inference_steps, guidance_scale, guidance_interval, guidance_rescale,
            guidance_channels, sampler, clip, batch_size (how many the network sees at once) ...; the checkpoint's
            unless given. guidance_scale: 1 is none; below it the picture turns away from its class
        """
        if prompt is not None and class_labels is not None:
            raise UserError("give a prompt or class_labels, not both")
        given = repeated(class_labels if prompt is None else prompt, num_images_per_prompt)
        if negative_prompt and not isinstance(negative_prompt, str):
            negative_prompt = [text for text in negative_prompt for _ in range(num_images_per_prompt)]
        embeds = {
            "prompt_embeds": prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        config, model = self.settings(settings), self.card.model
        away = any(x is not None for name, x in embeds.items() if name.startswith("negative_"))
        for line in idle(given, bool(negative_prompt) or away, model, config):
            warnings.warn(line, stacklevel=3)
        make = lookup("output type", output_type, OUTPUTS)
        for name in callback_on_step_end_tensor_inputs:
            if name not in TENSORS:
                raise unknown("callback tensor", name, TENSORS)
        plan = self.plan(config, self.size(height, width, latents))
        guided = is_guided(model, config)
        asks = self.asks(given, negative_prompt, embeds, times=num_images_per_prompt, guided=guided)
        noise = noise_of(asks.count, seed, generator, device=self.device, dtype=self.dtype)
        codec = self.codec if output_type == "latent" else with_weights(self.codec)
        for i, step in enumerate(self._walk(asks, config, plan, noise, latents)):
            if callback_on_step_end is not None:
                tensors = {"latents": step.x, "x0": step.x0}
                shown = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                given = callback_on_step_end(self, i, told(self.denoiser.process, plan.times[i]), shown) or {}
                go_on_with(given.get("latents", step.x), step)
        images = make(codec, step.x)
        return ImagePipelineOutput(images) if return_dict else (images,)

    @torch.no_grad()
    def _walk(
        self,
        asks: Asks,
        config: SampleConfig,
        plan: Plan,
        noise: Noise,
        latents: Tensor | None = None,
    ) -> Iterator[Step]:
        """The steps of a sampler; the sample in each is the sampler's own, which a caller may change in place."""
        path, shape = self.denoiser.process.path, (asks.count, self.card.model.channels, *plan.space)
        sigma = max(1.0, path(plan.times[:1]).sigma.item())  # unit noise, as in the originals; more on karras
        if latents is None:
            latents = noise(torch.empty(shape, device=self.device))
        elif latents.shape != shape:
            raise UserError(f"latents must have the shape {shape}; got {tuple(latents.shape)}")
        x = latents.to(self.device, torch.float32) * sigma
        denoiser = along(self.denoiser, plan.times)
        denoise = in_batches(denoiser, *told_beside(asks, self.card, config, plan.space), times=plan.times)
        yield from plan.sampler(denoise, x, plan.times, path, noise=noise)
