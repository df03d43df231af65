"""What a network must be to become another project's, and how it is written."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoints import lightning, original, sit, stock

from ditwright import convert
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.errors import UserError
from ditwright.model.config import DiTConfig, Positions, Stage, conditioned
from ditwright.model.dit import DiT

MODEL = DiTConfig(width=48, heads=3, stages=(Stage(2),), num_classes=10, out_channels=8)
DDPM = ProcessConfig("ddpm", "noise", learned_var=True)
SIT = ProcessConfig("linear", "velocity", reversed_time=True)
OWN = {"dit": DDPM, "sit": SIT, "lightningdit": SIT, "diffusers": DDPM}
FLUX = replace(MODEL, num_classes=0, context="stream", text_width=5, pooled_width=7, sincos=(), rope=(4, 6, 6))
FLUX = replace(FLUX, qk_norm=True, out_channels=4, stages=(Stage(2, lanes="own"), Stage(1, parallel=True)))
FLOW = ProcessConfig("linear", "velocity")


def portable(model=MODEL, process=DDPM, **rest):
    if not process.learned_var:
        model = replace(model, out_channels=model.channels)
    torch.manual_seed(0)
    return convert.Portable(model, process, DiT(model).state_dict(), **{"image_size": (64, 64)} | rest)


def place(path, to):
    return path / ("out" if to == "diffusers" else "out.pt")


@pytest.mark.parametrize("to", OWN)
def test_a_network_of_the_families_kind_is_written_and_read_again(to, tmp_path):
    given = portable(process=OWN[to])
    convert.write(given, place(tmp_path, to), to=to)
    again = convert.read(place(tmp_path, to), family=to, heads=3)
    shift = {"time_shift": 1} if to == "diffusers" else {}
    assert again.model == replace(given.model, **shift)
    assert again.process == given.process
    assert all(torch.equal(again.state[name], w) for name, w in given.state.items())
    assert again.image_size == (64, 64)


@pytest.mark.parametrize(
    ("to", "change", "message"),
    [
        ("dit", {"process": SIT}, r"dit needs process\.path = 'ddpm'; .*'linear'.* --process\.path ddpm"),
        ("dit", {"process": ProcessConfig("ddpm", "v")}, r"needs process\.target = 'noise'"),
        ("dit", {"process": ProcessConfig("ddpm", "noise", steps=500)}, r"needs process\.steps = 1000; .* 500"),
        ("dit", {"process": replace(DDPM, span=(0.0, 0.9))}, r"needs process\.span = None"),
        ("sit", {"process": DDPM}, r"sit needs process\.reversed_time = True; .*--process\.reversed_time true"),
        ("sit", {"process": ProcessConfig("linear", "velocity")}, r"needs process\.reversed_time = True"),
        ("lightningdit", {"process": DDPM}, r"lightningdit needs process\.reversed_time"),
        ("diffusers", {"process": SIT}, r"diffusers needs process\.path = 'ddpm' or 'ddpm-cosine'"),
        ("diffusers", {"process": ProcessConfig("ddpm", "velocity")}, r"process\.target = 'noise' or 'data' or 'v'"),
        ("dit", {"model": replace(MODEL, rope=(8, 8))}, r"needs model\.rope = \(\); .*--model\.rope \[\]"),
        ("dit", {"model": replace(MODEL, sincos=())}, r"needs model\.sincos = \(1, 0\); .*--model\.sincos 1,0"),
        ("sit", {"model": replace(MODEL, norm="rms"), "process": SIT}, r"needs model\.norm = 'layer'"),
        ("dit", {"model": replace(MODEL, qk_norm=True)}, r"needs model\.qk_norm = False"),
        ("diffusers", {"model": replace(MODEL, mlp="swiglu")}, r"needs model\.mlp = 'gelu'"),
        ("diffusers", {"model": replace(MODEL, mlp_ratio=2.0)}, r"needs model\.mlp_ratio = 4\.0"),
        ("lightningdit", {"model": replace(MODEL, qk_norm=True), "process": SIT}, r"needs model\.qk_norm = False"),
        ("lightningdit", {"model": replace(MODEL, rope=(4, 12)), "process": SIT}, r"model\.rope = \(8, 8\) or \(\)"),
        ("dit", {"model": conditioned(MODEL, "adaln")}, "adaln_zero without cross-attention only"),
        ("dit", {"model": conditioned(MODEL, "cross")}, "adaln_zero without cross-attention only"),
        ("dit", {"model": replace(MODEL, context="stream")}, r"needs model\.context = 'none'"),
        ("dit", {"model": replace(MODEL, stages=(Stage(2, parallel=True),))}, "adaln_zero without cross-attention"),
        ("sit", {"model": replace(MODEL, pooled_width=3), "process": SIT}, r"needs model\.pooled_width = 0"),
        ("dit", {"model": replace(MODEL, guidance=True)}, r"needs model\.guidance = False"),
        ("dit", {"model": replace(MODEL, sizes=True)}, r"needs model\.sizes = False"),
        ("diffusers", {"model": replace(MODEL, positions=Positions(base=4))}, r"needs model\.positions\.base = 0"),
        ("dit", {"model": replace(MODEL, positions=Positions(0.5))}, r"needs model\.positions\.scale = 1\.0"),
        ("dit", {"model": replace(MODEL, patch=(2, 4))}, r"square patches; this network's are \(2, 4\)"),
        ("dit", {"model": replace(MODEL, patch=(4,), sincos=(0,))}, r"square patches; this network's are \(4,\)"),
        ("sit", {"model": replace(MODEL, num_classes=0), "process": SIT}, "conditioned on classes"),
        ("dit", {"image_size": None}, r"does not tell its own \(image_size\)"),
        ("diffusers", {"image_size": (64, 128)}, "square pictures of a multiple of 16 pixels; .* 64x128"),
        ("dit", {"image_size": (72, 72)}, "multiple of 16"),
        ("dit2", {}, "unknown family 'dit2'"),
    ],
)  # fmt: skip
def test_another_kind_of_network_is_refused_with_what_would_have_to_be_trained(to, change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        convert.write(portable(**change), place(tmp_path, to), to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": MODEL}, r"lanes=own, then of parallel=true, .*; this network has blocks: 2 adaln_zero"),
        ({"model": replace(FLUX, stages=(Stage(2, lanes="own"),))}, "lanes=own, then of parallel=true"),
        ({"model": replace(FLUX, stages=FLUX.stages[::-1])}, "lanes=own, then of parallel=true"),
        ({"model": replace(FLUX, stages=(Stage(1, lanes="own", mod="adaln"), FLUX.stages[1]))}, "lanes=own, then"),
        ({"model": replace(FLUX, text_width=0, num_classes=3)}, "reads text and its pooled vector"),
        ({"model": replace(FLUX, pooled_width=0)}, "reads text and its pooled vector"),
        ({"model": replace(FLUX, num_classes=3)}, r"needs model\.num_classes = 0; .* --model\.num_classes 0"),
        ({"model": replace(FLUX, text_mlp=True)}, r"needs model\.text_mlp = False"),
        ({"model": replace(FLUX, text_vocab=9, text_width=8)}, r"needs model\.text_vocab = 0"),
        ({"model": replace(FLUX, sizes=True)}, r"needs model\.sizes = False"),
        ({"model": replace(FLUX, sincos=(1, 0))}, r"needs model\.sincos = \(\)"),
        ({"model": replace(FLUX, qk_norm=False)}, r"needs model\.qk_norm = True"),
        ({"model": replace(FLUX, patch=(1, 1))}, r"needs model\.patch = \(2, 2\)"),
        ({"model": replace(FLUX, rope=(8, 8))}, r"needs model\.rope = \(4, 6, 6\)"),
        ({"model": replace(FLUX, time_shift=1)}, r"needs model\.time_shift = 0"),
        ({"process": SIT}, r"needs process\.reversed_time = False"),
        ({"process": ProcessConfig("cosine", "velocity")}, r"needs process\.path = 'linear'"),
        ({"process": ProcessConfig("linear", "v")}, r"needs process\.target = 'velocity'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("to", ["flux", "flux-diffusers"])
def test_what_is_no_flux_is_refused_with_what_would_have_to_be_trained(to, change, message, tmp_path):
    with pytest.raises(UserError, match=f"{to} .*{message}"):
        convert.write(portable(**{"model": FLUX, "process": FLOW} | change), tmp_path / "out.pt", to=to)
    assert list(tmp_path.iterdir()) == []


def test_stock_flux_takes_any_three_axes_and_one_size_of_mlp(tmp_path):
    convert.write(portable(replace(FLUX, rope=(8, 4, 4)), FLOW), tmp_path / "out", to="flux-diffusers")
    assert convert.read(tmp_path / "out").model.rope == (8, 4, 4)
    with pytest.raises(UserError, match=r"flux needs model\.rope = \(4, 6, 6\); .* \(8, 4, 4\)"):
        convert.write(portable(replace(FLUX, rope=(8, 4, 4)), FLOW), tmp_path / "out.pt", to="flux")
    with pytest.raises(UserError, match=r"flux-diffusers needs model\.mlp_ratio = 4\.0"):
        convert.write(portable(replace(FLUX, mlp_ratio=2.0), FLOW), tmp_path / "two", to="flux-diffusers")
    convert.write(portable(replace(FLUX, mlp_ratio=2.0), FLOW), tmp_path / "two.pt", to="flux")
    assert convert.read(tmp_path / "two.pt").model.mlp_ratio == 2.0


def test_each_family_refuses_what_only_another_stores(tmp_path):
    lit = convert.read(lightning(), heads=3)
    for to in ("dit", "sit", "diffusers"):
        with pytest.raises(UserError, match=f"{to} needs"):
            convert.write(lit, place(tmp_path, to), to=to)


@pytest.mark.parametrize("to", OWN)
def test_what_lies_there_is_not_replaced(to, tmp_path):
    path = place(tmp_path, to)
    if to == "diffusers":
        path.mkdir()
        (path / "mine").write_text("precious")
    else:
        path.write_text("precious")
    with pytest.raises(UserError, match="exists already; choose another place"):
        convert.write(portable(process=OWN[to]), path, to=to)
    assert "precious" in (path / "mine" if path.is_dir() else path).read_text()


def test_an_empty_folder_may_be_filled(tmp_path):
    convert.write(portable(), tmp_path / "out", to="diffusers")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model_index.json", "scheduler", "transformer"]


@pytest.mark.parametrize(
    "change", [lambda s: s.pop("head.proj.bias"), lambda s: s.update({"head.proj.bias": torch.ones(3)})]
)
def test_weights_that_are_not_the_networks_are_refused(change, tmp_path):
    given = portable()
    change(given.state)
    with pytest.raises(UserError, match=r"own weight 'head\.proj\.bias' is missing or has not the shape \(32,\)"):
        convert.write(given, tmp_path / "out.pt", to="dit")


@pytest.mark.parametrize("name", ["out", "out.bin", "out.onnx"])
def test_weights_go_to_files_that_say_their_kind(name, tmp_path):
    with pytest.raises(UserError, match=r"dit is written to a \.pt or \.safetensors file"):
        convert.write(portable(), tmp_path / name, to="dit")


def test_a_folder_is_whole_or_absent(tmp_path):
    def fail(folder):
        (folder / "vae").mkdir()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        convert.write(portable(), tmp_path / "out", to="diffusers", also=fail)
    assert list(tmp_path.iterdir()) == []


def notes(given, to, tmp_path):
    return convert.write(given, place(tmp_path, to), to=to)


def test_a_network_with_dits_values_becomes_dit_without_a_word(tmp_path):
    assert notes(portable(), "dit", tmp_path) == []


def test_a_network_with_diffusers_values_becomes_dit_with_a_measured_note(tmp_path):
    given = portable(replace(MODEL, time_shift=1, mlp_norm_eps=1e-5))
    (note,) = notes(given, "dit", tmp_path)
    assert note.startswith(
        "the code of dit spreads the time's frequencies over 128 steps, not 127 "
        "and adds 1e-06 in the MLP's norms, not 1e-05: its prediction differs by 0."
    )


def test_a_sit_of_another_path_names_the_flags_to_sample_it_with(tmp_path):
    process = ProcessConfig("cosine", "noise", reversed_time=True, span=(0.0, 0.999))
    assert notes(portable(process=process), "sit", tmp_path) == ["sample it there with path_type GVP, prediction noise"]


def test_the_class_that_stock_diffusers_takes_for_none_is_told(tmp_path):
    told = notes(portable(replace(MODEL, time_shift=1)), "diffusers", tmp_path)
    assert any("class 1000" in note and "10 classes" in note for note in told)
    given = portable(replace(MODEL, time_shift=1, num_classes=1000))
    assert not any("class 1000" in n for n in convert.write(given, tmp_path / "thousand", to="diffusers"))


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (SampleConfig(timestep_spacing="trailing"), ""),
        (SampleConfig(), "timestep_spacing=leading;"),
        (SampleConfig("ddpm", guidance_channels=3), "sampler=ddim, timestep_spacing=leading, guidance_channels=None;"),
        (SampleConfig(timestep_spacing="leading", clip=1.0), "use_clipped_model_output=False;"),
        (SampleConfig(timestep_spacing="leading", clip=1.0, use_clipped_model_output=False), ""),
    ],
)
def test_what_stock_diffusers_does_otherwise_in_sampling_is_told(sample, told, tmp_path):
    given = portable(replace(MODEL, time_shift=1, num_classes=1000), sample=sample)
    notes = [note for note in convert.write(given, tmp_path / "out", to="diffusers") if "samples with" in note]
    assert bool(notes) == bool(told)
    assert all(f"samples with {told} with that here" in note for note in notes)


def test_class_names_and_settings_travel(tmp_path):
    names = tuple(f"class {i}" for i in range(10))
    sample = SampleConfig("ddim", 20, clip=1.5, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    sample = replace(sample, use_clipped_model_output=False, guidance_scale=4.0)
    process = ProcessConfig("ddpm-cosine", "v", steps=600)
    given = portable(process=process, class_names=names, sample=sample)
    convert.write(given, tmp_path / "out", to="diffusers")
    again = convert.read(tmp_path / "out")
    assert again.class_names == names
    assert again.process == process
    assert again.sample == replace(sample, num_inference_steps=50)  # a scheduler does not hold the number of steps


@pytest.mark.parametrize("family", ["dit", "sit", "diffusers"])
def test_from_one_family_to_another_with_the_same_process(family, tmp_path):
    """dit and diffusers are one process; sit's weights under DiT's names would be nonsense, and are refused."""
    made = {"dit": original, "sit": sit, "diffusers": stock}[family]()
    given = replace(convert.read(made, family=family, heads=3), image_size=(64, 64))
    for to in ("dit", "diffusers"):
        if family == "sit":
            with pytest.raises(UserError, match="which no conversion changes"):
                convert.write(given, place(tmp_path, to), to=to)
        else:
            convert.write(given, place(tmp_path, to), to=to)
            again = convert.read(place(tmp_path, to), family=to, heads=3)
            assert all(torch.equal(again.state[name], w) for name, w in given.state.items())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "shift_factor": None}, []),
        ({"_class_name": "AutoencoderKL", "shift_factor": 0.1}, ["does not read the shift_factor of its autoencoder"]),
        ({"_class_name": "AutoencoderDC"}, ["made for AutoencoderKL; this autoencoder is an AutoencoderDC"]),
    ],
)
def test_an_autoencoder_that_stock_diffusers_reads_otherwise_is_told(config, told, tmp_path):
    def also(folder):
        (folder / "vae").mkdir()
        (folder / "vae/config.json").write_text(json.dumps(config))

    given = portable(replace(MODEL, time_shift=1, num_classes=1000), sample=SampleConfig(timestep_spacing="leading"))
    notes = convert.write(given, tmp_path / "out", to="diffusers", also=also)
    assert len(notes) == len(told)
    assert all(want in note for note, want in zip(notes, told, strict=True))
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["vae"] == ["diffusers", config["_class_name"]]
