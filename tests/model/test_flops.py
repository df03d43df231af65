"""Counted cost and size, against the paper's tables and the counter of torch."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditwright.errors import UserError
from ditwright.model.config import CONDITIONINGS, DiTConfig, Stage, conditioned
from ditwright.model.dit import DiT
from ditwright.model.flops import macs, tokens
from ditwright.model.presets import PRESETS

# As published (Peebles & Xie 2022): latent side, Gflops (multiply-adds), millions of parameters.
XL = PRESETS["DiT-XL/2"]
PUBLISHED = {
    "S/8": (PRESETS["DiT-S/8"], 32, 0.36, 33),
    "S/4": (PRESETS["DiT-S/4"], 32, 1.41, 33),
    "S/2": (PRESETS["DiT-S/2"], 32, 6.06, 33),
    "B/8": (PRESETS["DiT-B/8"], 32, 1.42, 131),
    "B/4": (PRESETS["DiT-B/4"], 32, 5.56, 130),
    "B/2": (PRESETS["DiT-B/2"], 32, 23.01, 130),
    "L/8": (PRESETS["DiT-L/8"], 32, 5.01, 459),
    "L/4": (PRESETS["DiT-L/4"], 32, 19.70, 458),
    "L/2": (PRESETS["DiT-L/2"], 32, 80.71, 458),
    "XL/8": (PRESETS["DiT-XL/8"], 32, 7.39, 676),
    "XL/4": (PRESETS["DiT-XL/4"], 32, 29.05, 675),
    "XL/2": (XL, 32, 118.64, 675),
    "XL/2 at 512": (XL, 64, 524.60, 675),
    "XL/2 in-context": (conditioned(XL, "in-context"), 32, 119.37, 449),
    "XL/2 cross": (conditioned(XL, "cross"), 32, 137.62, 598),
    "XL/2 adaln": (conditioned(XL, "adaln"), 32, 118.56, 600),
}


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in DiT(config).parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_cost_is_the_papers(name):
    config, side, gflops, _ = PUBLISHED[name]
    ours = sum(macs(config, (side, side)).values()) / 1e9
    assert abs(ours / gflops - 1) < 0.005 or round(ours, 2) == gflops


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_papers(name):
    config, _, _, millions = PUBLISHED[name]
    assert round(parameters(config) / 1e6) == millions


@pytest.mark.parametrize(
    ("size", "count"), [("S", 32_963_360), ("B", 130_512_416), ("L", 458_102_816), ("XL", 675_129_632)]
)
def test_size_is_the_originals_to_the_unit(size, count):
    config = PRESETS[f"DiT-{size}/2"]
    stored_table = tokens(config, (32, 32)) * config.width  # the original keeps its positions as a frozen parameter
    assert parameters(config) + stored_table == count


def test_every_dit_is_in_the_papers_table():
    named = {name.removeprefix("DiT-") for name in PRESETS if name.startswith("DiT-")}
    assert named <= PUBLISHED.keys()
    assert len(named) == 12


LIGHTNING = {"B/1": 0.130, "B/2": 0.131, "L/2": 0.458, "XL/1": 0.675, "XL/2": 0.675}  # as DiT's of that width
LIGHTNING |= {"1p0B/1": 1.0, "1p0B/2": 1.0, "1p6B/1": 1.6, "1p6B/2": 1.6}  # as their names say


def test_every_lightningdit_has_the_size_of_its_name():
    """Gating takes a third of the hidden channels, so that the size stays DiT's."""
    sizes = {name: parameters(config) / 1e9 for name, config in PRESETS.items() if name.startswith("LightningDiT-")}
    digits = {name: 3 if LIGHTNING[name.removeprefix("LightningDiT-")] < 1 else 1 for name in sizes}
    assert {name.removeprefix("LightningDiT-"): round(size, digits[name]) for name, size in sizes.items()} == LIGHTNING


def test_the_hidden_width_of_a_lightningdit_is_rounded_as_theirs():
    hidden = {
        config.width: round(config.width * config.mlp_ratio) for config in PRESETS.values() if config.mlp == "swiglu"
    }
    assert hidden == {768: 2048, 1024: 2730, 1152: 3072, 1536: 4096, 1792: 4778}


SMALL = {
    "image": (DiTConfig(width=24, heads=2, stages=(Stage(2),)), (8, 12)),
    "audio": (DiTConfig(width=24, heads=3, stages=(Stage(1),), patch=(4,), sincos=(0,), channels=2), (40,)),
    "video": (
        DiTConfig(width=12, heads=2, stages=(Stage(1), Stage(2)), patch=(1, 2, 2), sincos=(), rope=(2, 2, 2)),
        (3, 4, 6),
    ),
    "unconditional": (DiTConfig(width=16, heads=2, stages=(Stage(1),), num_classes=0, out_channels=8), (4, 4)),
    "lightning": (
        DiTConfig(24, 2, (Stage(2),), (1, 1), 8, 8, rope=(6, 6), norm="rms", mlp="swiglu", mlp_ratio=8 / 3),
        (4, 6),
    ),
    "narrow": (DiTConfig(width=16, heads=2, stages=(Stage(2),), mlp_ratio=2.5, qk_norm=True), (4, 4)),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_cost_is_half_of_what_torch_counts(conditioning, name):
    config, space = SMALL[name]
    config = conditioned(config, conditioning)
    x, cond = torch.zeros(1, config.channels, *space), {"label": torch.zeros(1, dtype=torch.long)}
    # The counter sees attention where it is made of plain products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        DiT(config)(x, torch.zeros(1), cond)
    assert 2 * sum(macs(config, space).values()) == counter.get_total_flops()


def test_parts_grow_as_they_should():
    small, wide = macs(XL, (32, 32)), macs(XL, (64, 64))  # four times the tokens
    assert wide["mlp"] == 4 * small["mlp"]
    assert wide["patchify"] == 4 * small["patchify"]
    assert (wide["modulation"], wide["time"]) == (small["modulation"], small["time"])
    assert 4 * small["attention"] < wide["attention"] < 16 * small["attention"]


def test_tokens_are_patches():
    assert tokens(XL, (32, 64)) == 16 * 32
    assert tokens(SMALL["audio"][0], (40,)) == 10
    assert tokens(SMALL["video"][0], (3, 4, 6)) == math.prod((3, 2, 3))
    with pytest.raises(UserError, match="not divisible"):
        tokens(XL, (33, 32))
