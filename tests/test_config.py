"""One strict reader for dicts, YAML and the command line; and errors that help."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ditwright.codec.config import CodecConfig
from ditwright.config import differences, dump_yaml, from_dict, load_yaml, merge, overrides, to_dict
from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from ditwright.errors import UserError, did_you_mean, lookup
from ditwright.experiment import DataConfig, TrainConfig
from ditwright.extras import need
from ditwright.model.config import DiTConfig, Stage
from ditwright.model.presets import PRESETS
from ditwright.recipes import RECIPES
from ditwright.train.config import LogConfig, OptimConfig

WHOLE = {**{name: recipe() for name, recipe in RECIPES.items()}, **PRESETS}


@dataclass(frozen=True)
class Bag:
    """A value of every kind that a configuration can hold."""

    whole: int = 1
    real: float = 1.0
    flag: bool = False
    text: str = "a"
    many: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    perhaps: int | None = None
    span: tuple[float, float] | None = (0.0, 1.0)


bags = st.builds(
    Bag,
    whole=st.integers(),
    real=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
    many=st.lists(st.integers()).map(tuple),
    perhaps=st.none() | st.integers(),
    span=st.none() | st.tuples(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300)),
)


@pytest.mark.parametrize("name", WHOLE)
def test_recipes_and_presets_survive_dict_and_yaml(name):
    config = WHOLE[name]
    assert from_dict(type(config), to_dict(config)) == config
    assert from_dict(type(config), yaml.safe_load(dump_yaml(config))) == config


@settings(deadline=None)
@given(bags)
def test_every_value_survives_yaml_to_the_last_bit(bag):
    assert from_dict(Bag, yaml.safe_load(dump_yaml(bag))) == bag


@settings(deadline=None)
@given(bags)
def test_every_value_but_text_survives_the_command_line(bag):
    """Text too, but for the words that mean something else; those come from tables."""
    values = dataclasses.asdict(bag) | {"text": "a"}
    words = [f"--{key}={list(v) if isinstance(v, tuple) else v}" for key, v in values.items()]
    assert merge(Bag(), overrides(words)) == dataclasses.replace(bag, text="a")


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("real", "1e-4", 1e-4),
        ("real", "1E3", 1000.0),
        ("real", "-0.5", -0.5),
        ("real", "3", 3.0),
        ("whole", "-7", -7),
        ("whole", "1e3", 1000),
        ("whole", "2.0", 2),
        ("whole", "9007199254740993", 2**53 + 1),
        ("flag", "true", True),
        ("flag", "False", False),
        ("many", "[3, 4, 5]", (3, 4, 5)),
        ("many", "3,4", (3, 4)),
        ("many", "[]", ()),
        ("pair", "0.1,9e-1", (0.1, 0.9)),
        ("perhaps", "none", None),
        ("perhaps", "null", None),
        ("perhaps", "3", 3),
        ("span", "none", None),
        ("span", "[0, 80]", (0.0, 80.0)),
    ],
)
def test_yaml_and_command_line_read_the_same_text_alike(key, written, meant):
    from_yaml = merge(Bag(), yaml.safe_load(f"{key}: '{written}'"))
    from_words = merge(Bag(), overrides([f"--{key}", written]))
    assert from_yaml == from_words == dataclasses.replace(Bag(), **{key: meant})
    assert type(getattr(from_words, key)) is type(meant)


def test_a_bare_1e_4_in_yaml_is_a_number():
    assert isinstance(yaml.safe_load("lr: 1e-4")["lr"], str)  # what YAML 1.1 makes of it
    assert merge(OptimConfig(), yaml.safe_load("lr: 1e-4")).lr == 1e-4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("whole: 1.5", "whole must be a whole number; got 1.5"),
        ("whole: true", "whole must be a whole number; got True"),
        ("whole: many", "whole must be a whole number; got 'many'"),
        ("whole: null", "whole must be a whole number; got None"),
        ("whole: [1]", r"whole must be a whole number; got \[1\]"),
        ("real: fast", "real must be a number; got 'fast'"),
        ("real: .nan", "real must be a number; got nan"),
        ("real: .inf", "real must be a number; got inf"),
        ("real: 'nan'", "real must be a number; got 'nan'"),
        ("real: '1e999'", "real must be a number; got '1e999'"),
        ("flag: 1", "flag must be true or false; got 1"),
        ("flag: perhaps", "flag must be true or false; got 'perhaps'"),
        ("text: 5", "text must be text; got 5"),
        ("many: 5", "many must be a list; got 5"),
        ("many: [1, x]", "many.1 must be a whole number; got 'x'"),
        ("pair: [1]", r"pair must have 2 values; got 1: \[1\]"),
        ("pair: [1, 2, 3]", "pair must have 2 values; got 3"),
        ("perhaps: x", "perhaps must be a whole number; got 'x'"),
        ("hole: 1", r"unknown key 'hole'; known: whole, .*did you mean 'whole'\?"),
        ("many: {2: 1}", "unknown key 'many.2'; known: 0, 1"),
        ("many: {first: 1}", "unknown key 'many.first'; known: 0, 1"),
        (f"whole: '{'1' * 5000}'", rf"whole must be a whole number; got '{'1' * 199}\.\.\.$"),
        (f"whole: 0x{'f' * 5000}", "whole must be a whole number; got a number that is too long"),
        (f"real: {'1' * 400}", "real must be a number; got 1"),
        (f"real: '{'1' * 400}'", "real must be a number; got '1"),
        (f"real: 0x{'f' * 5000}", "real must be a number; got a number that is"),
        (f"text: [0x{'f' * 5000}]", "text must be text; got list of numbers too long"),
        (f"? 0x{'f' * 5000}\n: 1", "unknown key 'a number that is too long'; known: whole"),
        (f"text: [{'a, ' * 5000}]", r"text must be text; got \['a', .{190,200}\.\.\.$"),
    ],
)
def test_what_does_not_fit_is_named(text, error):
    with pytest.raises(UserError, match=error):
        merge(Bag(), yaml.safe_load(text))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"optim": {"lrr": 1}}, r"unknown key 'optim.lrr'; known: kind, lr, .*did you mean 'lr'\?"),
        ({"optimizer": {}}, r"unknown key 'optimizer'.*did you mean 'optim'\?"),
        ({"optim": 5}, "optim must be a group of keys; got 5"),
        ({"optim": {"schedule": "cosin"}}, r"optim.schedule must be one of constant, cosine.*did you mean 'cosine'\?"),
        ({"model": {"stages": {"1": {"depth": 2}}}}, "unknown key 'model.stages.1'; known: 0"),
        ({"model": {"stages": [{"mod": "plain"}]}}, "missing key 'model.stages.0.depth'"),
        ({1: 2}, "unknown key '1'"),
    ],
)
def test_keys_are_named_with_their_group(data, error):
    with pytest.raises(UserError, match=error):
        merge(RECIPES["digits"](), data)


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match="missing key 'model'"):
        from_dict(TrainConfig, {"steps": 5})


@pytest.mark.parametrize(
    ("words", "tree"),
    [
        ("--a 1", {"a": "1"}),
        ("--a=1", {"a": "1"}),
        ("--a=b=c", {"a": "b=c"}),
        ("--a=", {"a": ""}),
        ("--a -1", {"a": "-1"}),
        ("--a -1e-3 --b=-2", {"a": "-1e-3", "b": "-2"}),
        ("--a.b 1 --a.c 2 --d 3", {"a": {"b": "1", "c": "2"}, "d": "3"}),
        ("--a-b.c-d 1", {"a_b": {"c_d": "1"}}),
        ("--a 1 --a 2", {"a": "2"}),
        ("", {}),
    ],
)
def test_words_become_a_tree(words, tree):
    assert overrides(words.split()) == tree


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--a 1 --a.b 2", "--a.b and --a cannot both be set"),
        ("--a.b 1 --a 2", "--a is set as a whole and in part"),
        ("--a", "--a needs a value"),
        ("--a --b 1", "--a needs a value"),
        ("a 1", "unexpected word 'a'"),
        ("-a 1", "unexpected word '-a'"),
        ("--a 1 2", "unexpected word '2'"),
        ("-- 1", "unexpected word '--'"),
    ],
)
def test_words_that_say_nothing_are_refused(words, error):
    with pytest.raises(UserError, match=error):
        overrides(words.split())


def test_a_deep_override_changes_one_leaf():
    base = RECIPES["digits"]()
    changed = merge(base, overrides(["--model.stages.0.depth", "3", "--optim.betas", "0.8,0.9"]))
    assert changed.model.stages == (Stage(depth=3),)
    old, new = to_dict(base), to_dict(changed)
    assert differences(old, new) == {
        "model.stages": (old["model"]["stages"], [to_dict(Stage(3))]),
        "optim.betas": (old["optim"]["betas"], [0.8, 0.9]),
    }
    assert differences(new, new) == {}


def test_differences_tell_of_keys_on_either_side():
    assert differences({"a": 1, "c": {"d": 1}}, {"b": 2, "c": {}}) == {"a": (1, None), "b": (None, 2), "c.d": (1, None)}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "there is no config file"),
        (b"", "must hold keys and values"),
        (b"- 1\n- 2\n", "must hold keys and values; it holds list"),
        (b"a: [1, 2", "is not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"\x93NUMPY\xff\xfe", "is not"),
    ],
)
def test_a_bad_yaml_file_is_one_line_that_names_it(content, error, tmp_path):
    path = tmp_path / "some.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=error) as caught:
        load_yaml(path)
    assert "some.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (TrainConfig, {"steps": 0}),
        (TrainConfig, {"steps": -3}),
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"seed": 2**63}),
        (DataConfig, {"batch_size": 0}),
        (DataConfig, {"label_drop": 1.5}),
        (OptimConfig, {"lr": 0}),
        (OptimConfig, {"clip": 0}),
        (OptimConfig, {"warmup": -1}),
        (OptimConfig, {"accumulate": 0}),
        (OptimConfig, {"ema": 1}),
        (OptimConfig, {"betas": [0.9, 1.0]}),
        (OptimConfig, {"weight_decay": -0.1}),
        (LogConfig, {"every": 0}),
        (LogConfig, {"keep": 0}),
        (LogConfig, {"checkpoint_every": -1}),
        (ProcessConfig, {"steps": 0}),
        (ProcessConfig, {"sigma_data": 0}),
        (ObjectiveConfig, {"std": 0}),
        (ObjectiveConfig, {"shift": -1}),
        (SampleConfig, {"num_inference_steps": 0}),
        (SampleConfig, {"guidance_scale": -1}),
        (SampleConfig, {"guidance_interval": [0.9, 0.1]}),
        (SampleConfig, {"guidance_rescale": 2}),
        (SampleConfig, {"guidance_channels": 0}),
        (SampleConfig, {"skip_guidance_layers": [-1]}),
        (SampleConfig, {"skip_layer_guidance_scale": -1}),
        (SampleConfig, {"skip_layer_guidance_start": 0.3}),
        (SampleConfig, {"skip_layer_guidance_scale": 3.0}),
        (SampleConfig, {"batch_size": 0}),
        (CodecConfig, {"channels": 0}),
        (Stage, {"depth": 0}),
        (DiTConfig, {"heads": 7}),
        (DiTConfig, {"patch": [0, 2]}),
        (DiTConfig, {"stages": []}),
        (DiTConfig, {"num_classes": -1}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_numbers_that_make_no_sense_are_refused_by_name(cls, values):
    base = {TrainConfig: RECIPES["digits"](), DiTConfig: RECIPES["digits"]().model, Stage: Stage(2)}.get(cls) or cls()
    with pytest.raises(UserError) as caught:
        merge(base, values)
    (name,) = values
    assert name.removesuffix("s") in str(caught.value)


def test_variance_and_output_channels_must_fit():
    with pytest.raises(UserError, match=r"model.out_channels must be 2 .* process.learned_var=true; got 1"):
        merge(RECIPES["digits"](), {"process": {"learned_var": True}})


def test_a_name_that_is_in_no_table_gets_the_table_and_the_nearest():
    with pytest.raises(UserError, match=r"^unknown fruit 'aple'; known: apple, pear \(did you mean 'apple'\?\)$"):
        lookup("fruit", "aple", {"pear": 1, "apple": 2})
    assert lookup("fruit", "pear", {"pear": 1}) == 1
    assert did_you_mean("zzz", ["apple"]) == ""


def test_an_absent_package_is_one_line_with_the_command_that_brings_it():
    assert need("json", extra="demo") is sys.modules["json"]
    with pytest.raises(UserError, match=r"'no_such_package' is not installed; run: pip install 'ditwright\[track\]'"):
        need("no_such_package.part", extra="track")


def test_a_broken_package_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        need("broken_package", extra="track")
