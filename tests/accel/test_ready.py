"""A denoiser laid out for sampling predicts what the one it was made of predicts, whatever its network is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ditwright.accel import compiling, linear
from ditwright.accel import ready as laying_out
from ditwright.accel.ready import BATCHES, Ready, along, ready
from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.model.baseline import UNetConfig
from ditwright.model.build import build
from ditwright.nn.runners import Without
from ditwright.pipeline import Pipeline
from small_networks import DIT, NETWORKS, given, off
from small_pipelines import pipeline

TIMES = torch.linspace(1, 0, 9, dtype=torch.float64)


def parts(name="adaln-zero", masked=False):
    config, space = NETWORKS[name]
    net, x, _, cond = given(config, space, masked)
    heard = {key: cond[key] for key in [*net.wants, *(["text_mask"] if masked else [])]}
    return Denoiser(net, process_from(ProcessConfig())).eval(), x, heard


HEARD = [(name, masked) for name in NETWORKS for masked in (False, True)[: 1 + (NETWORKS[name][0].text_width > 0)]]


@pytest.mark.parametrize(("name", "masked"), HEARD)
@torch.no_grad()
def test_every_network_predicts_the_same(name, masked):
    denoiser, x, cond = parts(name, masked)
    fast = ready(denoiser)
    walk = along(fast, TIMES)
    for t in TIMES[:3]:
        want = denoiser(x, t, cond)
        for found in (fast(x, t, cond), walk(x, t, cond)):
            assert off(found.x0, want.x0) < 1e-5
            assert off(found.eps, want.eps) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_bf16_is_within_two_percent(name):
    denoiser, x, cond = parts(name)
    want, found = denoiser(x, TIMES[2], cond).x0, along(ready(denoiser, "bf16"), TIMES)(x, TIMES[2], cond).x0
    assert found.dtype == torch.float32
    assert 0 < (found - want).norm() / want.norm() < 0.02


@torch.no_grad()
def test_times_off_the_grid_times_of_a_batch_and_many_conditions_are_predicted_too():
    denoiser, x, cond = parts()
    walk = along(ready(denoiser), TIMES)
    asked = [(torch.tensor(0.123, dtype=torch.float64), cond), (torch.tensor([0.3, 0.8]), cond)]
    asked += [(TIMES[1], {"label": torch.tensor([i % 3, 1])}) for i in range(BATCHES + 3)]
    for t, told in asked * 2:
        assert off(walk(x, t, told).eps, denoiser(x, t, told).eps) < 1e-5


@torch.no_grad()
def test_the_numbers_of_the_blocks_are_one_product_for_many_steps():
    denoiser, x, cond = parts()
    fast, products = ready(denoiser), []
    fast.gathered.register_forward_hook(lambda module, given, out: products.append(out.shape))
    walk = along(fast, TIMES)
    for t in TIMES[:-1]:
        walk(x, t, cond)
    width = DIT.width
    assert products == [(len(TIMES) * len(x), 2 * 2 * 3 * width)]  # of two blocks, two norms, three vectors


@torch.no_grad()
def test_runners_run_in_it():
    denoiser, x, cond = parts()
    run = Without((0,))
    want = denoiser(x, TIMES[1], cond, run=run).eps
    assert off(along(ready(denoiser), TIMES)(x, TIMES[1], cond, run=run).eps, want) < 1e-5


def test_the_denoiser_it_is_made_of_stays_as_it_is_and_shares_its_weights():
    denoiser, x, cond = parts()
    before, names = denoiser(x, TIMES[1], cond).eps, set(denoiser.state_dict())
    fast = ready(denoiser)
    assert set(denoiser.state_dict()) == names
    assert torch.equal(denoiser(x, TIMES[1], cond).eps, before)
    assert all(p.requires_grad for p in denoiser.parameters())
    assert fast.net.patchify.proj.weight.data_ptr() == denoiser.net.patchify.proj.weight.data_ptr()


@torch.no_grad()
def test_products_where_the_cpu_has_no_layouts(monkeypatch):
    denoiser, x, cond = parts()
    laid_out = ready(denoiser, "bf16")(x, TIMES[1], cond).eps
    monkeypatch.setattr(linear, "can_lay_out", lambda device, dtype: False)
    assert off(ready(denoiser, "bf16")(x, TIMES[1], cond).eps, laid_out) < 0.02


@pytest.fixture(params=["AVX2", "AVX512"])
def capability(request, monkeypatch):
    """What torch takes the CPU for."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


@torch.no_grad()
def test_fp32_is_laid_out_where_that_is_faster_and_stays_fp32(capability):
    layer = linear.LaidOut(nn.Linear(48, 40), torch.float32)
    assert layer.packs == (capability == "AVX2")
    denoiser, x, cond = parts()
    assert off(ready(denoiser)(x, TIMES[1], cond).eps, denoiser(x, TIMES[1], cond).eps) < 1e-6


@torch.no_grad()
def test_rows_do_not_depend_on_how_many_there_are(capability):
    torch.manual_seed(0)
    layer, x = linear.LaidOut(nn.Linear(192, 768), torch.float32, gelu=True), torch.randn(4, 64, 192)
    assert all(torch.equal(layer(x[:count]), layer(x)[:count]) for count in (1, 2, 3))


def test_what_cannot_be_done_is_refused(monkeypatch):
    denoiser, *_ = parts()
    fast = ready(denoiser)
    monkeypatch.setattr(compiling, "can_compile", lambda: False)
    for work, why in [
        (lambda: ready(denoiser, "int3"), "precision 'int3'"),
        (lambda: ready(denoiser, compiled=True), r"C\+\+ compiler"),
        (lambda: ready(fast), "already"),
        (lambda: fast.state_dict(), "save the one"),
        (lambda: fast.to(torch.bfloat16), "move it"),
    ]:
        with pytest.raises(UserError, match=why):
            work()


@torch.no_grad()
def test_a_unet_is_cast_and_compiled_and_has_no_graphs(monkeypatch):
    config = UNetConfig(width=8, levels=(1, 1), depth=1, attention=1, head_width=8, groups=4, num_classes=3)
    denoiser = Denoiser(build(config), process_from(ProcessConfig())).eval()
    fast = ready(denoiser, "bf16")
    assert next(fast.parameters()).dtype == torch.bfloat16
    assert next(denoiser.parameters()).dtype == torch.float32
    assert not isinstance(fast, Ready)
    compiled: list[nn.Module] = []
    monkeypatch.setattr(laying_out, "compile_blocks", compiled.extend)
    fast = ready(denoiser, "bf16", compiled=True)
    assert [id(block) for block in compiled] == [id(block) for block in fast.net.blocks]
    with pytest.raises(UserError, match="graphs are of a transformer's blocks, and this network is a U-Net"):
        ready(denoiser, graphs=True)


@pytest.mark.parametrize("settings", [{}, {"sampler": "heun", "guidance_interval": (0.2, 0.8)}, {"batch_size": 2}])
@pytest.mark.parametrize("process", ["flow", "ddpm", "karras"])
def test_pipelines_draw_the_same_pictures(process, settings):
    pipe = pipeline(process)
    want, found = (one.draw([0, 1, 2, 1, 0], seed=3, **settings) for one in (pipe, pipe.ready("fp32")))
    assert np.abs(want.astype(int) - found).max() <= 1
    assert len(np.unique(want)) > 15


def test_a_ready_pipeline_is_a_pipeline_but_cannot_be_saved(tmp_path):
    pipe = pipeline().ready("fp32")
    assert isinstance(pipe, Pipeline)
    assert len(pipe([0, 2], num_images_per_prompt=2, num_inference_steps=2).images) == 4
    with pytest.raises(UserError, match="cannot be saved"):
        pipe.save_pretrained(tmp_path / "it")
    assert not (tmp_path / "it").exists()


def test_few_rows_are_filled_up():
    lin = nn.Linear(4, 3)
    seen = []
    linear.filled(lambda rows: seen.append(len(rows)) or lin(rows), torch.randn(2, 4))
    assert seen == [linear.ROWS]
    x = torch.randn(2, 4)
    torch.testing.assert_close(linear.Filled.of(lin)(x), lin(x))
