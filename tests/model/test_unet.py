"""The U-Net baseline: ADM's size and cost, the contract of a network, its start."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ditwright.config import from_dict, merge, to_dict
from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.experiment import TrainConfig
from ditwright.model.baseline import UNetConfig
from ditwright.model.build import build, parameters
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.flops import macs, tokens
from ditwright.model.presets import BASELINES
from ditwright.model.unet import unet_saved
from ditwright.recipes import RECIPES
from ditwright.train.cost import memory
from ditwright.train.runners import checkpointed

SMALL = UNetConfig(
    width=16,
    levels=(1, 2),
    depth=1,
    attention=1,
    head_width=16,
    groups=8,
    channels=1,
    out_channels=1,
    num_classes=3,
)


def test_adm_costs_what_the_papers_say():
    """1120 Gflops at 256 pixels (Peebles & Xie 2022, Table 4)."""
    assert sum(macs(BASELINES["ADM-256"], (256, 256)).values()) / 1e9 == pytest.approx(1120, rel=5e-4)


def test_cost_is_that_of_a_pass_in_memory():
    net = build(SMALL)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1), {"label": torch.zeros(1, dtype=torch.long)})
    seen = counter.get_flop_counts()["Global"]
    products = sum(flops for operation, flops in seen.items() if "attention" not in str(operation))
    parts = macs(SMALL, (8, 8))
    assert parts["convolution"] + parts["linear"] + parts["attention"] * any("bmm" in str(op) for op in seen) == (
        products // 2
    )
    assert parts["attention"] == 4 * 2 * 16 * 16 * 32  # down, middle and twice up, 16 places of 32 channels
    assert tokens(SMALL, (8, 8)) == 64
    assert parameters(SMALL) == sum(p.numel() for p in net.parameters())


def test_memory_counts_what_torch_keeps():
    net = build(SMALL)
    kept = {p.data_ptr(): (0, p) for p in net.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(torch.zeros(4, 1, 8, 8), torch.zeros(4), {"label": torch.zeros(4, dtype=torch.long)})
    real = sum(size for size, _ in kept.values())
    assert 4 * unet_saved(SMALL, (8, 8)) == pytest.approx(real, rel=0.1)
    assert memory(SMALL, (8, 8), 4, parameters(SMALL))["activations"] == 4 * unet_saved(SMALL, (8, 8))


def test_it_starts_by_predicting_nothing_and_learns_its_condition():
    net, x, t = build(SMALL, seed=1), torch.randn(3, 1, 8, 8), torch.full((3,), 500.0)
    label = {"label": torch.arange(3)}
    assert net(x, t, label).abs().max() == 0
    optim = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(3):
        net(x, t, label).sub(torch.arange(3.0)[:, None, None, None]).square().mean().backward()
        optim.step()
        optim.zero_grad()
    with torch.no_grad():
        told, other = net(x, t, label), net(x, t, {"label": torch.tensor([1, 2, 0])})
    assert (told - other).abs().max() > 1e-3
    assert all(
        torch.equal(a, b) for a, b in zip(build(SMALL, 1).parameters(), build(SMALL, 1).parameters(), strict=True)
    )


def test_it_is_read_through_a_process_as_a_transformer_is():
    denoiser = Denoiser(build(SMALL), process_from(ProcessConfig()))
    pred = denoiser(torch.randn(2, 1, 8, 8), torch.tensor(0.5), {"label": torch.tensor([0, 3])})
    assert pred.x0.shape == (2, 1, 8, 8)


def test_what_it_cannot_do_is_refused():
    net = build(SMALL)
    with pytest.raises(UserError, match="no blocks of a transformer"):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1), {"label": torch.zeros(1, dtype=torch.long)}, run=checkpointed)
    with pytest.raises(UserError, match="conditioned on"):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    for bad, message in (
        ({"width": 12}, "width 12 is not divisible by groups 8"),
        ({"attention": 3}, "attention must be 0 to 2"),
        ({"head_width": 24}, "32 channels are not divisible by head_width 24"),
        ({"levels": ()}, "needs a level"),
        ({"channels": 0}, "channels and out_channels"),
    ):
        with pytest.raises(UserError, match=message):
            merge(SMALL, bad)


def test_unconditional_networks_need_no_label():
    net = build(merge(SMALL, {"num_classes": 0}))
    assert net(torch.randn(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)


def test_a_configuration_says_which_network_it_is():
    digits = RECIPES["digits"]()
    given = {key: value for key, value in to_dict(SMALL).items() if key != "num_classes"} | {"num_classes": 10}
    config = merge(digits, {"model": given})
    assert config.model == merge(SMALL, {"num_classes": 10})
    assert from_dict(TrainConfig, to_dict(config)) == config
    assert merge(config, {"model": {"width": 32}}).model.width == 32  # of the kind that it is
    old = to_dict(digits)
    del old["model"]["kind"]  # written before there were two
    assert from_dict(TrainConfig, old) == digits
    with pytest.raises(UserError, match=r"unknown model.kind 'net'; known: dit, unet"):
        merge(digits, {"model": {"kind": "net"}})
    with pytest.raises(UserError, match=r"unknown key 'model.heads'; known: width, levels"):
        merge(config, {"model": {"heads": 3}})
    with pytest.raises(UserError, match=r"missing key 'model.width'"):
        merge(digits, {"model": {"kind": "unet"}})
    assert "U-Net" in str(config.model)
    assert str(DiTConfig(32, 2, (Stage(3),), channels=1)).startswith("blocks: 3 adaln_zero; width 32, 2 heads, patch 2")
