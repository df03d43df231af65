"""Prompts that are encoded already, in place of prompts; and prompts that cannot be encoded: one clear line each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ditwright.cli.main import main
from ditwright.codec.config import CodecConfig
from ditwright.data.prompts import Prompts
from ditwright.diffusion.config import ProcessConfig, SampleConfig
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.errors import UserError
from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.pipeline import Card, Pipeline
from ditwright.pipeline.fid import Order
from ditwright.text.config import TextConfig
from small_pipelines import pipeline

FLUX = DiTConfig(
    width=16,
    heads=2,
    stages=(Stage(1, lanes="own"), Stage(1, parallel=True)),
    patch=(2, 2),
    channels=1,
    out_channels=1,
    num_classes=0,
    context="stream",
    text_width=12,
    pooled_width=6,
)
CROSS = replace(FLUX, stages=(Stage(2, cross=True),), context="cross", pooled_width=0)
POOLED = replace(FLUX, stages=(Stage(2),), context="none", text_width=0)
WIDTHS = {"text": 12, "pooled": 6}


class Words:
    """States that say how long each word is; `text` where padding is to be read, which is how FLUX has it.

    Of a prompt that is several texts the pooled state is of the first, the others of the last, as FLUX has it too.
    """

    vocab, fingerprint, commit = 0, "", ""

    def __init__(self, kind="flux", text_width=12, pooled_width=6):
        self.config, self.text_width, self.pooled_width, self.asked = TextConfig(kind), text_width, pooled_width, []

    def __call__(self, prompts, length=5):
        self.asked += prompts
        each = [[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
        text, mask = self.states([own[-1] for own in each], length)
        mask = {} if self.config.kind == "flux" else {"text_mask": mask}
        pooled = self.states([own[0] for own in each], 5)[0].sum(1)[:, : self.pooled_width]
        return {"text": text, **mask} | ({"pooled": pooled} if self.pooled_width else {})

    def states(self, prompts, length):
        cut = [(prompt.split() + [""] * length)[:length] for prompt in prompts]
        lengths = torch.tensor([[len(word) for word in words] for words in cut]).float()
        return torch.sin(lengths[..., None] + torch.arange(self.text_width)), lengths > 0

    def ready(self):
        return self

    def to(self, device=None, dtype=None):
        return self

    def save(self, folder):
        pass


def made(model=FLUX, encoder=None, text=None, **sample):
    """A pipeline that hears text, its weights such that every condition shows."""
    process = ProcessConfig("linear", "velocity")
    denoiser, noise = Denoiser(build(model), process_from(process)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(torch.randn(p.shape, generator=noise), alpha=0.2)
    settings = SampleConfig("euler", 2, **{"guidance_scale": 3.0} | sample)
    card = Card(model, process, CodecConfig("pixels", channels=1), settings, (), (8, 8), text or TextConfig())
    return Pipeline(denoiser, card, encoder=encoder)


def drawn(pipe, *args, **more):
    return pipe(*args, seed=0, output_type="latent", **more).images


ROUTES = {"flux": (FLUX, Words()), "masked": (CROSS, Words("t5", pooled_width=0)), "pooled": (POOLED, Words("clip"))}


@pytest.mark.parametrize("route", ROUTES)
def test_what_encode_prompt_gives_draws_what_the_prompt_does(route):
    model, encoder = ROUTES[route]
    pipe = made(model, encoder)
    prompts, negative = ["a red square", "a long blue circle"], ["red", ""]
    embeds = pipe.encode_prompt(prompts, negative)
    halves = {"flux": ("prompt_embeds", "pooled_prompt_embeds"), "masked": ("prompt_embeds", "prompt_attention_mask")}
    names = halves.get(route, ("pooled_prompt_embeds",))
    assert set(embeds) == {*names, *(f"negative_{name}" for name in names)}
    wanted, alone = drawn(pipe, prompts, negative_prompt=negative), made(model)
    assert torch.equal(drawn(alone, **embeds), wanted)
    twice = drawn(alone, num_images_per_prompt=2, **embeds)
    assert torch.equal(twice, drawn(pipe, prompts, negative_prompt=negative, num_images_per_prompt=2))
    with pytest.warns(UserWarning, match="^negative_prompt_embeds have no effect at guidance_scale 1"):
        assert not torch.equal(drawn(alone, **embeds, guidance_scale=1.0), wanted)


def test_one_half_may_be_encoded_and_the_other_not():
    pipe = made(FLUX, Words())
    embeds = pipe.encode_prompt("a red square", "a blue one")
    mine = {name: x for name, x in embeds.items() if not name.startswith("negative_")}
    theirs = {name: x for name, x in embeds.items() if name.startswith("negative_")}
    wanted = drawn(pipe, "a red square", negative_prompt="a blue one")
    assert torch.equal(drawn(pipe, **mine, negative_prompt="a blue one"), wanted)
    assert torch.equal(drawn(pipe, "a red square", **theirs), wanted)
    assert torch.equal(drawn(pipe, **mine), drawn(pipe, "a red square"))  # led away from nothing in particular
    assert torch.equal(drawn(pipe, "a red square", negative_prompt=None), drawn(pipe, "a red square"))
    both = pipe.encode_prompt(["a red square", "a"])
    both = {name: x for name, x in both.items() if not name.startswith("negative_")}
    ours = drawn(pipe, **both, **theirs)  # one negative prompt for all
    assert torch.equal(ours, drawn(pipe, ["a red square", "a"], negative_prompt="a blue one"))


def test_nothing_is_encoded_that_nobody_asks_for():
    pipe = made(FLUX, Words())
    drawn(pipe, "a red square", guidance_scale=1.0)
    assert pipe.encoder.asked == ["a red square"]
    imitating = made(replace(FLUX, guidance=True), Words())
    drawn(imitating, "a red square")
    assert imitating.encoder.asked == ["a red square"]
    alone = made()
    embeds = pipe.encode_prompt("a red square")
    mine = {name: x for name, x in embeds.items() if not name.startswith("negative_")}
    assert torch.equal(drawn(alone, **mine, guidance_scale=1.0), drawn(pipe, "a red square", guidance_scale=1.0))
    with pytest.raises(UserError, match="names no text encoder: pass encoder="):
        drawn(alone, **mine)  # guided away from a prompt that nobody has encoded


TEXT, TOLD = torch.ones(2, 4, 12), torch.ones(2, 6)
GOOD = {"prompt_embeds": TEXT, "pooled_prompt_embeds": TOLD}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "a", **GOOD}, "give a prompt or prompt_embeds, not both"),
        ({"class_labels": [1], **GOOD}, "hears text: give prompts; got 1"),
        ({**GOOD, "prompt_embeds": TEXT[..., :7]}, "prompt_embeds has width 7; the network takes 12 (model.text_width"),
        ({**GOOD, "pooled_prompt_embeds": TOLD[:, :5]}, "has width 5; the network takes 6 (model.pooled_width"),
        ({"prompt_embeds": TEXT}, "asks for pooled_prompt_embeds of width 6"),
        ({"pooled_prompt_embeds": TOLD}, "asks for prompt_embeds of width 12"),
        ({**GOOD, "prompt_embeds": TEXT[0]}, "prompt_embeds is a tensor (B, M, E); got the shape (4, 12)"),
        ({**GOOD, "prompt_embeds": [1.0]}, "prompt_embeds is a tensor (B, M, E); got list"),
        ({**GOOD, "pooled_prompt_embeds": TOLD[:1]}, "prompt_embeds (2, 4), pooled_prompt_embeds (1,)"),
        ({**GOOD, "prompt_attention_mask": torch.ones(2, 3)}, "prompt_attention_mask (2, 3)"),
        ({"prompt": "a", "negative_prompt_embeds": TEXT}, "asks for negative_pooled_prompt_embeds of width 6"),
        (
            {**GOOD, "negative_prompt": "b", **{f"negative_{name}": x for name, x in GOOD.items()}},
            "give negative_prompt or negative_prompt_embeds, not both",
        ),
        (
            {**GOOD, **{f"negative_{name}": x.repeat_interleave(2, 0) for name, x in GOOD.items()}},
            "one for each of 2 pictures; got 4",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(given, message):
    pipe = made(FLUX, Words())
    with pytest.raises(UserError) as refused:
        drawn(pipe, **given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_embeds_are_for_networks_that_hear_their_like():
    with pytest.raises(UserError, match="prompt_embeds are for networks that hear text"):
        pipeline()([1], prompt_embeds=TEXT)
    own = replace(CROSS, text_width=16, text_vocab=300, text_depth=1, text_heads=2)
    with pytest.raises(UserError, match="reads ids of its own tokenizer: give prompts"):
        made(own)(prompt_embeds=TEXT)
    with pytest.raises(UserError, match=r"pooled_prompt_embeds has width 6; the network takes 0 \(model.pooled_width"):
        made(CROSS)(**GOOD)
    with pytest.raises(UserError, match=r"prompt_embeds has width 12; the network takes 0 \(model.text_width"):
        made(POOLED)(**GOOD)
    with pytest.raises(UserError, match=r"prompt_attention_mask is of states; the network reads none"):
        made(POOLED)(pooled_prompt_embeds=TOLD, prompt_attention_mask=torch.ones(2, 4))


def test_an_encoder_of_another_width_is_refused_by_both_names():
    for encoder, said in (
        (Words(text_width=40), "flux gives states of width 40; model.text_width is 12"),
        (Words(pooled_width=4), "flux gives a pooled state of width 4; model.pooled_width is 6"),
    ):
        with pytest.raises(UserError, match=said):
            made(FLUX, encoder)("a red square")
        assert not encoder.asked


def test_an_empty_prompt_is_nothing_in_particular_and_says_so(recwarn):
    pipe = made(FLUX, Words())
    nothing = drawn(pipe)
    assert not recwarn.list
    for prompt in ("", " \n"):
        with pytest.warns(UserWarning, match="^an empty prompt asks for nothing in particular"):
            found = drawn(pipe, prompt)
        assert torch.equal(found, nothing)  # which is what guidance leads away from, so that it changes nothing
        with pytest.warns(UserWarning, match="^an empty prompt"):
            torch.testing.assert_close(drawn(pipe, prompt, guidance_scale=1.0), nothing)


@pytest.mark.parametrize("route", ROUTES)
def test_below_one_is_no_guidance_as_in_diffusers(route):
    """0 is what the cards of distilled networks tell people to type."""
    pipe = made(*ROUTES[route])
    one = drawn(pipe, "a red square", guidance_scale=1.0)
    for scale in (0.0, 0.5):
        assert torch.equal(drawn(pipe, "a red square", guidance_scale=scale), one)
        with pytest.warns(UserWarning, match=f"no effect at guidance_scale {scale:g}, which is no guidance"):
            assert torch.equal(drawn(pipe, "a red square", negative_prompt="a", guidance_scale=scale), one)
    assert not torch.equal(drawn(pipe, "a long blue circle", guidance_scale=0.0), one)


def test_a_negative_prompt_without_guidance_says_so():
    embeds = made(FLUX, Words()).encode_prompt("a")
    for pipe, more, said in (
        (made(FLUX, Words()), {"negative_prompt": "b", "guidance_scale": 1.0}, "no effect at guidance_scale 1"),
        (made(replace(FLUX, guidance=True), Words()), {"negative_prompt": "b"}, "this network imitates guidance"),
    ):
        with pytest.warns(UserWarning, match=f"^negative_prompt has no effect.*{said[10:]}"):
            found = drawn(pipe, "a", **more)
        more.pop("negative_prompt")
        assert torch.equal(found, drawn(pipe, "a", **more))
    with pytest.warns(UserWarning, match="^negative_prompt_embeds have no effect"):
        drawn(made(FLUX), guidance_scale=1.0, **embeds)


@pytest.mark.parametrize("model", [FLUX, replace(FLUX, guidance=True)], ids=["guided", "imitates"])
def test_a_negative_prompt_with_guidance_at_no_step_says_so_and_is_not_encoded(model):
    pipe, never = (
        made(model, Words()),
        {"guidance_interval": (0.0, 0.0), "true_cfg_scale": 2.0 if model.guidance else 1},
    )
    with pytest.warns(UserWarning, match="^negative_prompt has no effect with a guidance_interval that ends at 0"):
        found = drawn(pipe, "a", negative_prompt="b", **never)
    assert pipe.encoder.asked == ["a"]
    never |= {"true_cfg_scale": 1.0}
    assert torch.equal(found, drawn(made(model, Words()), "a", **never))


def test_drawing_step_by_step_says_what_has_no_effect():
    pipe = made(FLUX, Words())
    for ask in (pipe.draw, lambda *args, **more: [*pipe.steps(*args, **more)]):
        with pytest.warns(UserWarning, match="^negative_prompt has no effect at guidance_scale 1"):
            ask(["a"], negative_prompt="b", guidance_scale=1.0)
        ask(["a", ""])  # a set of captions may have empty ones
    with pytest.raises(UserError, match=r"^negative_prompt is one text for all or one each; got 3$"):
        pipe.draw(["a"], negative_prompt=3)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"prompt": 3.5}, "^give one prompt or class label, or a list of them; got 3.5"),
        ({"prompt": []}, "^nothing to sample: give a prompt or a class label"),
        ({"prompt": "a", "prompt_2": 3.5}, "^give one prompt, or a list of them; got 3.5"),
        ({"prompt": "a", "negative_prompt": 3}, "^negative_prompt is one text for all or one each; got 3"),
        ({"prompt": "a", "negative_prompt": 3.5}, "^give one negative_prompt, or a list of them; got 3.5"),
        ({"prompt": "a", "negative_prompt": ["b", 3]}, r"one text for all or one each; got \['b', 3\]"),
        ({"prompt": "a", "max_sequence_length": "40"}, "^max_sequence_length must be a whole number; got '40'"),
        ({"prompt": "a", "max_sequence_length": 40.0}, "^max_sequence_length must be a whole number; got 40.0"),
    ],
)
def test_what_is_neither_text_nor_number_is_one_line(told, said):
    with pytest.raises(UserError, match=said) as refused:
        drawn(made(FLUX, Words()), **told)
    assert "\n" not in str(refused.value)


def test_encoders_may_hear_texts_of_their_own():
    """Prompts for the first and for the second, alone and together; one for all or one each."""
    pipe = made(FLUX, Words())
    both, pooled, states = (pipe.encode_prompt(*told, **more) for told, more in (
        ((["a b", "ccc"], "d"), {"prompt_2": ["ee e", "f"], "negative_prompt_2": "gg"}),
        ((["a b", "ccc"], "d"), {}),
        ((["ee e", "f"], "gg"), {}),
    ))  # fmt: skip
    for name in both:
        assert torch.equal(both[name], (pooled if "pooled" in name else states)[name])
    asked = {"prompt_2": ["ee e", "f"], "negative_prompt": "d", "negative_prompt_2": "gg"}
    wanted = drawn(pipe, ["a b", "ccc"], **asked)
    assert torch.equal(drawn(pipe, [("a b", "ee e"), ("ccc", "f")], negative_prompt=[("d", "gg")]), wanted)
    assert torch.equal(drawn(made(), **both), wanted)
    twice = drawn(pipe, ["a b", "ccc"], num_images_per_prompt=2, **asked)
    assert torch.equal(twice, drawn(made(), num_images_per_prompt=2, **both))
    for_all = drawn(pipe, ["a b", "ccc"], prompt_2="f", negative_prompt_2=["", "h"], num_images_per_prompt=2)
    pairs, away = [("a b", "f")] * 2 + [("ccc", "f")] * 2, [("", "")] * 2 + [("", "h")] * 2
    assert torch.equal(for_all, drawn(pipe, pairs, negative_prompt=away))
    assert torch.equal(drawn(pipe, "a", prompt_2="", negative_prompt_2=None), drawn(pipe, "a"))  # as in diffusers
    pipe.encoder.asked.clear()
    drawn(pipe, "a", prompt_3="c")
    assert pipe.encoder.asked == [("a", "a", "c"), ""]


def test_a_length_is_the_encoders_to_keep():
    pipe = made(FLUX, Words())
    long = "a bb ccc dddd eeeee ffffff ggggggg"
    embeds = pipe.encode_prompt(long, "a", max_sequence_length=7)
    assert embeds["prompt_embeds"].shape == embeds["negative_prompt_embeds"].shape == (1, 7, 12)
    wanted = drawn(pipe, long, negative_prompt="a", max_sequence_length=7)
    assert torch.equal(drawn(made(), **embeds, max_sequence_length=7), wanted)
    assert not torch.equal(drawn(pipe, long, negative_prompt="a"), wanted)
    *_, last = pipe.steps([long], negative_prompt="a", max_sequence_length=7, seed=0)
    assert torch.equal(last.x, wanted)
    with pytest.raises(UserError, match="max_sequence_length must be at least 2 tokens; got 1"):
        drawn(pipe, long, max_sequence_length=1)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"prompt_2": "b"}, "prompt_2 and prompt_3 go with prompt, and not with prompt_embeds"),
        ({"prompt": ["a", "b"], "prompt_2": ["a"] * 3}, "prompt_2 and prompt_3 are one for all or one each; got 2, 3"),
        ({"prompt": "a", "negative_prompt_2": ["b", "c"]}, "negative prompt, or one for each of 1 pictures; got 2"),
        ({"prompt_2": "b", **GOOD}, "go with prompt, and not with prompt_embeds"),
        (
            {**GOOD, "negative_prompt_2": "b", **{f"negative_{name}": x for name, x in GOOD.items()}},
            "give negative_prompt or negative_prompt_embeds, not both",
        ),
    ],
)
def test_texts_that_do_not_go_together_are_one_line(told, message):
    with pytest.raises(UserError) as refused:
        drawn(made(FLUX, Words()), **told)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_classes_take_no_words():
    for told, said in (
        ({"prompt_2": "b"}, "prompt_2 is"),
        ({"max_sequence_length": 9}, "max_sequence_length is"),
        ({"negative_prompt_2": "b"}, "negative_prompt is"),
    ):
        with pytest.raises(UserError, match=f"{said} for networks that hear text"):
            pipeline()([1], **told)


IMITATING = replace(FLUX, guidance=True)


def test_a_network_that_imitates_guidance_is_guided_besides_where_that_is_asked_for():
    """As diffusers' FLUX: each half is told the scale that it imitates, and the other scale mixes them."""
    pipe, seen = made(IMITATING, Words()), []
    forward = pipe.denoiser.net.forward

    def spied(x, t, cond, **net):
        seen.append((len(x), cond["guidance"].unique().tolist()))
        return forward(x, t, cond, **net)

    pipe.denoiser.net.forward = spied
    plain = drawn(pipe, "a red square")
    assert seen == [(8, [3.0])] * 2
    assert pipe.encoder.asked == ["a red square"]
    seen.clear()
    turned = drawn(pipe, "a red square", negative_prompt="a tree", true_cfg_scale=4.0)
    assert seen == [(16, [3.0])] * 2
    halves = [
        drawn(pipe, "a red square", negative_prompt="a tree", true_cfg_scale=w, num_inference_steps=1)
        for w in (2.0, 3.0)
    ]
    one = drawn(pipe, "a red square", num_inference_steps=1)
    torch.testing.assert_close(halves[1] - one, 2 * (halves[0] - one))  # away + w (told - away), and one is w = 1
    assert (turned - plain).abs().max() > 1e-3
    nowhere = drawn(pipe, "a tree", negative_prompt="a tree", true_cfg_scale=4.0)
    torch.testing.assert_close(nowhere, drawn(pipe, "a tree"))
    empty = drawn(pipe, "a red square", negative_prompt="", true_cfg_scale=4.0)  # given, though empty: as in diffusers
    assert (empty - plain).abs().max() > 1e-3
    draw = {"negative_prompt": "a tree", "true_cfg_scale": 4.0, "seed": 0}
    assert torch.equal([*pipe.steps(["a red square"], **draw)][-1].x, turned)
    embeds = pipe.encode_prompt("a red square", "a tree")
    assert torch.equal(drawn(made(IMITATING), **embeds, true_cfg_scale=4.0), turned)


def test_true_guidance_that_nobody_asks_for_says_so():
    pipe = made(IMITATING, Words())
    with pytest.warns(UserWarning, match="^true_cfg_scale has no effect without a negative_prompt"):
        found = drawn(pipe, "a", true_cfg_scale=4.0)
    assert torch.equal(found, drawn(pipe, "a"))
    with pytest.warns(UserWarning, match="^negative_prompt has no effect at true_cfg_scale 1: this network imitates"):
        drawn(pipe, "a", negative_prompt="b", guidance_scale=1.0)
    for other, message in (
        (made(FLUX, Words()), "true_cfg_scale is for networks that hear text and imitate guidance"),
        (pipeline(), "this one is guided by guidance_scale: leave true_cfg_scale 1"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            other(["a"] if other.card.model.text_width else [1], negative_prompt="", true_cfg_scale=2.0)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"true_cfg_scale must be 1 or more \(1: none\); got 0.5"):
        drawn(pipe, "a", true_cfg_scale=0.5)


def test_a_set_of_samples_has_no_negative_prompt_to_be_led_away_from(tmp_path):
    pipe, prompts = made(IMITATING, Words()), Prompts("here", ("a",))
    assert Order(pipe, tmp_path, 2, pipe.card.sample, prompts=prompts).count == 2
    with pytest.raises(UserError, match="true_cfg_scale needs a negative prompt, which no set of samples has; give 1"):
        Order(pipe, tmp_path, 2, pipe.settings({"true_cfg_scale": 2.0}), prompts=prompts)


def test_a_checkpoint_that_knows_of_none_of_this_is_read(tmp_path):
    made(IMITATING, text=TextConfig("flux", "gone")).save_pretrained(tmp_path)
    card, new = tmp_path / "card.yaml", ("true_cfg_scale", "use_resolution_binning")
    lines = card.read_text().splitlines()
    assert sum(any(name in line for name in new) for line in lines) == 2
    card.write_text("\n".join(line for line in lines if not any(name in line for name in new)))
    sample = Pipeline.from_pretrained(tmp_path).card.sample
    assert (sample.true_cfg_scale, sample.use_resolution_binning) == (1.0, False)


def test_a_text_encoder_need_not_be_there_before_prompts_are(tmp_path):
    text = TextConfig("flux", str(tmp_path / "gone"))
    made(text=text).save_pretrained(tmp_path / "saved")
    pipe = Pipeline.from_pretrained(tmp_path / "saved").to(torch.float32)
    assert pipe.card.text == text
    drawn(pipe, **made(FLUX, Words()).encode_prompt("a"))
    for ask in (lambda: pipe("a"), lambda: pipe.draw(["a"]), lambda: pipe.encode_prompt("a"), pipe):
        with pytest.raises(
            UserError, match=r"there is no text encoder's folder '.*gone'.*; from_pretrained takes"
        ) as no:
            ask()
        assert "\n" not in str(no.value)


def test_the_command_line_says_what_is_missing_and_takes_another_place(tmp_path, capsys):
    made(text=TextConfig("flux", str(tmp_path / "gone"))).save_pretrained(tmp_path / "saved")
    words = ["sample", str(tmp_path / "saved"), "--prompt", "a", "--output", str(tmp_path / "out")]
    assert main(words) == 2
    line = capsys.readouterr().err
    assert f"error: there is no text encoder's folder {str(tmp_path / 'gone')!r}" in line
    assert "`ditwright sample` as --text-encoder; prompt_embeds need none" in line
    assert not (tmp_path / "out").exists()
    assert main([*words, "--text-encoder", str(tmp_path)]) == 2
    assert f"{str(tmp_path)!r} has no text_encoder/; FLUX reads both" in capsys.readouterr().err
    made().save_pretrained(tmp_path / "none")
    assert main(["sample", str(tmp_path / "none"), *words[2:]]) == 2
    assert "names no text encoder: pass encoder=" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"these do not: pass encoder=encoder_from\(TextConfig"):
        Pipeline.from_pretrained(tmp_path / "none", encoder="somewhere")
