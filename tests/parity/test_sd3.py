"""Stable Diffusion 3 and 3.5: diffusers' SD3Transformer2DModel and the original layout, against us."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ditwright import convert
from ditwright.convert.sd3 import positions_of
from ditwright.convert.source import Source
from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ditwright.diffusion.objective import objective_from
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.config import Positions
from ditwright.model.dit import DiT
from ditwright.model.presets import PRESETS
from ditwright.rng import Draws

diffusers = pytest.importorskip("diffusers")
single_file = pytest.importorskip("diffusers.loaders.single_file_utils")

SMALL = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2, "sample_size": 8, "in_channels": 4}
SMALL |= {"out_channels": 4, "joint_attention_dim": 20, "pooled_projection_dim": 10, "caption_projection_dim": 128}
SMALL |= {"pos_embed_max_size": 12}
NARROW = {"num_attention_heads": 3, "attention_head_dim": 16, "caption_projection_dim": 48}
MEDIUM = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
SHAPES = {  # those of two and three blocks have as many heads, as the original's code wants it
    "3": SMALL,
    "3.5 large": SMALL | {"qk_norm": "rms_norm"},
    "3.5 medium": SMALL | MEDIUM | {"num_layers": 3, "num_attention_heads": 3, "caption_projection_dim": 192},
    "dual last": SMALL | {"dual_attention_layers": (1,)},
    "one block": SMALL | NARROW | {"num_layers": 1, "pos_embed_max_size": 15},
    "deep": SMALL | NARROW | {"num_layers": 5, "dual_attention_layers": (0, 3), "sample_size": 20},
    "large patches": SMALL
    | NARROW
    | MEDIUM
    | {"patch_size": 4, "sample_size": 16, "in_channels": 3, "out_channels": 3},
}
ORIGINAL = ("3", "3.5 large", "3.5 medium", "dual last")
SPACES = [(8, 8), (8, 12), (22, 6), (2, 2), (24, 24)]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PREFIX = "model.diffusion_model."


def model(**shape):
    """Nothing stays at zero."""
    net, g = diffusers.SD3Transformer2DModel(**shape), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            spread = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=g) * spread + ("norm_" in name and p.ndim == 1))
    return net.eval()


@torch.no_grad()
def both(ours, net, space):
    """What the two networks say of the same latents, times and texts."""
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(3, net.config.in_channels, *space, generator=g), torch.randn(3, 7, 20, generator=g)
    pooled, t = torch.randn(3, 10, generator=g), torch.tensor([0.0, 417, 1000])
    theirs = net(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t).sample
    return ours(x, t, {"text": text, "pooled": pooled}), theirs


def agree(ours, theirs):
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def swapped(w):
    return torch.cat(w.chunk(2)[::-1])


def original(net):
    """The same weights under the original's names, by the published map."""
    state, depth = dict(net.state_dict()), net.config.num_layers
    new = {"pos_embed": state["pos_embed.pos_embed"]}
    plain = {
        "pos_embed.proj": "x_embedder.proj",
        "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "proj_out": "final_layer.linear",
    }
    for p in ("weight", "bias"):
        new |= {f"{mine}.{p}": state[f"{theirs}.{p}"] for theirs, mine in plain.items()}
        new[f"final_layer.adaLN_modulation.1.{p}"] = swapped(state[f"norm_out.linear.{p}"])
    parts = {"x_block.attn": ("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn2": ("attn2.to_q", "attn2.to_k")}
    parts["x_block.attn2"] += ("attn2.to_v",)
    parts["context_block.attn"] = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
    rest = {"attn.to_out.0": "x_block.attn.proj", "attn2.to_out.0": "x_block.attn2.proj", "norm1.linear": "x_block.ada"}
    rest |= {"attn.to_add_out": "context_block.attn.proj", "norm1_context.linear": "context_block.ada"}
    rest |= {"attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k"}
    rest |= {"attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k"}
    rest |= {"attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k"}
    rest |= {"ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2"}
    rest |= {"ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2"}
    for i in range(depth):
        old, block = f"transformer_blocks.{i}.", f"joint_blocks.{i}."
        for p in ("weight", "bias"):
            for mine, names in parts.items():
                if f"{old}{names[0]}.{p}" in state:
                    new[f"{block}{mine}.qkv.{p}"] = torch.cat([state[f"{old}{name}.{p}"] for name in names])
            for theirs, mine in rest.items():
                if f"{old}{theirs}.{p}" in state:
                    value = state[f"{old}{theirs}.{p}"]
                    last = theirs == "norm1_context.linear" and i == depth - 1
                    new[f"{block}{mine}.{p}".replace(".ada.", ".adaLN_modulation.1.")] = (
                        swapped(value) if last else value
                    )
    return {PREFIX + key: value for key, value in new.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def published(side, width, cells):
    """The table of Sec. 5.3.2: cells of the middle are those of 256 pixels, stretched; the rest lies around them."""
    places = (np.arange(side) - (side - cells) / 2) * 256 / (16 * cells)
    columns, rows = np.meshgrid(places, places)
    frequencies = 1 / 10_000 ** (np.arange(width // 4) / (width / 4))
    angles = [np.einsum("m,d->md", axis.reshape(-1), frequencies) for axis in (columns, rows)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)
    return torch.from_numpy(table).float()[None]


# The network.


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_network_computes_what_diffusers_does(name, space, tmp_path):
    net = model(**SHAPES[name])
    space = tuple(n * net.config.patch_size // 2 for n in space)
    net.save_pretrained(tmp_path)
    agree(*both(convert.load(tmp_path).net, net, space))


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_layout_is_the_same_network(name):
    net = model(**SHAPES[name])
    state = original(net)
    theirs = single_file.convert_sd3_transformer_checkpoint_to_diffusers(dict(state))
    assert equal(theirs, dict(net.state_dict()))  # by diffusers' own converter
    agree(*both(convert.load(state).net, net, (8, 16)))
    bare = {key.removeprefix(PREFIX): value for key, value in state.items()}
    agree(*both(convert.load(bare).net, net, (8, 8)))


@pytest.mark.parametrize("name", ["3", "3.5 medium"])
def test_the_published_positions_are_followed(name, tmp_path):
    net = model(**SHAPES[name])
    net.pos_embed.pos_embed.copy_(published(12, net.inner_dim, 8))
    for source in (original(net), tmp_path):
        net.save_pretrained(tmp_path)
        ours = convert.load(source).net
        assert ours.config.positions == Positions(2.0, largest=12, origin=2.0)
        agree(*both(ours, net, (8, 8)))
        agree(*both(ours, net, (22, 6)))
    assert convert.read(tmp_path).image_size == (128, 128)  # of 8 patches
    convert.write(convert.read(original(net)), tmp_path / "out", to="sd3-diffusers")
    again = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "out/transformer")
    assert again.config.sample_size == 16
    torch.testing.assert_close(again.pos_embed.pos_embed, net.pos_embed.pos_embed, rtol=0, atol=1e-6)


def test_a_larger_grid_than_the_table_is_refused():
    net = convert.load(original(model(**SMALL))).net
    with pytest.raises(UserError, match="positions reach 12 patches along a side; this input has 13"):
        net(torch.zeros(1, 4, 8, 26), torch.zeros(1), {"text": torch.zeros(1, 2, 20), "pooled": torch.zeros(1, 10)})


def test_blocks_become_stages():
    stages = convert.read(model(**SHAPES["deep"]).state_dict(), heads=3).model.stages
    assert [(stage.depth, stage.dual, stage.read_only) for stage in stages] == [
        (1, True, False),
        (2, False, False),
        (1, True, False),
        (1, False, True),
    ]


# Files.


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_layout_is_written_bit_for_bit(name, suffix, tmp_path):
    state = original(model(**SHAPES[name]))
    save_file(state, tmp_path / "theirs.safetensors")
    portable = convert.read(tmp_path / "theirs.safetensors")
    path = tmp_path / f"ours{suffix}"
    assert convert.write(portable, path, to="sd3") == []
    assert equal(load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True), state)


@pytest.mark.parametrize("name", SHAPES)
def test_what_diffusers_saved_is_written_as_it_saves_it(name, tmp_path):
    model(**SHAPES[name]).save_pretrained(tmp_path / "theirs/transformer")
    portable = convert.read(tmp_path / "theirs")
    (note,) = convert.write(portable, tmp_path / "ours", to="sd3-diffusers")
    assert "text encoders" in note
    assert equal(load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "theirs" / WEIGHTS))
    path = "transformer/config.json"
    mine, stock = (json.loads((tmp_path / folder / path).read_text()) for folder in ("ours", "theirs"))
    assert mine | {"_diffusers_version": ""} == stock | {"_diffusers_version": ""}
    _, info = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "ours/transformer", output_loading_info=True)
    assert not any(info.values())
    assert convert.read(tmp_path / "ours").model == portable.model


def test_from_one_layout_to_the_other_and_back(tmp_path):
    net = model(**SHAPES["3.5 medium"])
    convert.write(convert.read(original(net)), tmp_path / "out", to="sd3-diffusers")
    assert equal(load_file(tmp_path / "out" / WEIGHTS), dict(net.state_dict()))
    convert.write(convert.read(tmp_path / "out"), tmp_path / "out.pt", to="sd3")
    assert equal(torch.load(tmp_path / "out.pt", weights_only=True), original(net))


def test_what_lies_beside_the_network_in_a_file_is_told():
    state = original(model(**SMALL)) | {"first_stage_model.decoder.conv_in.weight": torch.ones(1)}
    state["text_encoders.clip_l.x"] = torch.ones(1)
    portable = convert.read(state)
    assert portable.notes == ("beside the network the file holds first_stage_model, text_encoders, which is not read",)
    with pytest.raises(UserError, match=r"no rule knows the key 'model\.diffusion_model\.new'"):
        convert.read(state | {"model.diffusion_model.new": torch.ones(1)})


def test_it_is_sampled_as_released(tmp_path):
    portable = convert.read(original(model(**SMALL)))
    assert portable.process == ProcessConfig("linear", "velocity")
    released = SampleConfig("euler", 40, guidance_scale=4.5, timestep_spacing="linspace", shift=3.0)
    assert portable.sample == released
    assert (portable.image_size, portable.codec, portable.notes) == ((64, 64), "", ())
    model(**SMALL).save_pretrained(tmp_path / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(tmp_path / "scheduler")
    portable = convert.read(tmp_path)
    assert portable.sample == replace(released, shift=2.0)
    convert.write(portable, tmp_path / "out", to="sd3-diffusers")
    again = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out/scheduler")
    assert (again.config.shift, again.config.num_train_timesteps) == (2.0, 1000)


def test_a_step_of_euler_is_their_schedulers():
    """Time, sign and scale of the velocity, on the times that the scheduler takes."""
    net = model(**SMALL)
    ours = convert.load(original(net))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    g = torch.Generator().manual_seed(3)
    x, text, pooled = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 7, 20, generator=g), torch.randn(1, 10)
    t, end = scheduler.sigmas[1], scheduler.sigmas[2]
    with torch.no_grad():
        said = ours(x, t, {"text": text, "pooled": pooled})
        out = net(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=scheduler.timesteps[1:2]).sample
    scheduler.set_begin_index(1)
    theirs = scheduler.step(out, scheduler.timesteps[1], x).prev_sample
    agree((1 - end) * said.x0 + end * said.eps, theirs)


# Positions.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("base", "largest"), [(64, 192), (64, 384), (1, 7), (10, 12), (24, 12)])
def test_the_table_tells_its_places(base, largest, dtype):
    embed = diffusers.models.embeddings.PatchEmbed(
        height=2 * base, width=2 * base, patch_size=2, in_channels=1, embed_dim=16, pos_embed_max_size=largest
    )
    assert positions_of(embed.pos_embed.to(dtype)) == Positions(base=base, largest=largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("cells", "largest"), [(64, 192), (64, 384), (64, 65), (6, 12), (7, 12), (90, 192)])
def test_the_published_table_tells_its_places(cells, largest, dtype):
    found = positions_of(published(largest, 24, cells).to(dtype))
    want = Positions(16 / cells, largest=largest, origin=(largest - cells) / 2)
    assert (found.largest, found.origin, found.base) == (want.largest, want.origin, want.base)
    assert found.scale == pytest.approx(want.scale, rel=1e-4)


def test_a_table_of_other_positions_is_refused():
    state = original(model(**SMALL))
    for wrong in (state[PREFIX + "pos_embed"].roll(1, 1), torch.randn(1, 144, 128), torch.zeros(1, 143, 128)):
        with pytest.raises(UserError, match=r"'model\.diffusion_model\.pos_embed' is not the sin-cos table"):
            convert.read(state | {PREFIX + "pos_embed": wrong})


# What is refused.

KEYS = [
    "joint_blocks.1.x_block.attn.qkv.weight",
    "joint_blocks.0.x_block.attn2.ln_k.weight",
    "joint_blocks.2.context_block.adaLN_modulation.1.bias",
    "joint_blocks.0.context_block.attn.proj.weight",
    "pos_embed",
    "context_embedder.weight",
    "final_layer.linear.bias",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_or_misshapen_key_is_named(key):
    state = original(model(**SHAPES["3.5 medium"]))
    without = {name: value for name, value in state.items() if name != PREFIX + key}
    with pytest.raises(UserError, match=f"lacks the key {key!r}"):
        convert.read(without, family="sd3")
    if key.startswith("joint"):
        with pytest.raises(UserError, match=rf"'model\.diffusion_model\.{key}' has shape \(5, 3\); the network needs"):
            convert.read(state | {PREFIX + key: torch.zeros(5, 3)})


def test_other_networks_are_not_read(tmp_path):
    with pytest.raises(UserError, match="heads of SD3 have 64 channels, of which width 48 is no multiple"):
        convert.read(model(**SHAPES["one block"]).state_dict())
    with pytest.raises(UserError, match="last layer gives 32 values for each patch; the input has 16"):
        convert.read(model(**SMALL | {"out_channels": 8}).state_dict())
    model(**SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"qk_norm": "layer_norm"}))
    with pytest.raises(UserError, match="qk_norm = 'layer_norm'; only 'rms_norm'"):
        convert.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_norm_eps": 1e-5}, r"needs model\.mlp_norm_eps = 1e-06"),
        ({"mlp_ratio": 2.0}, r"needs model\.mlp_ratio = 4\.0"),
        ({"num_classes": 3}, r"needs model\.num_classes = 0"),
        ({"positions": Positions()}, r"model\.positions\.largest"),
        ({"stages": PRESETS["SD3-S"].stages[:1]}, "read_only the last"),
        ({"stages": PRESETS["FLUX-S"].stages}, "lanes of their own"),
        ({"stages": PRESETS["DiT-S/2"].stages, "context": "none", "text_width": 0}, "lanes of their own"),
    ],
    ids=str,
)
@pytest.mark.parametrize("to", ["sd3", "sd3-diffusers"])
def test_another_network_is_not_written(to, change, message, tmp_path):
    portable = convert.read(original(model(**SMALL)))
    wrong = replace(portable, model=replace(portable.model, **change))
    with pytest.raises(UserError, match=message):
        convert.write(wrong, tmp_path / ("out.pt" if to == "sd3" else "out"), to=to)


def test_the_originals_code_wants_as_many_heads_as_blocks(tmp_path):
    portable = convert.read(model(**SHAPES["deep"]).state_dict(), heads=3)
    with pytest.raises(UserError, match=r"sd3 needs model\.heads = 5; this network has 3"):
        convert.write(portable, tmp_path / "out.pt", to="sd3")


# Presets.

PUBLISHED = {  # heads, which are the blocks, and what else differs; billions of parameters, to one
    "SD3-medium": (24, {}, 2),
    "SD3.5-medium": (24, {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}, 2),
    "SD3.5-large": (38, {"qk_norm": "rms_norm"}, 8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_networks(name):
    heads, rest, billions = PUBLISHED[name]
    largest = 384 if name == "SD3.5-medium" else 192
    sizes = {"num_layers": heads, "num_attention_heads": heads, "caption_projection_dim": 64 * heads}
    with torch.device("meta"):
        net = diffusers.SD3Transformer2DModel(**sizes, **rest, pos_embed_max_size=largest)
        ours = DiT(PRESETS[name])
    count = sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count
    assert round(count / 1e9) == billions
    row = published(largest, 16, 64)  # the network's own is of the same places, and large
    source = Source(net.state_dict() | {"pos_embed.pos_embed": row}, said={"transformer": dict(net.config)})
    assert convert.FAMILIES["sd3-diffusers"].layout(source, None).model == PRESETS[name]


def test_the_small_one_has_their_blocks():
    preset = PRESETS["SD3-S"]
    state = DiT(preset).state_dict()
    assert preset.heads == preset.depth == preset.width // 64
    assert sum(v.numel() for v in state.values()) < 50e6


def test_the_small_one_learns_two_captions_on_a_cpu():
    """The small preset with two of its blocks; pictures are told apart by their text alone."""
    torch.manual_seed(0)
    config = replace(
        PRESETS["SD3-S"], stages=tuple(replace(stage, depth=1) for stage in PRESETS["SD3-S"].stages), out_channels=4
    )
    net = Denoiser(build(config), process_from(ProcessConfig()))
    loss = objective_from(ObjectiveConfig(), net.process)
    optim = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x0 = torch.randn(2, 4, 4, 4).repeat(4, 1, 1, 1)
    cond = {"text": torch.randn(2, 3, config.text_width).repeat(4, 1, 1)} | {
        "pooled": torch.zeros(8, config.pooled_width)
    }
    for step in range(25):
        optim.zero_grad()
        loss(net, x0, cond, Draws(0, range(8), f"step {step}")).mean().backward()
        optim.step()
    other = cond | {"text": cond["text"].flip(0)}
    with torch.no_grad():
        right, wrong = (loss(net, x0, c, Draws(1, range(8), "the same")).mean().item() for c in (cond, other))
    assert right < 0.6 * wrong
