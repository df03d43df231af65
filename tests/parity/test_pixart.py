"""PixArt: diffusers' PixArtTransformer2DModel and the original layout, against us; what either stores, we load."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ditwright import convert
from ditwright.cli.main import main
from ditwright.convert.source import Source
from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ditwright.diffusion.objective import objective_from
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.dit import DiT
from ditwright.model.presets import PRESETS
from ditwright.rng import Draws

diffusers = pytest.importorskip("diffusers")

SMALL = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "sample_size": 8, "in_channels": 4}
SMALL |= {"out_channels": 8, "caption_channels": 20, "cross_attention_dim": 48, "use_additional_conditions": False}
SHAPES = {
    "256": SMALL | {"interpolation_scale": 0.5},
    "512": SMALL,
    "1024 told its size": SMALL | {"interpolation_scale": 2, "use_additional_conditions": True},
    "2K, three heads": SMALL | {"num_attention_heads": 3, "attention_head_dim": 16, "interpolation_scale": 4},
    "no variance, deep": SMALL | {"out_channels": 4, "num_layers": 5, "sample_size": 12},
    "large patches": SMALL | {"patch_size": 4, "sample_size": 16, "in_channels": 3, "out_channels": 6},
}
SPACES = [(8, 8), (8, 12), (16, 8), (4, 4), (24, 24)]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def redraw(net):
    """Nothing stays at zero."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2))
    return net.eval()


def model(**shape):
    return redraw(diffusers.PixArtTransformer2DModel(**shape))


def inputs(config, space):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(3, config.in_channels, *space, generator=g), torch.randn(3, 7, 20, generator=g)
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    size = torch.tensor([[1024.0, 1024, 1], [768, 1280, 0.6], [512, 2048, 0.25]])
    return x, torch.tensor([0.0, 417, 999]), text, mask, size


@torch.no_grad()
def both(ours, net, space, masked=True):
    """What the two networks say of the same latents, times, texts and sizes."""
    x, t, text, mask, size = inputs(net.config, space)
    cond = {"text": text, "size": size} | ({"text_mask": mask} if masked else {})
    told = {"resolution": size[:, :2], "aspect_ratio": size[:, 2:]} if net.use_additional_conditions else None
    kept = mask.long() if masked else None
    theirs = net(x, text, timestep=t, added_cond_kwargs=told, encoder_attention_mask=kept).sample
    return ours(x, t, cond), theirs


def agree(ours, theirs):
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def original(net, null=True):
    """The same weights under the original's names, by the published map, with its table of positions."""
    config, state = net.config, dict(net.state_dict())
    side, scale = config.sample_size // config.patch_size, net.pos_embed.interpolation_scale
    width = config.num_attention_heads * config.attention_head_dim
    places = np.arange(side, dtype=np.float32) / (side / side) / scale
    columns, rows = np.meshgrid(places, places)
    frequencies = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = [np.einsum("m,d->md", axis.reshape(-1), frequencies) for axis in (columns, rows)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)
    new = {"pos_embed": torch.from_numpy(table).float()[None]}
    if null:
        new["y_embedder.y_embedding"] = torch.randn(7, 20, generator=torch.Generator().manual_seed(2))
    names = {
        "pos_embed.proj": "x_embedder.proj",
        "adaln_single.emb.timestep_embedder.linear_": "t_embedder.mlp.",
        "adaln_single.emb.resolution_embedder.linear_": "csize_embedder.mlp.",
        "adaln_single.emb.aspect_ratio_embedder.linear_": "ar_embedder.mlp.",
        "adaln_single.linear": "t_block.1",
        "caption_projection.linear_": "y_embedder.y_proj.fc",
        "proj_out": "final_layer.linear",
    }
    for key, value in state.items():
        for theirs, mine in names.items():
            if key.startswith(theirs):
                name = key.replace(theirs, mine)
                new[name.replace("mlp.1.", "mlp.0.") if "mlp." in name else name] = value
    new["final_layer.scale_shift_table"] = state["scale_shift_table"]
    for i in range(config.num_layers):
        old, block = f"transformer_blocks.{i}.", f"blocks.{i}."
        new[block + "scale_shift_table"] = state[old + "scale_shift_table"]
        for p in ("weight", "bias"):
            new[f"{block}attn.qkv.{p}"] = torch.cat([state[f"{old}attn1.to_{n}.{p}"] for n in "qkv"])
            new[f"{block}attn.proj.{p}"] = state[f"{old}attn1.to_out.0.{p}"]
            new[f"{block}cross_attn.q_linear.{p}"] = state[f"{old}attn2.to_q.{p}"]
            new[f"{block}cross_attn.kv_linear.{p}"] = torch.cat([state[f"{old}attn2.to_{n}.{p}"] for n in "kv"])
            new[f"{block}cross_attn.proj.{p}"] = state[f"{old}attn2.to_out.0.{p}"]
            new[f"{block}mlp.fc1.{p}"] = state[f"{old}ff.net.0.proj.{p}"]
            new[f"{block}mlp.fc2.{p}"] = state[f"{old}ff.net.2.{p}"]
    return new


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# The network.


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_network_computes_what_diffusers_does(name, space, tmp_path):
    net = model(**SHAPES[name])
    space = tuple(n * net.config.patch_size // 2 for n in space)
    net.save_pretrained(tmp_path)
    agree(*both(convert.load(tmp_path).net, net, space))


@pytest.mark.parametrize("name", SHAPES)
def test_the_original_layout_is_the_same_network(name):
    net = model(**SHAPES[name])
    ours = convert.load(original(net), heads=net.config.num_attention_heads).net
    side = net.config.sample_size
    agree(*both(ours, net, (side, side)))
    agree(*both(ours, net, (side, 2 * side), masked=False))


def test_a_mask_of_all_is_no_mask_and_what_is_masked_says_nothing(tmp_path):
    net = model(**SMALL)
    ours = convert.load(original(net), heads=2).net
    x, t, text, mask, _ = inputs(net.config, (8, 8))
    with torch.no_grad():
        whole = ours(x, t, {"text": text})
        torch.testing.assert_close(ours(x, t, {"text": text, "text_mask": torch.ones_like(mask)}), whole)
        masked = ours(x, t, {"text": text, "text_mask": mask})
        other = text.masked_fill(~mask[..., None], 9.0)
        torch.testing.assert_close(ours(x, t, {"text": other, "text_mask": mask}), masked)
        assert (masked - whole).abs().max() > 1e-3


def test_the_first_publications_are_read(tmp_path):
    """`Transformer2DModel` with the settings of its day; the size is told by sample_size alone."""
    net = model(**SMALL | {"use_additional_conditions": True})
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("use_additional_conditions", "interpolation_scale"):
        del config[key]
    old = {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "use_linear_projection": False}
    (tmp_path / "config.json").write_text(json.dumps(config | old))
    agree(*both(convert.load(tmp_path).net, net, (8, 8)))


# Files.


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_original_layout_is_written_bit_for_bit(name, suffix, tmp_path):
    net = model(**SHAPES[name])
    state = original(net)
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    portable = convert.read(tmp_path / "theirs.pth", heads=net.config.num_attention_heads)
    path = tmp_path / f"ours{suffix}"
    assert convert.write(portable, path, to="pixart") == []
    written = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)["state_dict"]
    assert equal(written, state)


@pytest.mark.parametrize("name", SHAPES)
def test_what_diffusers_saved_is_written_as_it_saves_it(name, tmp_path):
    model(**SHAPES[name]).save_pretrained(tmp_path / "theirs/transformer")
    portable = convert.read(tmp_path / "theirs")
    (note,) = convert.write(portable, tmp_path / "ours", to="pixart-diffusers")
    assert "text encoders" in note
    assert equal(load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "theirs" / WEIGHTS))
    again, info = diffusers.PixArtTransformer2DModel.from_pretrained(
        tmp_path / "ours/transformer", output_loading_info=True
    )
    assert not any(info.values())
    ours, stock = dict(again.config), dict(diffusers.PixArtTransformer2DModel(**SHAPES[name]).config)
    assert again.pos_embed.interpolation_scale == (SHAPES[name].get("interpolation_scale") or 1)
    assert {k: v for k, v in ours.items() if k[0] != "_" and k != "interpolation_scale"} == {
        k: v for k, v in stock.items() if k[0] != "_" and k != "interpolation_scale"
    }
    assert convert.read(tmp_path / "ours").model == portable.model


def test_the_null_caption_is_kept_and_its_loss_is_told(tmp_path):
    net = model(**SMALL)
    state = original(net)
    portable = convert.read(state, heads=2)
    assert torch.equal(portable.null["text"], state["y_embedder.y_embedding"])
    notes = convert.write(portable, tmp_path / "out", to="pixart-diffusers")
    assert any("no place for the null caption (y_embedder.y_embedding)" in note for note in notes)
    portable = convert.read(tmp_path / "out")
    assert portable.null == {}
    (note,) = convert.write(portable, tmp_path / "out.pth", to="pixart")
    assert note.startswith("no null caption is known: the file lacks y_embedder.y_embedding")
    assert equal(torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"], original(net, null=False))


def test_a_checkpoint_says_that_it_loses_the_null_caption(tmp_path, capsys):
    net = model(**SMALL)
    for name, notes in (("with", 1), ("without", 0)):
        save_file(original(net, null=name == "with"), tmp_path / f"{name}.safetensors")
        words = ["--to", "ditwright", "--heads", "2", "--codec", "none"]
        assert main(["convert", str(tmp_path / f"{name}.safetensors"), str(tmp_path / name), *words]) == 0
        said = capsys.readouterr().out
        assert said.count("note: ") == notes, said
        assert said.count("no place for the null caption (y_embedder.y_embedding): guidance leads away from") == notes


def test_it_is_sampled_as_released(tmp_path):
    sample = SampleConfig("dpmpp_2m", 20, guidance_scale=4.5, timestep_spacing="linspace")
    portable = convert.read(original(model(**SMALL)), heads=2)
    assert portable.process == ProcessConfig("ddpm", "noise", learned_var=True)
    assert (portable.sample, portable.image_size, portable.notes) == (sample, (64, 64), ())
    model(**SMALL).save_pretrained(tmp_path / "transformer")
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear")
    scheduler.save_pretrained(tmp_path / "scheduler")
    portable = convert.read(tmp_path)
    assert (portable.process, portable.sample) == (ProcessConfig("ddpm", "noise", learned_var=True), sample)
    assert portable.notes == ()
    convert.write(portable, tmp_path / "out", to="pixart-diffusers")
    again = diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path / "out/scheduler")
    assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)
    assert convert.read(tmp_path / "out").sample == sample
    ddim = replace(portable, sample=SampleConfig("ddim", 20, guidance_scale=4.5, timestep_spacing="trailing"))
    convert.write(ddim, tmp_path / "ddim", to="pixart-diffusers")
    assert convert.read(tmp_path / "ddim").sample == ddim.sample
    denoiser = convert.load(tmp_path)
    x, _, text, mask, _ = inputs(model(**SMALL).config, (8, 8))
    prediction = denoiser(x, torch.full((3,), 0.5), {"text": text, "text_mask": mask})
    assert prediction.var.shape == prediction.x0.shape == x.shape


# What is refused.


@pytest.mark.parametrize(
    "key",
    [
        "blocks.1.scale_shift_table",
        "blocks.0.cross_attn.kv_linear.bias",
        "t_block.1.weight",
        "ar_embedder.mlp.2.bias",
        "pos_embed",
        "x_embedder.proj.weight",
    ],
)
def test_a_missing_key_is_named(key):
    state = original(model(**SHAPES["1024 told its size"]))
    del state[key]
    with pytest.raises(UserError, match=f"lacks the key {key!r}"):
        convert.read(state, family="pixart", heads=2)


@pytest.mark.parametrize(("key", "shape"), [("blocks.1.scale_shift_table", (5, 48)), ("t_block.1.bias", (7,))])
def test_a_misshapen_or_an_unknown_key_is_named(key, shape):
    state = original(model(**SMALL))
    with pytest.raises(UserError, match=f"'{key}' has shape .*; the network needs"):
        convert.read(state | {key: torch.zeros(shape)}, heads=2)
    with pytest.raises(UserError, match=r"no rule knows the key 'blocks\.1\.attn\.qkv\.x'"):
        convert.read(state | {"blocks.1.attn.qkv.x": torch.zeros(1)}, heads=2)


def test_a_table_of_other_positions_is_refused():
    state = original(model(**SMALL))
    with pytest.raises(UserError, match="'pos_embed' is not the sin-cos table"):
        convert.read(state | {"pos_embed": state["pos_embed"].roll(1, 1)}, heads=2)


def test_weights_alone_that_do_not_tell_their_size_are_refused():
    with pytest.raises(UserError, match=r"do not tell the size .* read the folder with its config\.json"):
        convert.read(model(**SMALL).state_dict(), heads=2)


@pytest.mark.parametrize(("key", "value"), [("norm_type", "ada_norm_zero"), ("norm_eps", 1e-5)])
def test_another_architecture_is_refused(key, value, tmp_path):
    model(**SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=key):
        convert.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_norm_eps": 1e-5}, r"needs model\.mlp_norm_eps = 1e-06"),
        ({"mlp_ratio": 2.0}, r"needs model\.mlp_ratio = 4\.0"),
        ({"qk_norm": True}, r"needs model\.qk_norm = False"),
        ({"num_classes": 3}, r"needs model\.num_classes = 0"),
        ({"positions": PRESETS["DiT-S/2"].positions}, r"positions\.base"),
        ({"stages": PRESETS["DiT-S/2"].stages, "context": "none", "text_width": 0}, "blocks of adaln_single"),
    ],
    ids=str,
)
@pytest.mark.parametrize("to", ["pixart", "pixart-diffusers"])
def test_another_network_is_not_written(to, change, message, tmp_path):
    portable = convert.read(original(model(**SMALL)), heads=2)
    portable = replace(portable, model=replace(portable.model, **change))
    with pytest.raises(UserError, match=message):
        convert.write(portable, tmp_path / ("out.pth" if to == "pixart" else "out"), to=to)


@pytest.mark.parametrize("to", ["pixart", "pixart-diffusers"])
def test_another_process_is_not_written(to, tmp_path):
    portable = replace(convert.read(original(model(**SMALL)), heads=2), process=ProcessConfig())
    with pytest.raises(UserError, match=rf"{to} needs process\.path = 'ddpm'"):
        convert.write(portable, tmp_path / ("out.pth" if to == "pixart" else "out"), to=to)


# Presets.

PUBLISHED = {  # sample_size, interpolation_scale, told its size
    "PixArt-alpha-XL/2-256": (32, 0.5, False),
    "PixArt-alpha-XL/2-512": (64, 1, False),
    "PixArt-alpha-XL/2-1024": (128, 2, True),
    "PixArt-sigma-XL/2-256": (32, 0.5, False),
    "PixArt-sigma-XL/2-512": (64, 1, False),
    "PixArt-sigma-XL/2-1024": (128, 2, False),
    "PixArt-sigma-XL/2-2K": (256, 4, False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_networks(name):
    sample, scale, sizes = PUBLISHED[name]
    with torch.device("meta"):
        net = diffusers.PixArtTransformer2DModel(
            sample_size=sample, interpolation_scale=scale, use_additional_conditions=sizes, caption_channels=4096
        )
        ours = DiT(PRESETS[name])
    count = sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count
    assert round(count / 1e9, 1) == 0.6  # as the paper says
    source = Source(net.state_dict(), said={"transformer": dict(net.config)})
    assert convert.FAMILIES["pixart-diffusers"].layout(source, None).model == PRESETS[name]


def test_the_small_one_learns_two_captions_on_a_cpu():
    """The small preset with two of its blocks; pictures are told apart by their text alone."""
    torch.manual_seed(0)
    config = replace(PRESETS["PixArt-S/2"], stages=(replace(PRESETS["PixArt-S/2"].stages[0], depth=2),), out_channels=4)
    net = Denoiser(build(config), process_from(ProcessConfig()))
    loss = objective_from(ObjectiveConfig(), net.process)
    optim = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x0 = torch.randn(2, 4, 4, 4).repeat(4, 1, 1, 1)
    cond = {"text": torch.randn(2, 3, config.text_width).repeat(4, 1, 1)}
    for step in range(25):
        optim.zero_grad()
        loss(net, x0, cond, Draws(0, range(8), f"step {step}")).mean().backward()
        optim.step()
    other = cond | {"text": cond["text"].flip(0)}
    with torch.no_grad():
        right, wrong = (loss(net, x0, c, Draws(1, range(8), "the same")).mean().item() for c in (cond, other))
    assert right < 0.6 * wrong
