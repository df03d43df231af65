"""Weights on disk and into networks."""

import pytest
import torch
from torch import nn

from ditwright.errors import UserError
from ditwright.model.weights import load_strictly, read_safetensors, write_safetensors


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_weights_come_back_from_a_file_as_they_were(tmp_path):
    saved, fresh = net(), net()
    write_safetensors(tmp_path / "w.safetensors", saved.state_dict())
    load_strictly(fresh, read_safetensors(tmp_path / "w.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), fresh.parameters(), strict=True))


def test_views_of_weights_can_be_written(tmp_path):
    w = torch.arange(12.0, requires_grad=True).reshape(3, 4).T
    write_safetensors(tmp_path / "w.safetensors", {"w": w})
    assert torch.equal(read_safetensors(tmp_path / "w.safetensors")["w"], w)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("1.bias"), "lacks the key for '1.bias'"),
        (lambda s: s.update({"1.bias": torch.zeros(3)}), r"'1.bias' has shape \(3,\); the network needs \(2,\)"),
        (lambda s: s.update({"2.bias": torch.zeros(3)}), "no place for the checkpoint's key '2.bias'"),
    ],
    ids=["missing", "misshapen", "unknown"],
)
def test_a_key_that_does_not_fit_is_named_and_nothing_is_loaded(change, message):
    target, state = net(), {name: torch.full_like(v, 7.0) for name, v in net().state_dict().items()}
    change(state)
    with pytest.raises(UserError, match=message):
        load_strictly(target, state)
    assert not any((p == 7).any() for p in target.parameters())


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint file .*w\.safetensors"):
        read_safetensors(tmp_path / "w.safetensors")
    write_safetensors(tmp_path / "w.safetensors", net().state_dict())
    whole = (tmp_path / "w.safetensors").read_bytes()
    for damage in (whole[:-5], b"", b"\x00" * 100):
        (tmp_path / "w.safetensors").write_bytes(damage)
        with pytest.raises(UserError, match=r"w\.safetensors' is truncated"):
            read_safetensors(tmp_path / "w.safetensors")


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="could not write"):
        write_safetensors(tmp_path / "absent" / "w.safetensors", net().state_dict())
