"""Image autoencoders of diffusers as codecs: AutoencoderKL, AutoencoderTiny, AutoencoderDC.

B batch, H height, W width, C channels of latents, M channels of moments; h, w the latents' height and width.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.weights import digest
from .config import CodecConfig
from .folder import affine, filled, locate, skeleton, write
from .pixels import Noise, channels_first, to_float, to_uint8

AT_ONCE = 2**21  # pixels that a GPU encodes or decodes together: 8 pictures of 512 x 512
TINY_TILES = 8  # the only factor at which diffusers cuts AutoencoderTiny into tiles


class Autoencoder:
    """An autoencoder of any of the three kinds, its weights read when they are first needed.

    Encoding and decoding change nothing in it: any number of threads may share one. `to`, `enable_slicing` and
    `enable_tiling` set it up beforehand. On a CPU it takes one picture at a time, so that none depends on its batch.
    """

    def __init__(self, config: CodecConfig):
        self._config, self._net, self._lock = config, None, threading.RLock()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.sliced = self.tiled = False

    @classmethod
    def found(cls, source: str, revision: str = "") -> Autoencoder:
        """The autoencoder of a folder or of a hub's name, its configuration complete."""
        folder, commit = locate(source, revision)
        kind, net = skeleton(folder)
        channels, factor = _shape(kind, net)
        config = CodecConfig(kind, channels, factor, *affine(net), str(folder) if not commit else source, commit)
        codec = cls(config)
        codec._config = replace(config, fingerprint=digest(codec.net.state_dict(), kind))
        return codec

    @property
    def config(self) -> CodecConfig:
        """Which it is. Scale and shift that were left open are the ones of its folder."""
        if not (self._config.scale and self._config.shift):
            with self._lock:
                scale, shift = affine(skeleton(self._folder())[1])
                self._config = replace(
                    self._config, scale=self._config.scale or scale, shift=self._config.shift or shift
                )
        return self._config

    @property
    def net(self) -> nn.Module:
        """The network in diffusers' own class. UserError where its weights are not there, or not the ones meant."""
        with self._lock:
            if self._net is None:
                net = self._read()
                half = self.dtype == torch.float16 and net.config.get("force_upcast")  # too narrow for it, it says
                self._net = self._placed(net, torch.float32 if half else self.dtype)
                if self.tiled:
                    self._net.enable_tiling()
            return self._net

    def moments(self, images: np.ndarray) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, M, h, w) float32: means, and with kind kl log-variances after them."""
        self._check(images)
        parts = self._parts(channels_first(images), images.shape[1] * images.shape[2])
        return torch.cat([self._encode(part) for part in parts])

    def latents(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """(B, M, h, w) -> (B, C, h, w) float32, drawn with `noise` or else the mean; then (z - shift) * scale."""
        drawn = self._config.kind == "kl"
        expected = self._config.channels * (2 if drawn else 1)
        if moments.ndim != 4 or moments.shape[1] != expected:
            raise UserError(
                f"moments of a codec of kind {self._config.kind} with {self._config.channels} channels are "
                f"(B, {expected}, h, w); got {tuple(moments.shape)}: another codec made them"
            )
        z = moments.float()
        if drawn:
            z, logvar = z.chunk(2, 1)
            if noise is not None:
                z = z + (0.5 * logvar.clamp(-30, 20)).exp() * noise(z)  # the clamp is diffusers'
        scale, shift = self._affine(z)
        return (z - shift) * scale

    def encode(self, images: np.ndarray, noise: Noise | None = None) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, C, h, w) float32: both at once."""
        return self.latents(self.moments(images), noise)

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) float32, in [-1, 1] but for what the network makes too bright or too dark."""
        channels, factor = self._config.channels, self._config.factor
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise UserError(f"this codec decodes latents (B, {channels}, h, w); got {tuple(latents.shape)}")
        scale, shift = self._affine(latents)
        net, sides = self.net, [side * factor for side in latents.shape[2:]]
        parts = self._parts(latents.float() / scale + shift, sides[0] * sides[1])
        found = torch.cat([net.decode(self._there(part, net.dtype)).sample.float() for part in parts])
        if list(found.shape[2:]) != sides:
            raise UserError(f"diffusers' tiles of {net.config.get('sample_size')} pixels do not fit; do not tile")
        return found

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, h, w) -> (B, H, W, 3) uint8, clipped."""
        return to_uint8(self.pixels(latents))

    def ready(self) -> Autoencoder:
        """Reads the weights now, returns itself. UserError where they are not there, or not the ones meant."""
        _ = self.net
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Autoencoder:
        """Moves itself, returns itself. What is half as wide is read anew before it is widened."""
        with self._lock:
            if dtype not in (None, self.dtype) and self.dtype != torch.float32:
                self._net = None
            self.device, self.dtype = torch.device(device or self.device), dtype or self.dtype
            net, self._net = self._net, None
            if net is not None and not (self.dtype == torch.float16 and net.config.get("force_upcast")):
                self._net = self._placed(net, self.dtype)
        return self

    def enable_slicing(self, on: bool = True) -> None:
        """One picture at a time on a GPU too: slower, and in the least memory."""
        self.sliced = on

    def enable_tiling(self, on: bool = True) -> None:
        """Decode large pictures in overlapping tiles, by diffusers' own method. Encoding never depends on it.

        UserError for an AutoencoderTiny whose factor is not 8, which diffusers cannot tile.
        """
        if on and self._config.kind == "tiny" and self._config.factor != TINY_TILES:
            raise UserError(f"AutoencoderTiny is tiled at factor {TINY_TILES} only; this one has {self._config.factor}")
        with self._lock:
            self.tiled = on
            if self._net is not None:
                self._net.enable_tiling() if on else self._net.disable_tiling()

    def save(self, folder: Path) -> None:
        """Write config.json, with the present scale and shift, and the weights as float32."""
        net = self.net if self.net.dtype == torch.float32 else self._read()
        write(net, net.state_dict(), folder, self.config)

    def _folder(self) -> Path:
        if not self._config.source:
            raise UserError("codec.source is empty: name the folder or the hub name of an autoencoder")
        return locate(self._config.source, self._config.revision)[0]

    def _read(self) -> nn.Module:
        """Anew from its folder, in float32 on the CPU."""
        folder, config = self._folder(), self._config
        kind, net = skeleton(folder)
        found = (kind, *_shape(kind, net))
        if found != (config.kind, config.channels, config.factor):
            wanted = f"{config.kind} with {config.channels} channels and factor {config.factor}"
            raise UserError(
                f"{config.source!r} is an autoencoder of kind {found[0]} with {found[1]} channels and factor "
                f"{found[2]}; the configuration asks for kind {wanted}"
            )
        net = filled(net, folder)
        if config.fingerprint and (own := digest(net.state_dict(), kind)) != config.fingerprint:
            raise UserError(
                f"the codec in {config.source!r} has other weights ({own[:12]}) than the one that made these latents "
                f"({config.fingerprint[:12]}): bring those back, or prepare the data with these"
            )
        return net

    @property
    def _layout(self) -> torch.memory_format:
        """In which a CPU decodes one picture up to 3.6 times as fast in bfloat16 (docs/performance_notes.md)."""
        return torch.channels_last if self.device.type == "cpu" else torch.contiguous_format

    def _placed(self, net: nn.Module, dtype: torch.dtype) -> nn.Module:
        return nn.Module.to(net, self.device, dtype, memory_format=self._layout)  # diffusers' own `to` warns

    def _there(self, batch: Tensor, dtype: torch.dtype) -> Tensor:
        return batch.to(self.device, dtype, memory_format=self._layout)

    def _check(self, images: np.ndarray) -> None:
        channels, factor = self.net.config["in_channels"], self._config.factor
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(f"this codec encodes uint8 images (B, H, W, {channels}); got {images.dtype} {images.shape}")
        if images.shape[1] % factor or images.shape[2] % factor or not images.size:
            height, width = images.shape[1:3]
            raise UserError(
                f"a picture of {height}x{width} has sides that {factor}, the codec's factor, does not divide"
            )

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, M, h, w) float32."""
        net = self.net
        h = net.encoder(self._there(to_float(pixels.to(self.device)), net.dtype))
        quant = getattr(net, "quant_conv", None)
        return (h if quant is None else quant(h)).float()

    def _parts(self, batch: Tensor, pixels: int) -> tuple[Tensor, ...]:
        """A batch of pictures of so many pixels in the portions that are worked on together."""
        alone = self.sliced or self.device.type == "cpu"
        return batch.split(1 if alone else max(1, AT_ONCE // pixels))

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, (C or 1, 1, 1) float32."""
        config = self.config
        scale, shift = (torch.tensor(v, dtype=torch.float32, device=like.device) for v in (config.scale, config.shift))
        return scale[:, None, None], shift[:, None, None]


def _shape(kind: str, net: nn.Module) -> tuple[int, int]:
    """Channels of the latents and pixels per latent along a side, found by sending shapes through a skeleton."""
    side = 512
    with torch.device("meta"), torch.no_grad():
        out = net.encoder(torch.empty(1, net.config["in_channels"], side, side))
    return net.config["latent_channels"], side // out.shape[-1]
