"""The pipeline: class labels or prompts in, pictures out, in the words of diffusers.

B batch, H height, W width, C channels; h, w the latents' height and width.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..accel.ready import ready
from ..codec.base import Codec, codec_from
from ..diffusion.config import SampleConfig
from ..diffusion.process import Denoiser
from ..diffusion.sampler import Step
from ..errors import UserError, lookup, unknown
from ..text.base import TextEncoder
from ..text.late import Late
from ..text.tokenizer import Prompt
from ..train.precision import resolve
from .asks import Asks, hears_text, idle, is_guided, of_labels, of_prompts
from .batches import walk
from .card import Card
from .folder import load, moved, save
from .hub import push
from .labels import Labels, numbers, repeated
from .noise import Generators, noise_of
from .output import OUTPUTS, TENSORS, Frame, ImagePipelineOutput, go_on_with, shown, sized, with_weights
from .plan import Plan, plan_for, settled, size_of, told
from .prompts import EMBEDS, Asked, Embeds, Texts, encoding, led_away, negatives, together

Size = tuple[int, int]  # height, width in pixels


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

    def ready(self, precision: str = "auto", *, compiled: bool = False, graphs: bool = False) -> Pipeline:
        """Another pipeline that draws the same pictures sooner: its network laid out once, on the device it is on.

        `precision`: of the matrix products in its blocks, fp32, bf16, fp16, or auto, the faster of fp32 and bf16;
        `compiled`: each block by torch.compile; `graphs`: all of them as one CUDA graph. It cannot be saved or moved:
        keep this one for that. UserError for a precision, a compiler or a GPU that is not there.
        """
        fast = ready(self.denoiser, resolve(precision, self.device), compiled=compiled, graphs=graphs)
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
        given: Asked,
        negative_prompt: Texts = None,
        embeds: Embeds = MappingProxyType({}),
        *,
        times: int = 1,
        guided: bool = True,
        max_sequence_length: int | None = None,
    ) -> Asks:
        """What the network is asked for: classes by number or name; or prompts where it hears text, None for none.

        A prompt may be a tuple, a text for each of several encoders. `embeds`: prompts that are encoded already, in the
        words of a call, `times` pictures of each; `guided`: false where nobody will ask for the negative prompt.
        """
        if hears_text(model := self.card.model):
            encode = encoding(self.encoder, model, max_sequence_length)
            more = {"model": model, "embeds": embeds, "times": times, "guided": guided}
            return of_prompts(given, negative_prompt, encode, **more).to(self.device, self.dtype)
        for_text = {"negative_prompt is": negative_prompt, "max_sequence_length is": max_sequence_length}
        for_text |= {"prompt_embeds are": any(x is not None for x in embeds.values())}
        for_text |= {"prompt_2 is": any(isinstance(label, tuple) for label in given)}
        if wrong := [what for what, there in for_text.items() if there]:
            raise UserError(f"{wrong[0]} for networks that hear text; this one is conditioned on classes")
        return of_labels(self.labels(given), self.card.model.num_classes, self.device)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[Prompt],
        negative_prompt: str | Sequence[Prompt] = "",
        *,
        prompt_2: Texts = None,
        prompt_3: Texts = None,
        negative_prompt_2: Texts = None,
        negative_prompt_3: Texts = None,
        max_sequence_length: int | None = None,
    ) -> dict[str, Tensor]:
        """Prompts as a call takes them encoded: `pipe(**pipe.encode_prompt("a cat"))` draws what `pipe("a cat")` does.

        So it is where a network hears states; one that reads ids by a tower of its own takes prompts alone, and these
        are its ids, to look at.
        "prompt_embeds" (B, M, E), "pooled_prompt_embeds" (B, P), "prompt_attention_mask" (B, M) of those that the
        network hears, and the same of the negative prompt after "negative_".
        """
        given = repeated(together(prompt, prompt_2, prompt_3))
        away = negatives(negative_prompt, negative_prompt_2, negative_prompt_3)
        asks = self.asks(given, away, max_sequence_length=max_sequence_length)
        signs = {"": asks.cond, "negative_": asks.null}
        return {sign + EMBEDS[name][0]: x for sign, cond in signs.items() for name, x in cond.items()}

    def class_name(self, label: int | None) -> str | None:
        """What a class is called, where it has a name."""
        return None if label is None or not self.card.class_names else self.card.class_names[label]

    def settings(self, given: dict[str, Any]) -> SampleConfig:
        """The checkpoint's settings with some of them replaced. UserError for a name or a value that does not fit."""
        return settled(self.card.sample, given)

    def size(self, height: int | None, width: int | None, latents: Tensor | None = None) -> Size | None:
        """Height and width in pixels: those given, of the latents given, or as trained; None where nobody knows."""
        return size_of(self.card, height, width, latents)

    def plan(self, config: SampleConfig, size: Size | None = None) -> Plan:
        """Sampler, times and latent size for some settings. UserError where they ask for what cannot be done."""
        return plan_for(self.card, self.denoiser.process, config, size, guided=hears_text(self.card.model))

    def steps(
        self,
        asked: Labels,
        *,
        negative_prompt: Texts = None,
        max_sequence_length: int | None = None,
        seed: int = 0,
        first: int = 0,
        size: Size | None = None,
        **settings: Any,
    ) -> Iterator[Step]:
        """Sample latents, one for each class label or prompt, step by step; the first is sample `first` of `seed`.

        Sample i of a seed is the same in any batch. `size`: height and width in pixels, the trained one unless given.
        `settings` are fields of SampleConfig; those not given are the checkpoint's.
        """
        config, given, away = self.settings(settings), repeated(asked), negatives(negative_prompt)
        negative = led_away(away, {})
        guided = is_guided(self.card.model, config, negative)
        asks = self.asks(given, away, guided=guided, max_sequence_length=max_sequence_length)
        for line in idle((), negative, self.card.model, config):  # captions of a set may well be empty
            warnings.warn(line, stacklevel=2)
        noise = noise_of(asks.count, seed, first=first)
        yield from walk(self.denoiser, asks, self.plan(config, size), card=self.card, config=config, noise=noise)

    def frames(
        self, class_labels: Labels, *, codec: Codec | None = None, size: Size | None = None, **settings: Any
    ) -> Iterator[Frame]:
        """Like `steps`, decoded to pictures, where wanted by another codec: a small one is fast enough for previews."""
        decode = sized(codec or with_weights(self.codec), size).decode
        for step in self.steps(class_labels, size=size, **settings):
            yield Frame(step.t.item(), decode(step.x), decode(step.x0))

    def draw(
        self,
        class_labels: Labels,
        *,
        progress: Callable[[int], None] = lambda steps: None,
        size: Size | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Sample a picture for each label: (N, H, W, C) uint8. Takes what `steps` takes; `progress(1)` at each step."""
        decode = sized(with_weights(self.codec), size).decode
        for step in self.steps(class_labels, size=size, **settings):
            progress(1)
            x = step.x
        return decode(x)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Labels = None,
        *,
        class_labels: Labels = None,
        negative_prompt: Texts = None,
        prompt_2: Texts = None,
        prompt_3: Texts = None,
        negative_prompt_2: Texts = None,
        negative_prompt_3: Texts = None,
        max_sequence_length: int | None = None,
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
        prompt_2, prompt_3, negative_...: likewise, what the further text encoders of SD3 (CLIP-L, CLIP-G, T5) and FLUX
            (CLIP-L, T5) hear in place of it
        max_sequence_length: tokens of T5, or of the one encoder; as the checkpoint says unless given
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
            unless given. guidance_scale: 1 is none; below it a picture turns away from its class, and is not guided by
            a text. true_cfg_scale: of a network that imitates guidance, above 1 and with a negative_prompt.
            use_resolution_binning: draw at PixArt's size of the nearest ratio, then resize and crop; PixArt's own
            checkpoints say so
        """
        if prompt is not None and class_labels is not None:
            raise UserError("give a prompt or class_labels, not both")
        asked = together(class_labels if prompt is None else prompt, prompt_2, prompt_3)
        given = repeated(asked, num_images_per_prompt)
        away = negatives(negative_prompt, negative_prompt_2, negative_prompt_3, times=num_images_per_prompt)
        embeds = {
            "prompt_embeds": prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        config, model = self.settings(settings), self.card.model
        negative = led_away(away, embeds)
        for line in idle(given, negative, model, config, embeds=not away):
            warnings.warn(line, stacklevel=3)
        make = lookup("output type", output_type, OUTPUTS)
        for name in callback_on_step_end_tensor_inputs:
            if name not in TENSORS:
                raise unknown("callback tensor", name, TENSORS)
        if latents is not None and height is None and width is None:
            config = replace(config, use_resolution_binning=False)  # they are of some size already
        size = self.size(height, width, latents)
        plan = self.plan(config, size)
        more = {"guided": is_guided(model, config, negative), "max_sequence_length": max_sequence_length}
        asks = self.asks(given, away, embeds, times=num_images_per_prompt, **more)
        noise = noise_of(asks.count, seed, generator, device=self.device, dtype=self.dtype)
        codec = self.codec if output_type == "latent" else sized(with_weights(self.codec), size)
        told_of = {"card": self.card, "config": config, "noise": noise, "latents": latents}
        for i, step in enumerate(walk(self.denoiser, asks, plan, **told_of)):
            if callback_on_step_end is not None:
                tensors = shown(step, callback_on_step_end_tensor_inputs)
                given = callback_on_step_end(self, i, told(self.denoiser.process, plan.times[i]), tensors) or {}
                go_on_with(given.get("latents", step.x), step)
        images = make(codec, step.x)
        return ImagePipelineOutput(images) if return_dict else (images,)
