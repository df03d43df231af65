"""Theirs, ours, theirs again: the same bits, in every container."""

import json

import pytest
import torch
from checkpoints import lightning, original, same, sit, stock
from safetensors.torch import load_file, save_file

from ditwright import convert
from ditwright.convert import Portable
from ditwright.convert.source import read_file
from ditwright.errors import UserError

STATES = {
    "dit": [original(), original(out=4, patch=4, side=2, depth=1), original(width=24, classes=3, channels=3, out=6)],
    "sit": [sit(), sit(patch=1, channels=2, depth=3)],
    "lightningdit": [
        lightning(),
        lightning(qk_norm=True, side=7),
        lightning(rope=False, swiglu=False, rms=False, channels=4, hidden=192),
        lightning(swiglu=False, depth=1, hidden=100, patch=2, side=3),
    ],
}
CASES = [(family, state) for family, states in STATES.items() for state in states]
IDS = [f"{family}{i}" for family, states in STATES.items() for i in range(len(states))]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("family", "state"), CASES, ids=IDS)
def test_what_was_read_is_written_bit_for_bit(family, state, suffix, tmp_path):
    path = tmp_path / f"new/folder/model{suffix}"
    portable = convert.read(state, family=family, heads=3)
    assert convert.write(portable, path, to=family) == []
    written = torch.load(path, weights_only=True) if suffix == ".pt" else load_file(path)
    assert same(written, state)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written beside it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_number_format_of_a_file_is_kept(dtype, tmp_path):
    state = {name: v.to(dtype) for name, v in original().items() if name != "pos_embed"}
    portable = convert.read(state | {"pos_embed": original()["pos_embed"]}, family="dit", heads=3)
    convert.write(portable, tmp_path / "model.safetensors", to="dit")
    written = load_file(tmp_path / "model.safetensors")
    del written["pos_embed"]
    assert same(written, state)


@pytest.mark.parametrize("shape", [{}, {"depth": 1, "patch": 4, "out": 4}, {"width": 24, "classes": 1000}], ids=str)
def test_a_pipeline_is_written_bit_for_bit(shape, tmp_path):
    """The second time from the folder that was written the first time."""
    state = stock(**shape)
    size = {"sample_size": 8, "num_attention_heads": 3, "_class_name": "DiTTransformer2DModel"}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps(size))
    save_file(state, tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    first = convert.read(tmp_path)
    convert.write(first, tmp_path / "first", to="diffusers")
    second = convert.read(tmp_path / "first")
    convert.write(second, tmp_path / "second", to="diffusers")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert same(load_file(tmp_path / "first" / weights), state)
    for name in (weights, "transformer/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert second.model == first.model
    assert second.process == first.process
    assert second.sample == first.sample
    assert second.image_size == first.image_size == (64, 64)


def test_an_average_that_drifted_is_written_as_it_should_be(tmp_path):
    state = original()
    drifted = state | {"pos_embed": state["pos_embed"] + 2e-4}
    convert.write(convert.read(drifted, family="dit", heads=3), tmp_path / "model.pt", to="dit")
    assert same(torch.load(tmp_path / "model.pt", weights_only=True), state)


def test_a_modulation_without_shifts_is_written_with_shifts_of_zero(tmp_path):
    portable = convert.read(lightning(wo_shift=True), heads=3)
    convert.write(portable, tmp_path / "model.pt", to="lightningdit")
    again = convert.read(tmp_path / "model.pt", heads=3)
    assert same(again.state, portable.state)
    assert again.model == portable.model


def test_a_lightningdit_with_a_doubled_output_keeps_the_half_that_is_used(tmp_path):
    plain, doubled = lightning(channels=4), lightning(channels=4, doubled=True)
    ours = convert.read(doubled, heads=3)
    assert ours.model == convert.read(plain, heads=3).model
    convert.write(ours, tmp_path / "model.pt", to="lightningdit")
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    kept = doubled["final_layer.linear.bias"].unflatten(0, (-1, 8))[:, :4].flatten()
    assert torch.equal(written.pop("final_layer.linear.bias"), kept)
    assert {name: v.shape for name, v in written.items()} == {
        name: v.shape for name, v in plain.items() if name != "final_layer.linear.bias"
    }


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize(("family", "make"), [("dit", original), ("lightningdit", lightning), ("diffusers", stock)])
def test_prefixes_of_ddp_and_compile_are_taken_off(family, make, prefix):
    state = make()
    wrapped = {prefix + name: v for name, v in state.items()}
    within = {name.replace("blocks.1.", "blocks.1._orig_mod."): v for name, v in state.items()}
    want = convert.read(state, family=family, heads=3).state
    for given in (wrapped, within):
        assert same(convert.read(given, family=family, heads=3).state, want)


def test_a_key_that_comes_twice_is_named():
    state = original()
    with pytest.raises(UserError, match=r"'x_embedder\.proj\.bias' and 'module\.x_embedder\.proj\.bias' .* twice"):
        convert.read(state | {"module.x_embedder.proj.bias": torch.ones(48)}, family="dit", heads=3)


def test_errors_name_keys_as_the_file_does():
    state = {f"module.{name}": v for name, v in original().items()}
    with pytest.raises(UserError, match=r"'module\.blocks\.1\.mlp\.fc2\.bias' has shape \(7,\); .* needs \(48,\)"):
        convert.read(state | {"module.blocks.1.mlp.fc2.bias": torch.ones(7)}, family="dit", heads=3)
    with pytest.raises(UserError, match=r"no rule knows the key 'module\.new'"):
        convert.read(state | {"module.new": torch.ones(7)}, family="dit", heads=3)


def test_what_is_written_holds_tensors_alone_each_with_its_own_memory(tmp_path):
    portable = convert.read(stock(), heads=3)  # our joined tensors come from one piece of memory each
    portable = Portable(**vars(portable) | {"image_size": (32, 32)})
    convert.write(portable, tmp_path / "model.pt", to="dit")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {type(v) for v in content.values()} == {torch.Tensor}
    assert all(v.untyped_storage().nbytes() == v.nbytes and v.is_contiguous() for v in content.values())
    assert read_file(tmp_path / "model.pt").said == {}
