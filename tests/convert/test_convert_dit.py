"""Weights in the original DiT layout, from every container they come in."""

import argparse
import os

import pytest
import torch
from checkpoints import original, same
from safetensors.torch import save_file

from ditwright import convert
from ditwright.errors import UserError
from ditwright.model.dit import DiT


def weights(denoiser):
    return denoiser.net.state_dict()


FLAGS = argparse.Namespace(model="DiT-XL/2", lr=1e-4, results_dir="results")
CONTAINERS = {
    "plain.pt": lambda state, other: state,
    "train.pt": lambda state, other: {"model": other, "ema": state, "opt": {"step": 3}, "args": FLAGS},
    "model.pt": lambda state, other: {"model": state, "opt": {"state": {}}, "args": FLAGS},
    "wrapped.pth": lambda state, other: {"state_dict": state},
    "plain.safetensors": lambda state, other: state,
}


@pytest.mark.parametrize("as_type", [str, lambda path: path], ids=["str", "Path"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_weights(name, as_type, tmp_path):
    state, other = original(), original(seed=1)
    save = save_file if name.endswith(".safetensors") else torch.save
    save(CONTAINERS[name](state, other), tmp_path / name)
    assert same(
        weights(convert.load(as_type(tmp_path / name), family="dit", heads=3)),
        weights(convert.load(state, family="dit", heads=3)),
    )
    assert not same(
        weights(convert.load(state, family="dit", heads=3)), weights(convert.load(other, family="dit", heads=3))
    )


def test_every_tensor_goes_to_its_place():
    state = original()
    ours = weights(convert.load(state, family="dit", heads=3))
    assert torch.equal(ours["patchify.proj.weight"], state["x_embedder.proj.weight"].reshape(48, 16))
    assert torch.equal(ours["vectors.label.table.weight"], state["y_embedder.embedding_table.weight"])
    assert torch.equal(ours["time.mlp.2.bias"], state["t_embedder.mlp.2.bias"])
    assert torch.equal(ours["blocks.1.attn.x.qkv.weight"], state["blocks.1.attn.qkv.weight"])
    assert torch.equal(ours["blocks.0.mlp.x.fc2.bias"], state["blocks.0.mlp.fc2.bias"])
    six = state["blocks.1.adaLN_modulation.1.weight"]  # shift, scale, gate of attention, then of the MLP
    assert torch.equal(ours["blocks.1.attn.x.mod.lin.weight"], six[: 3 * 48])
    assert torch.equal(ours["blocks.1.mlp.x.mod.lin.weight"], six[3 * 48 :])
    assert torch.equal(ours["head.mod.lin.weight"], state["final_layer.adaLN_modulation.1.weight"])
    kept = sum(v.numel() for name, v in state.items() if name != "pos_embed")
    assert sum(v.numel() for v in ours.values()) == kept


def test_a_loaded_denoiser_is_ready_to_sample():
    denoiser = convert.load({name: v.double() for name, v in original().items()}, family="dit", heads=3)
    assert not denoiser.training
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
    assert {p.device.type for p in denoiser.parameters()} == {"cpu"}
    pred = denoiser(torch.randn(2, 4, 8, 8), torch.tensor(0.5), {"label": torch.tensor([0, 10])})
    assert pred.x0.shape == pred.eps.shape == pred.var.shape == (2, 4, 8, 8)


def test_loading_leaves_the_given_state_as_it_was():
    state = original()
    before = {name: v.clone() for name, v in state.items()}
    denoiser = convert.load(state, family="dit", heads=3)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(1)
    assert same(state, before)


def test_a_network_without_learned_variance_predicts_the_noise_alone():
    denoiser = convert.load(original(out=4), family="dit", heads=3)
    assert not denoiser.process.learned_var
    assert denoiser(torch.randn(1, 4, 8, 8), torch.tensor(0.5), {"label": torch.tensor([1])}).var is None


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ({"patch": 4}, {"patch": (4, 4)}),
        ({"hidden": 96}, {"mlp_ratio": 2.0}),
        ({"hidden": 100}, {"mlp_ratio": 100 / 48}),
        ({"classes": 3}, {"num_classes": 3}),
        ({"channels": 16, "out": 32}, {"channels": 16, "out_channels": 32}),
        ({"depth": 11}, {"depth": 11}),
    ],
    ids=str,
)
def test_the_shape_of_the_network_is_read_from_its_weights(shape, read):
    config = convert.load(original(**shape), family="dit", heads=3).net.config
    assert {name: getattr(config, name) for name in read} == read


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (1024, 16)])
def test_the_papers_widths_know_their_heads(width, heads):
    state = original(width=width, depth=1, hidden=8)
    assert convert.load(state, family="dit").net.config.heads == heads
    assert convert.load(state, family="dit", heads=4).net.config.heads == 4


def test_another_width_asks_for_the_heads():
    with pytest.raises(UserError, match="width 48 is not the paper's: pass heads="):
        convert.load(original(), family="dit")


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="width 48, heads 5"):
        convert.load(original(), family="dit", heads=5)


def test_a_checkpoint_may_lack_the_table_of_positions():
    state = original()
    without = {name: v for name, v in state.items() if name != "pos_embed"}
    assert same(
        weights(convert.load(without, family="dit", heads=3)), weights(convert.load(state, family="dit", heads=3))
    )


@pytest.mark.parametrize(
    "table",
    [
        lambda t: t + 0.01,
        lambda t: t.roll(1, 1),
        lambda t: t.roll(24, 2),  # rows before columns
        lambda t: t[:, :15],
        lambda t: t[..., :24],
    ],
    ids=["changed", "moved", "swapped", "not square", "narrow"],
)
def test_a_table_of_positions_that_is_not_ours_is_refused(table):
    state = original()
    with pytest.raises(UserError, match="'pos_embed' is not the sin-cos table of a square grid"):
        convert.load(state | {"pos_embed": table(state["pos_embed"])}, family="dit", heads=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(16)}), "'blocks.0.attn.q_norm.weight'"),
        (lambda s: s.update({"module.x_embedder.proj.bias": torch.ones(48)}), "'module.x_embedder.proj.bias'"),
        (lambda s: s.pop("x_embedder.proj.weight"), "'x_embedder.proj.weight'"),
        (lambda s: s.pop("y_embedder.embedding_table.weight"), "'y_embedder.embedding_table.weight'"),
        (lambda s: s.pop("blocks.1.attn.qkv.weight"), r"'blocks.1.attn.(x\.)?qkv.weight'"),
        (
            lambda s: s.pop("final_layer.adaLN_modulation.1.bias"),
            r"'(head.mod.lin|final_layer.adaLN_modulation.1).bias'",
        ),
        (
            lambda s: s.update({"blocks.1.mlp.fc1.bias": torch.ones(7)}),
            r"'blocks.1.mlp.(x\.)?fc1.bias' has shape \(7,\)",
        ),
        (
            lambda s: s.update({"x_embedder.proj.weight": torch.ones(48, 16)}),
            r"'x_embedder.proj.weight' must have 4 axes; it has shape \(48, 16\)",
        ),
        (lambda s: s.update({"final_layer.linear.bias": torch.ones(20)}), "gives 5 channels"),
    ],
    ids=["unknown", "prefixed", "no patches", "no labels", "no qkv", "no bias", "fc1", "flat patches", "channels"],
)
def test_a_key_that_is_unknown_or_missing_or_misshapen_is_named(change, message):
    state = original()
    change(state)
    with pytest.raises(UserError, match=message):
        convert.load(state, family="dit", heads=3)


def test_missing_blocks_are_noticed():
    state = {name: v for name, v in original(depth=3).items() if not name.startswith("blocks.1.")}
    with pytest.raises(UserError, match=r"blocks are not numbered 0, 1, 2 \.\.\.: \[0, 2\]"):
        convert.load(state, family="dit", heads=3)


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match=r"unknown family 'dit2'.*did you mean 'dit'"):
        convert.load(original(), family="dit2", heads=3)


class Trap:
    """Unpickled, it would make a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [
        lambda trap: trap,
        lambda trap: original() | {"extra": trap},
        lambda trap: {"ema": original(), "args": trap},
        lambda trap: {"ema": original(), "args": argparse.Namespace(trap=trap)},
    ],
    ids=["alone", "beside weights", "as flags", "in flags"],
)
def test_a_checkpoint_that_holds_code_is_refused_and_nothing_is_run(content, tmp_path):
    torch.save(content(Trap(tmp_path / "sprung")), tmp_path / "model.pt")
    words = r"model\.pt' cannot be read as plain weights \(it needs posix\.mkdir\); .*safetensors\.torch\.save_file"
    with pytest.raises(UserError, match=words):
        convert.load(tmp_path / "model.pt", family="dit", heads=3)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "model.pt", weights_only=False)  # the trap works
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"a": 1}}, torch.zeros(3)], ids=str)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt' holds no state dict"):
        convert.load(tmp_path / "model.pt", family="dit", heads=3)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint file .*model\.pt"):
        convert.load(tmp_path / "model.pt")
    torch.save(original(), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not weights"):
        (tmp_path / "model.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.pt' cannot be read"):
            convert.load(tmp_path / "model.pt")


def test_the_layout_covers_the_network_to_the_last_weight():
    """Every weight of the network is filled from the file: none keeps what memory held."""
    denoiser = convert.load(
        {name: torch.full_like(v, 0.25) for name, v in original().items() if name != "pos_embed"},
        family="dit",
        heads=3,
    )
    assert all((p == 0.25).all() for p in denoiser.parameters())
    assert weights(denoiser).keys() == DiT(denoiser.net.config).state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoints_of_half_precision_are_read(dtype):
    half = {name: v.to(dtype) for name, v in original().items()}
    ours = weights(convert.load(half, family="dit", heads=3))
    assert torch.equal(ours["head.proj.bias"], half["final_layer.linear.bias"].float())


def test_any_width_of_the_mlp_is_read():
    convert.load(original(width=28, hidden=61), family="dit", heads=2)
