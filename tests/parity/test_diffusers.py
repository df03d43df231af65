"""Stock diffusers and us: what either saves, the other loads and computes the same."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ditwright import SAMPLERS, Draws, convert, guided
from ditwright.convert.numerics import TIMES, measure
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.diffusion.grid import respaced
from ditwright.diffusion.process import process_from
from ditwright.diffusion.sampler import last
from ditwright.errors import UserError
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.dit import DiT

diffusers = pytest.importorskip("diffusers")

SHAPES = [
    {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2, "out_channels": 8},
    {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 3, "patch_size": 4, "out_channels": 4},
    {"num_attention_heads": 1, "attention_head_dim": 64, "num_layers": 1, "patch_size": 1, "out_channels": 8},
    {"num_attention_heads": 4, "attention_head_dim": 4, "num_layers": 12, "patch_size": 2, "norm_eps": 1e-3},
]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def model(shape, **rest):
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "out_channels": 4, "sample_size": 8, "num_embeds_ada_norm": 10} | shape | rest
    net = diffusers.DiTTransformer2DModel(**sizes).eval()
    first = net.transformer_blocks[0].norm1.emb
    for block in net.transformer_blocks[1:]:  # as in every published model, the embedders are copies
        block.norm1.emb.load_state_dict(first.state_dict())
    return net


def autoencoder(channels=4, levels=2):
    torch.manual_seed(1)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    sizes = {"block_out_channels": [8] * levels, "norm_num_groups": 4, "latent_channels": channels}
    return diffusers.AutoencoderKL(**kinds, **sizes, sample_size=8).eval()


def pipeline(net, scheduler=None):
    scheduler = scheduler or diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(transformer=net, vae=autoencoder(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pipeline(path):
    pipe = diffusers.DiTPipeline.from_pretrained(path, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(channels=4, count=5, classes=10):
    return (
        torch.randn(count, channels, 8, 8),
        torch.tensor([0, 1, 250, 900, 999]),
        torch.arange(count) * 2 % (classes + 1),
    )


def agree(ours, theirs, share=1e-5):
    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=share * theirs.abs().max().item())


@torch.no_grad()
def both(ours, net):
    """What the two networks say of the same latents, times and labels, the null class among them."""
    x, t, y = inputs(net.config.in_channels)
    return ours(x, t, {"label": y}), net(x, timestep=t, class_labels=y).sample


# From diffusers to us.


@pytest.mark.parametrize("shape", SHAPES)
def test_the_network_computes_what_diffusers_does(shape, tmp_path):
    net = model(shape)
    net.save_pretrained(tmp_path / "transformer")
    agree(*both(convert.load(tmp_path).net, net))


@pytest.mark.parametrize(
    "how",
    [
        {"max_shard_size": "30KB"},
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": "30KB"},
        {"variant": "other"},
        {"variant": "other", "max_shard_size": "30KB"},
    ],
    ids=str,
)
def test_every_way_to_save_is_read(how, tmp_path):
    net = model(SHAPES[0])
    net.save_pretrained(tmp_path, **how)
    files = [path.name for path in tmp_path.iterdir()]
    assert ("index" in " ".join(files)) == ("max_shard_size" in how)
    agree(*both(convert.load(tmp_path).net, net))


def test_half_precision_is_read_into_whole(tmp_path):
    half = model(SHAPES[0]).half()
    half.save_pretrained(tmp_path, variant="fp16")
    portable = convert.read(tmp_path)
    assert {v.dtype for v in portable.state.values()} == {torch.float16}
    ours = convert.load(tmp_path).net
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    whole = model(SHAPES[0])
    whole.load_state_dict(half.state_dict())  # its table of positions stays whole
    agree(*both(ours, whole))


def test_whole_precision_is_taken_before_a_variant_and_two_variants_are_refused(tmp_path):
    net = model(SHAPES[0])
    net.half().save_pretrained(tmp_path, variant="fp16")
    net.bfloat16().save_pretrained(tmp_path, variant="bf16")
    with pytest.raises(UserError, match=r"lacks diffusion_pytorch_model\.safetensors; it holds .*bf16.*fp16"):
        convert.read(tmp_path)
    whole = model(SHAPES[0])
    whole.save_pretrained(tmp_path)
    agree(*both(convert.load(tmp_path).net, whole))


@pytest.mark.parametrize("damage", ["missing shard", "missing key", "shard elsewhere", "no map"])
def test_damaged_shards_are_named(damage, tmp_path):
    model(SHAPES[0]).save_pretrained(tmp_path, max_shard_size="30KB")
    path = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    key, shard = next(iter(index["weight_map"].items()))
    if damage == "missing shard":
        (tmp_path / shard).unlink()
    elif damage == "missing key":
        index["weight_map"] = {key: shard, "proj_out_9.weight": shard}
    elif damage == "shard elsewhere":
        index["weight_map"][key] = "../" + shard
    else:
        del index["weight_map"]
    path.write_text(json.dumps(index))
    words = {"missing shard": shard, "missing key": "proj_out_9", "shard elsewhere": "leads out", "no map": "no index"}
    with pytest.raises(UserError, match=words[damage]):
        convert.read(tmp_path)


def test_the_published_pipelines_of_old_are_read(tmp_path):
    """`Transformer2DModel`, weights in a .bin that hold the table of positions too (facebook/DiT-XL-2-256)."""
    net = model(SHAPES[0])
    net.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(
        net.state_dict() | {"pos_embed.pos_embed": net.pos_embed.pos_embed}, tmp_path / "diffusion_pytorch_model.bin"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    del config["norm_eps"]  # they were saved before there was one
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    (tmp_path / "config.json").write_text(json.dumps(config | old))
    agree(*both(convert.load(tmp_path).net, net))
    agree(*both(convert.load(tmp_path / "diffusion_pytorch_model.bin", heads=2).net, net))


def test_a_whole_pipeline_is_read(tmp_path):
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=True, clip_sample_range=2.0)
    names = {str(i): f"class {i}, synonym {i}" for i in range(10)}
    pipeline(model(SHAPES[0]), scheduler).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())  # stock reads names there, but does not save them
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"id2label": names}))
    portable = convert.read(tmp_path)
    assert portable.class_names == tuple(names.values())
    assert portable.image_size == (16, 16)  # of an autoencoder with two levels
    assert portable.factor == 2
    assert portable.codec == str(tmp_path)
    assert portable.notes == ()
    sample = portable.sample
    assert (sample.sampler, sample.num_inference_steps, sample.guidance_scale) == ("ddim", 50, 4.0)
    assert (sample.timestep_spacing, sample.clip, sample.use_clipped_model_output) == ("trailing", 2.0, False)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("table", ["linear", "squaredcos_cap_v2"])
def test_a_guided_trajectory_is_that_of_their_scheduler(predicts, table, tmp_path):
    net = model(SHAPES[0])
    scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_schedule=table, prediction_type=predicts)
    pipeline(net, scheduler).save_pretrained(tmp_path)
    ours = convert.load(tmp_path)
    scheduler.set_timesteps(10)
    x = theirs = torch.randn(2, 4, 8, 8)
    y, null = torch.tensor([3, 7]), torch.tensor([10, 10])
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = net(torch.cat((theirs, theirs)), timestep=t.expand(4), class_labels=torch.cat((y, null))).sample
            cond, free = out[:, :4].chunk(2)
            theirs = scheduler.step(free + 4 * (cond - free), t, theirs).prev_sample
        denoise = guided(ours, {"label": y}, {"label": null}, 4.0)
        times = respaced(1000, scheduler.timesteps.tolist())
        x = last(SAMPLERS["ddim"](denoise, x, times, ours.process.path))
    agree(x, theirs, 1e-4)


SCHEDULERS = {
    "DDPMScheduler": ("ddpm", {"clip_sample": False}),
    "EulerDiscreteScheduler": ("euler", {}),
    "HeunDiscreteScheduler": ("heun", {"beta_start": 1e-4, "beta_end": 0.02}),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", {"solver_order": 3}),
    "PNDMScheduler": ("ddim", {}),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of theirs
@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_scheduler_becomes_the_nearest_sampler_and_says_so(name, tmp_path):
    sampler, settings = SCHEDULERS[name]
    pipeline(model(SHAPES[0]), getattr(diffusers, name)(**settings)).save_pretrained(tmp_path)
    portable = convert.read(tmp_path)
    assert portable.process == ProcessConfig("ddpm", "noise", learned_var=True)
    assert (portable.sample.sampler, portable.sample.clip) == (sampler, None)
    assert len(portable.notes) == 1
    assert name in portable.notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_schedule": "scaled_linear"}, "table of noise that no path here has"),
        ({"beta_start": 0.00085, "beta_end": 0.012}, "linear from 0.0001 to 0.02 at 1000 steps"),
        ({"num_train_timesteps": 500}, "table of noise"),
        ({"trained_betas": [0.1] * 1000}, "table of noise"),
        ({"thresholding": True}, "sets thresholding"),
        ({"rescale_betas_zero_snr": True}, "sets rescale_betas_zero_snr"),
    ],
    ids=str,
)
def test_a_schedule_that_is_none_of_ours_is_refused(settings, message, tmp_path):
    pipeline(model(SHAPES[0]), diffusers.DDIMScheduler(**settings)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        convert.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()}, 1000),
        ({"num_train_timesteps": 500, "beta_start": 2e-4, "beta_end": 0.04}, 500),
        ({"num_train_timesteps": 400, "beta_schedule": "squaredcos_cap_v2"}, 400),
    ],
    ids=["trained", "500", "cosine"],
)
def test_a_schedule_is_known_by_its_table(settings, steps, tmp_path):
    scheduler = diffusers.DDIMScheduler(**settings)
    pipeline(model(SHAPES[0]), scheduler).save_pretrained(tmp_path)
    process = convert.read(tmp_path).process
    t = (torch.arange(steps) + 1) / steps
    alpha = process_from(process).path(t.double()).alpha
    torch.testing.assert_close(alpha, scheduler.alphas_cumprod.sqrt().double(), rtol=1e-4, atol=1e-6)


def test_embedders_that_are_not_copies_are_refused(tmp_path):
    net = model(SHAPES[0])
    with torch.no_grad():
        net.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias += 1
    with pytest.raises(UserError, match=r"transformer_blocks\.1\.norm1\.emb.*linear_1\.bias.*differs"):
        convert.load(net.state_dict(), heads=2)


@pytest.mark.parametrize("key", ["transformer_blocks.1.attn1.to_k.bias", "proj_out_1.weight", "pos_embed.proj.weight"])
def test_a_missing_key_is_named(key):
    state = dict(model(SHAPES[0]).state_dict())
    del state[key]
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        convert.load(state, family="diffusers", heads=2)


@pytest.mark.parametrize(
    ("key", "value"), [("norm_type", "layer_norm"), ("activation_fn", "gelu"), ("attention_bias", False)]
)
def test_another_architecture_is_refused(key, value, tmp_path):
    model(SHAPES[0]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=key):
        convert.load(tmp_path)


def test_another_class_of_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="UNet2DModel"):
        convert.load(tmp_path)


# From us to diffusers.


@pytest.mark.parametrize("shape", SHAPES)
def test_what_stock_saved_is_written_as_stock_saves_it(shape, tmp_path):
    """To the bit, whatever the sharding, and with the same settings."""
    pipeline(model(shape)).save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    pipeline(model(shape)).save_pretrained(tmp_path / "whole")
    portable = convert.read(tmp_path / "theirs")
    convert.write(portable, tmp_path / "ours", to="diffusers", also=lambda f: autoencoder().save_pretrained(f / "vae"))
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("ours", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for name in ("transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json", "model_index.json"):
        mine, stock = (json.loads((tmp_path / folder / name).read_text()) for folder in ("ours", "theirs"))
        del mine["_diffusers_version"]
        assert mine == {key: stock[key] for key in mine}


def ours_with_their_values(**rest):
    sizes = {"width": 48, "heads": 3, "stages": (Stage(3),), "num_classes": 1000, "out_channels": 8}
    config = DiTConfig(**sizes | {"time_shift": 1, "mlp_norm_eps": 1e-5} | rest)
    torch.manual_seed(0)
    net = DiT(config)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.1)
    return net


def portable(net, **rest):
    process = ProcessConfig("ddpm", "noise", learned_var=net.config.out_channels == 2 * net.config.channels)
    sample = SampleConfig(timestep_spacing="leading")
    return convert.Portable(net.config, process, net.state_dict(), sample, image_size=(16, 16), factor=2, **rest)


def write(given, path):
    return convert.write(given, path, to="diffusers", also=lambda folder: autoencoder().save_pretrained(folder / "vae"))


@pytest.mark.parametrize("rest", [{}, {"out_channels": 4, "patch": (4, 4)}, {"mlp_norm_eps": 1e-6}], ids=str)
def test_a_network_with_their_values_is_exported_exactly(rest, tmp_path):
    net = ours_with_their_values(**rest)
    assert write(portable(net), tmp_path / "out") == []
    pipe = load_pipeline(tmp_path / "out")
    agree(*both(net, pipe.transformer))
    assert pipe.scheduler.config.timestep_spacing == "leading"
    assert pipe(class_labels=[3, 7], num_inference_steps=2, output_type="np").images.shape == (2, 16, 16, 3)


def test_nothing_that_stock_does_not_know_is_written(tmp_path):
    net = ours_with_their_values()
    write(portable(net, class_names=("tench, Tinca tinca", "goldfish")), tmp_path / "out")
    _, info = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out/transformer", output_loading_info=True)
    assert not any(info.values())
    known = set(diffusers.DiTTransformer2DModel(**{**SHAPES[0], "sample_size": 8}).config) | {"_class_name"}
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())
    assert config.keys() <= known | {"_diffusers_version"}
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler.keys() - {"_class_name", "_diffusers_version"} <= set(diffusers.DDIMScheduler().config)
    assert load_pipeline(tmp_path / "out").get_label_ids(["Tinca tinca", "goldfish"]) == [0, 1]


def test_a_class_other_than_the_last_of_1000_is_the_null_class_only_where_stock_says_so(tmp_path):
    net = ours_with_their_values(num_classes=10)
    (note,) = write(portable(net), tmp_path / "out")
    assert "10 classes" in note
    pipe = load_pipeline(tmp_path / "out")
    assert pipe(class_labels=[3], num_inference_steps=2, guidance_scale=1, output_type="np").images.shape == (
        1,
        16,
        16,
        3,
    )
    with pytest.raises(IndexError):
        pipe(class_labels=[3], num_inference_steps=2, guidance_scale=4)


@pytest.mark.parametrize("rest", [{}, {"patch": (4, 4), "out_channels": 4}], ids=str)
def test_what_stock_computes_differently_is_said_as_it_is(rest, tmp_path):
    """A network with the original's values: the note's number against stock diffusers itself."""
    net = ours_with_their_values(time_shift=0, mlp_norm_eps=1e-6, **rest)
    given = portable(net)
    (note,) = write(given, tmp_path / "out")
    stock = load_pipeline(tmp_path / "out").transformer
    draws = Draws(0, range(len(TIMES)), "difference")
    x = draws.normal(torch.empty(len(TIMES), 4, 8, 8))
    labels = (draws.uniform() * net.config.num_classes).long()
    t = 1000 * torch.tensor(TIMES) - 1
    with torch.no_grad():
        ours = net(x, t, {"label": labels})[:, :4].flatten(1)
        theirs = stock(x, timestep=t, class_labels=labels).sample[:, :4].flatten(1)
    real = (theirs - ours).norm(dim=1) / ours.norm(dim=1)
    found = measure(given, {"time_shift": 1})
    assert found.mean == pytest.approx(real.mean().item(), rel=1e-2)
    assert found.worst == pytest.approx(real.max().item(), rel=1e-2)
    assert found.t == pytest.approx(TIMES[real.argmax()])
    mean, worst = map(float, re.search(r"differs by ([\d.e-]+) of .* average, ([\d.e-]+) at most", note).groups())
    assert (mean, worst) == pytest.approx((found.mean, found.worst), rel=0.06)  # two digits
    assert found.mean > 1e-4  # something to say


def test_from_the_originals_layout_to_stock_with_their_values(tmp_path):
    """The same weights by way of dit's file: only the values of our configuration differ."""
    net = ours_with_their_values(time_shift=0, mlp_norm_eps=1e-6)
    convert.write(portable(net), tmp_path / "dit.pt", to="dit")
    again = convert.read(tmp_path / "dit.pt", heads=3)
    taken_over = replace(again, model=replace(again.model, time_shift=1, mlp_norm_eps=1e-5))
    convert.write(taken_over, tmp_path / "out", to="diffusers")
    stock = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out/transformer")
    theirs = ours_with_their_values()
    theirs.load_state_dict(net.state_dict())
    agree(*both(theirs, stock))
