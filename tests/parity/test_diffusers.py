"""What stock diffusers saves, loaded here, computes the same."""

import json

import pytest
import torch

from ditwright import SAMPLERS, convert, guided
from ditwright.diffusion.grid import respaced
from ditwright.diffusion.sampler import last
from ditwright.errors import UserError

diffusers = pytest.importorskip("diffusers")

SHAPES = [
    {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2, "out_channels": 8},
    {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 3, "patch_size": 4, "out_channels": 4},
    {"num_attention_heads": 1, "attention_head_dim": 64, "num_layers": 1, "patch_size": 1, "out_channels": 8},
]


def model(shape):
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(in_channels=4, sample_size=8, num_embeds_ada_norm=10, **shape).eval()
    first = net.transformer_blocks[0].norm1.emb
    for block in net.transformer_blocks[1:]:  # as in every published model, the embedders are copies
        block.norm1.emb.load_state_dict(first.state_dict())
    return net


@pytest.mark.parametrize("shape", SHAPES)
def test_the_network_computes_what_diffusers_does(shape, tmp_path):
    net = model(shape)
    net.save_pretrained(tmp_path / "transformer")
    ours = convert.load(tmp_path, family="diffusers")
    x, t, y = torch.randn(5, 4, 8, 8), torch.tensor([0, 1, 250, 900, 999]), torch.tensor([0, 3, 9, 10, 5])
    with torch.no_grad():
        theirs = net(x, timestep=t, class_labels=y).sample
        out = ours.net(x, t, {"label": y})
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_a_guided_trajectory_is_that_of_their_scheduler(tmp_path):
    net = model(SHAPES[0])
    net.save_pretrained(tmp_path)
    ours = convert.load(tmp_path, family="diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(10)
    x = theirs = torch.randn(2, 4, 8, 8)
    y, null = torch.tensor([3, 7]), torch.tensor([10, 10])
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = net(torch.cat((theirs, theirs)), timestep=t.expand(4), class_labels=torch.cat((y, null))).sample[
                :, :4
            ]
            cond, free = eps.chunk(2)
            theirs = scheduler.step(free + 4 * (cond - free), t, theirs).prev_sample
        denoise = guided(ours, {"label": y}, {"label": null}, 4.0)
        times = respaced(1000, scheduler.timesteps.tolist())
        x = last(SAMPLERS["ddim"](denoise, x, times, ours.process.path))
    torch.testing.assert_close(x, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def test_embedders_that_are_not_copies_are_refused(tmp_path):
    net = model(SHAPES[0])
    with torch.no_grad():
        net.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias += 1
    with pytest.raises(UserError, match=r"transformer_blocks\.1\.norm1\.emb.*linear_1\.bias.*differs"):
        convert.load(net.state_dict(), family="diffusers", heads=2)


@pytest.mark.parametrize("key", ["transformer_blocks.1.attn1.to_k.bias", "proj_out_1.weight", "pos_embed.proj.weight"])
def test_a_missing_key_is_named(key):
    state = dict(model(SHAPES[0]).state_dict())
    del state[key]
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        convert.load(state, family="diffusers", heads=2)


@pytest.mark.parametrize(("key", "value"), [("norm_eps", 1e-6), ("activation_fn", "gelu")])
def test_another_architecture_is_refused(key, value, tmp_path):
    model(SHAPES[0]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=key):
        convert.load(tmp_path, family="diffusers")


def test_the_schedule_of_a_pipeline_is_checked(tmp_path):
    model(SHAPES[0]).save_pretrained(tmp_path / "transformer")
    diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02).save_pretrained(tmp_path / "scheduler")
    convert.load(tmp_path, family="diffusers")
    diffusers.DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match=r"prediction_type|beta_start"):
        convert.load(tmp_path, family="diffusers")


def test_another_class_of_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="UNet2DModel"):
        convert.load(tmp_path, family="diffusers")
