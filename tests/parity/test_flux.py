"""FLUX.1: stock diffusers and us compute the same from the same weights, in both layouts they come in."""

import json

import pytest
import torch
from flux_layout import pack, published, unpack
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditwright import SAMPLERS, convert
from ditwright.convert import FAMILIES, rules
from ditwright.convert.rules import Layout
from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.grid import shifted, uniform
from ditwright.diffusion.sampler import last
from ditwright.errors import UserError
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.dit import DiT
from ditwright.model.flops import macs
from ditwright.model.presets import PRESETS, rope_of

diffusers = pytest.importorskip("diffusers")

SHAPES = [
    {"num_layers": 1, "num_single_layers": 1},
    {"num_layers": 2, "num_single_layers": 3, "guidance_embeds": True},
    {"num_layers": 12, "num_single_layers": 11, "num_attention_heads": 1, "guidance_embeds": True},
    {"num_layers": 1, "num_single_layers": 4, "attention_head_dim": 32, "axes_dims_rope": (4, 14, 14)},
    {"num_layers": 2, "num_single_layers": 2, "in_channels": 64, "num_attention_heads": 3},
]
SMALL = {
    "in_channels": 12,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (4, 6, 6),
}
GUESSED = pytest.mark.filterwarnings("ignore:the checkpoint does not tell its axes of rotation")
SPACE = (4, 10)  # latents: 2 x 5 patches


def model(shape):
    """A stock network with every weight drawn anew: some of theirs start as constants."""
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(**SMALL | shape).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape) + (p.ndim == 1))
    return net


def inputs(net, count=3):
    size, channels = net.config, net.config.in_channels // 4
    cond = {"text": torch.randn(count, 7, size.joint_attention_dim)}
    cond |= {"pooled": torch.randn(count, size.pooled_projection_dim)}
    if size.guidance_embeds:
        cond["guidance"] = torch.tensor([1.0, 3.5, 7.25])[:count]
    return torch.randn(count, channels, *SPACE), torch.tensor([0.001, 0.5, 1.0])[:count], cond


@torch.no_grad()
def stock(net, x, t, cond):
    """Their velocity, latents in and out; t = 1 is noise."""
    h, w = (side // 2 for side in x.shape[2:])
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(-1, 3).float()
    out = net(
        hidden_states=pack(x),
        encoder_hidden_states=cond["text"],
        pooled_projections=cond["pooled"],
        timestep=t,
        img_ids=places,
        txt_ids=torch.zeros(cond["text"].shape[1], 3),
        guidance=cond.get("guidance"),
    ).sample
    return unpack(out, x.shape[2:])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def agree(ours, theirs, share=1e-5):
    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=share * theirs.abs().max().item())


def folder(net, path, scheduler=None):
    """The parts of a FluxPipeline's folder that are read here."""
    net.save_pretrained(path / "transformer")
    if scheduler is not None:
        scheduler.save_pretrained(path / "scheduler")
    return path


@GUESSED
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("place", ["folder", "transformer", "published"])
def test_the_network_computes_what_stock_does(shape, place, tmp_path):
    net = model(shape)
    x, t, cond = inputs(net)
    if place == "published":
        save_file(published(net), tmp_path / "flux1.safetensors")
        ours = convert.load(tmp_path / "flux1.safetensors")
    else:
        folder(net, tmp_path)
        ours = convert.load(tmp_path / "transformer" if place == "transformer" else tmp_path)
    theirs = stock(net, x, t, cond)
    with torch.no_grad():
        agree(ours.net(x, 1000 * t, cond), theirs)
        pred = ours(x, t, cond)
    agree(pred.eps - pred.x0, theirs, 1e-4)  # at t = 0.001 a difference of 1000 times the network's


def test_a_folder_tells_its_axes_of_rotation(tmp_path):
    net = model({"num_layers": 1, "num_single_layers": 1, "axes_dims_rope": (2, 4, 10)})
    x, t, cond = inputs(net)
    with torch.no_grad():
        agree(convert.load(folder(net, tmp_path)).net(x, 1000 * t, cond), stock(net, x, t, cond))


def test_weights_alone_are_read_as_files_are():
    net = model(SHAPES[1])
    for state in (net.state_dict(), published(net)):
        assert same(convert.read(state).state, convert.read(net.state_dict()).state)
        assert convert.read(state).model == convert.read(net.state_dict()).model


@GUESSED
def test_text_is_heard_by_stock_and_by_us_in_any_order():
    """All of it is at the origin: its order comes from the encoder alone."""
    net = model(SHAPES[1])
    x, t, cond = inputs(net)
    other = cond | {"text": cond["text"].flip(1)}
    ours = convert.load(net.state_dict()).net
    with torch.no_grad():
        agree(stock(net, x, t, other), stock(net, x, t, cond))
        agree(ours(x, 1000 * t, other), ours(x, 1000 * t, cond))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_layouts_go_there_and_back_bit_for_bit(shape, tmp_path):
    net = model(shape)
    folder(net, tmp_path / "stock", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    save_file(published(net), tmp_path / "own.safetensors")
    first = convert.read(tmp_path / "stock")
    assert same(first.state, convert.read(tmp_path / "own.safetensors").state)
    convert.write(first, tmp_path / "again", to="flux-diffusers")
    convert.write(first, tmp_path / "again.safetensors", to="flux")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert same(load_file(tmp_path / "again" / weights), net.state_dict())
    assert same(load_file(tmp_path / "again.safetensors"), published(net))
    second = convert.read(tmp_path / "again")
    assert (second.model, second.process, second.sample) == (first.model, first.process, first.sample)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stock_loads_what_is_written(shape, tmp_path):
    net = model(shape)
    (note,) = convert.write(convert.read(folder(net, tmp_path / "a")), tmp_path / "b", to="flux-diffusers")
    assert "no text encoders" in note
    again = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "b/transformer")
    left, right = ({k: v for k, v in n.config.items() if not k.startswith("_")} for n in (net, again))
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in right.items()} == left
    x, t, cond = inputs(net)
    assert torch.equal(stock(again, x, t, cond), stock(net, x, t, cond))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "b/scheduler")
    assert scheduler.config.shift == pytest.approx(convert.read(tmp_path / "b").sample.shift)


def test_a_network_of_ours_becomes_stocks_and_the_originals(tmp_path):
    torch.manual_seed(0)
    stages = (Stage(1, lanes="own"), Stage(1, lanes="own"), Stage(2, parallel=True))
    config = DiTConfig(32, 2, stages, channels=3, out_channels=3, num_classes=0, context="stream", text_width=20,
                       pooled_width=10, guidance=True, sincos=(), rope=rope_of(16), qk_norm=True)  # fmt: skip
    ours = DiT(config).eval()
    portable = convert.Portable(config, ProcessConfig(), ours.state_dict())
    convert.write(portable, tmp_path / "stock", to="flux-diffusers")
    convert.write(portable, tmp_path / "own.pt", to="flux")
    net = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "stock/transformer").eval()
    assert same(torch.load(tmp_path / "own.pt", weights_only=True), published(net))
    x, t, cond = inputs(net)
    with torch.no_grad():
        agree(ours(x, 1000 * t, cond), stock(net, x, t, cond))


@pytest.mark.parametrize("name", ["FLUX.1-dev", "FLUX.1-schnell"])
def test_the_presets_are_the_published_networks(name):
    """To the weight, on the meta device, in both layouts; their own converter is asked about the second."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        theirs = diffusers.FluxTransformer2DModel(guidance_embeds=name.endswith("dev"))  # all else is their default
    want = {key: w.shape for key, w in theirs.state_dict().items()}
    layout = Layout(PRESETS[name])
    weights = rules.shapes(layout.model)
    assert sum(w.numel() for w in weights.values()) == theirs.num_parameters()
    written = rules.write(weights, FAMILIES["flux-diffusers"].rules, layout)
    assert {key: w.shape for key, w in written.items()} == want
    own = rules.write(weights, FAMILIES["flux"].rules, layout)
    converted = convert_flux_transformer_checkpoint_to_diffusers(dict(own))
    assert {key: w.shape for key, w in converted.items()} == want
    assert convert.read(own).model == convert.read(written).model == layout.model


def test_the_presets_have_the_published_size_and_cost_what_torch_counts_of_stock():
    """At 1024 pixels and 512 tokens of text, on the meta device."""
    sizes = {name: sum(w.numel() for w in rules.shapes(PRESETS[name]).values()) for name in PRESETS if "FLUX.1" in name}
    assert sizes == {"FLUX.1-dev": 11_901_408_320, "FLUX.1-schnell": 11_891_178_560}
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net = diffusers.FluxTransformer2DModel(guidance_embeds=True)
        cond = {"text": torch.zeros(1, 512, 4096), "pooled": torch.zeros(1, 768), "guidance": torch.zeros(1)}
        stock(net, torch.zeros(1, 16, 128, 128), torch.zeros(1), cond)
    assert 2 * sum(macs(PRESETS["FLUX.1-dev"], (128, 128), 512).values()) == counter.get_total_flops()


def test_a_scheduler_tells_the_shift(tmp_path):
    net = model(SHAPES[0])
    make = diffusers.FlowMatchEulerDiscreteScheduler
    moving = {"use_dynamic_shifting": True, "max_shift": 1.0, "shift": 3.0}  # which then counts for nothing
    known = {"shift": {"shift": 2.5}, "moving": moving, "still": {}}
    found = {n: convert.read(folder(net, tmp_path / n, make(**kind))) for n, kind in known.items()}
    assert {n: (p.sample.shift, p.sample.dynamic_shift) for n, p in found.items()} == {
        "shift": (2.5, None),
        "moving": (1.0, (0.5, 1.0, 256, 4096)),
        "still": (1.0, None),
    }
    for name, portable in found.items():
        convert.write(portable, tmp_path / f"{name} again", to="flux-diffusers")
        again = make.from_pretrained(tmp_path / f"{name} again" / "scheduler").config
        assert again.use_dynamic_shifting == (name == "moving")
        assert convert.read(tmp_path / f"{name} again").sample == portable.sample
    dev, schnell = (convert.read(model(SHAPES[n]).state_dict()).sample for n in (1, 0))
    assert (dev.sampler, dev.num_inference_steps, dev.guidance_scale) == ("euler", 50, 3.5)
    assert (dev.shift, dev.dynamic_shift) == (1.0, (0.5, 1.15, 256, 4096))
    assert (schnell.num_inference_steps, schnell.shift, schnell.dynamic_shift) == (4, 1.0, None)


def test_euler_walks_as_their_scheduler_does(tmp_path):
    net, shift = model(SHAPES[1]), 2.5
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    portable = convert.read(folder(net, tmp_path, scheduler))
    ours = convert.load(tmp_path)
    x, _, cond = inputs(net)
    scheduler.set_timesteps(sigmas=(1 - torch.arange(6) / 6).tolist())  # as FluxPipeline asks
    theirs = x
    for t in scheduler.timesteps:
        theirs = scheduler.step(stock(net, theirs, t.expand(3) / 1000, cond), t, theirs).prev_sample
    times = shifted(uniform(6), portable.sample.shift)
    with torch.no_grad():
        end = last(SAMPLERS["euler"](lambda x, t: ours(x, t, cond), x, times, ours.process.path))
    agree(end, theirs, 1e-4)


@pytest.mark.parametrize("layout", ["own", "stock"])
@pytest.mark.parametrize("damage", ["missing", "unknown", "misshapen"])
def test_every_damage_is_named(layout, damage):
    net = model({"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True})
    state = published(net) if layout == "own" else net.state_dict()
    for key in state:
        changed = dict(state)
        if damage == "missing":
            del changed[key]
        elif damage == "unknown":
            changed[f"{key}.more"] = state[key]
        else:
            changed[key] = state[key][None]
        with pytest.raises(UserError) as caught:
            convert.read(changed, family="flux" if layout == "own" else "flux-diffusers")
        name = key.rpartition(".")[0] if "guidance" in key and damage == "missing" else key
        assert repr(name)[:-1] in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 10}, r"takes 10 channels, no multiple of 4"),
        ({"in_channels": 12, "out_channels": 4}, "told a picture beside the noisy one is not known"),
    ],
    ids=str,
)
def test_networks_of_another_kind_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        convert.read(model(SHAPES[0] | change).state_dict())


def test_a_network_without_parallel_blocks_is_not_taken_for_sd3():
    net = model({"num_layers": 2, "num_single_layers": 0})
    for state, kind in ((net.state_dict(), "single_transformer_blocks"), (published(net), "single_blocks")):
        with pytest.raises(UserError, match=f"FLUX has blocks of two kinds; this checkpoint has no {kind}$"):
            convert.read(state)


def test_heads_are_told_by_the_norms_and_axes_of_another_width_are_guessed_aloud(tmp_path):
    net = model(SHAPES[3])
    bare, told = convert.read(net.state_dict()), convert.read(folder(net, tmp_path))
    assert bare.model == told.model
    assert told.notes == ()
    assert "does not tell its axes of rotation; (4, 14, 14) are taken" in bare.notes[0]
    with pytest.warns(UserWarning, match=r"does not tell its axes of rotation; \(4, 14, 14\) are taken") as warned:
        convert.load(net.state_dict())
    assert [warning.filename for warning in warned] == [__file__]
    convert.load(tmp_path)  # it is told: another warning would be an error
    with pytest.raises(UserError, match="heads of 32 channels at width 64; heads = 4 is not it"):
        convert.read(net.state_dict(), heads=4)
    path = tmp_path / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 2}))
    with pytest.raises(UserError, match="patch_size = 2; only 1 is known"):
        convert.read(tmp_path)
