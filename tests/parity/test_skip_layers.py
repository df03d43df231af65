"""Skip-layer guidance: stock diffusers' StableDiffusion3Pipeline and SD3Transformer2DModel, against us."""

import pytest
import torch

from ditwright import convert
from ditwright.nn.runners import Without
from ditwright.pipeline import Pipeline

diffusers = pytest.importorskip("diffusers")

SHAPE = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4, "sample_size": 8, "in_channels": 4}
SHAPE |= {"out_channels": 4, "joint_attention_dim": 20, "pooled_projection_dim": 10, "caption_projection_dim": 32}
SHAPE |= {"pos_embed_max_size": 12, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}


@pytest.fixture(scope="module")
def stock():
    """A pipeline whose network is random, and whose texts come encoded."""
    net, g = diffusers.SD3Transformer2DModel(**SHAPE), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            spread = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=g) * spread + ("norm_" in name and p.ndim == 1))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = diffusers.StableDiffusion3Pipeline(net.eval(), scheduler, *[None] * 7)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folder(stock, tmp_path_factory):
    path = tmp_path_factory.mktemp("sd3")
    stock.transformer.save_pretrained(path / "transformer")
    stock.scheduler.save_pretrained(path / "scheduler")
    return path


def states(of):
    g = torch.Generator().manual_seed(of)
    return {"text": torch.randn(2, 7, 20, generator=g), "pooled": torch.randn(2, 10, generator=g)}


def both(stock, folder, steps, **settings):
    """The latents of the two pipelines from one noise, on the times that the stock one takes."""
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    settings |= {"num_inference_steps": steps, "guidance_scale": 4.5, "output_type": "latent", "latents": noise}
    for of, sign in ((1, ""), (2, "negative_")):
        told = states(of)
        settings |= {f"{sign}prompt_embeds": told["text"], f"{sign}pooled_prompt_embeds": told["pooled"]}
    theirs = stock(height=64, width=96, **settings).images
    return Pipeline.from_pretrained(folder)(**settings).images, theirs


@pytest.mark.parametrize("layers", [[0], [1, 2], [3], [0, 1, 2, 3]], ids=str)
def test_the_runner_leaves_out_what_diffusers_does(layers, stock, folder):
    x, t = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(4)), torch.tensor([30.0, 900])
    told = states(1)
    want = stock.transformer(
        x, encoder_hidden_states=told["text"], pooled_projections=told["pooled"], timestep=t, skip_layers=layers
    ).sample
    net = convert.load(folder).net
    torch.testing.assert_close(net(x, t, told, run=Without(tuple(layers))), want, rtol=0, atol=1e-5)
    assert (net(x, t, told) - want).abs().max() > 0.1


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        (28, {"skip_guidance_layers": [1, 2]}),
        (10, {"skip_guidance_layers": [2], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.5}),
        (5, {"skip_guidance_layers": [0, 3], "skip_layer_guidance_scale": 1.5, "skip_layer_guidance_stop": 1.0}),
    ],
)
def test_a_guided_pipeline_draws_what_diffusers_does(steps, settings, stock, folder):
    ours, theirs = both(stock, folder, steps, **settings)
    plain, _ = both(stock, folder, steps)
    spread = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * spread)
    assert (plain - theirs).abs().max() > 0.01 * spread  # it does something


def test_a_range_without_a_step_changes_nothing(stock, folder):
    ours, theirs = both(stock, folder, 4, skip_guidance_layers=[1])  # 4 * 0.2 < 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert torch.equal(ours, both(stock, folder, 4)[0])
