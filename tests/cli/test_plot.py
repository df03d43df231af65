"""Times as a picture."""

import numpy as np
import pytest
from PIL import Image

from ditwright.diffusion.objective import TIMES
from ditwright.scaling import canvas

Axes = pytest.importorskip("matplotlib.axes").Axes


def test_the_usual_times_are_drawn_beside_each_other(command, tmp_path):
    code, out, _ = command("plot", "times", "--output", tmp_path / "new" / "times.png")
    assert code == 0
    assert "densities of 4 distribution(s)" in out
    with Image.open(tmp_path / "new" / "times.png") as picture:
        assert len(set(picture.convert("RGB").get_flattened_data())) > 20


def test_a_shift_above_one_stands_farther_to_the_right(command, tmp_path):
    def middle(*words):
        command("plot", "times", "--output", tmp_path / "one.png", "--times", "logit-normal", *words)
        with Image.open(tmp_path / "one.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        blue = (np.abs(pixels - np.array([11, 111, 184])).sum(-1) < 30).nonzero()[1]
        return float(np.median(blue))

    assert middle() + 50 < middle("--shift", "3")
    assert middle("--shift", "0.3") + 50 < middle()


def test_a_shift_by_the_size_is_drawn_at_three_sizes(command, tmp_path, monkeypatch):
    found, stairs = {}, Axes.stairs

    def watched(axes, heights, edges, **style):
        found[style["label"]] = (heights * edges[1:]).sum() / heights.sum()
        return stairs(axes, heights, edges, **style)

    monkeypatch.setattr(Axes, "stairs", watched)
    words = ("--times", "logit-normal", "--shift", "2", "--shift_base", "1024")
    assert command("plot", "times", "--output", tmp_path / "one.png", *words)[0] == 0
    assert list(found) == ["256 positions: shift 1", "1,024 positions: shift 2", "4,096 positions: shift 4"]
    assert sorted(found.values()) == list(found.values())  # larger ones are trained at more noise


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: of each line the times at its ends, and what the axes are called."""
    found, stairs = {}, Axes.stairs

    def watched(axes, heights, edges, **style):
        found["ends"] = edges[[0, -1]].tolist()
        return stairs(axes, heights, edges, **style)

    monkeypatch.setattr(Axes, "stairs", watched)
    monkeypatch.setattr(canvas, "named", lambda axes, title, x, y="": found.update(x=x))
    return found


@pytest.mark.parametrize("times", TIMES)
def test_every_name_of_times_is_drawn_and_log_normal_ones_are_noise_levels(command, tmp_path, drawn, times):
    code, _, err = command("plot", "times", "--output", tmp_path / "one.png", "--times", times)
    assert (code, err) == (0, "")
    low, high = drawn["ends"]
    assert 0 < low < 0.05
    if times == "log-normal":
        assert high > 40
        assert drawn["x"] == "t: the noise level, 0 is data; dotted: the median"
    else:
        assert 0.95 < high <= 1
        assert drawn["x"] == "t: 0 is data, 1 is noise; dotted: the median"


def test_steps_of_a_table_are_drawn_where_they_are_drawn_by_their_loss_too(command, tmp_path, drawn):
    words = ("--times", "discrete", "--importance", "true")
    assert command("plot", "times", "--output", tmp_path / "one.png", *words)[0] == 0
    assert drawn["ends"] == [0.001, 1.0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--output", "times.jpg"), "--output takes a .png file"),
        (("--shfit", "3"), "did you mean 'shift'?"),
        (("--times", "mode", "--mode_scale", "2"), "from -1 to 2 / (pi - 2)"),
        (("--mode_scale", "1"), "objective.mode_scale is for mode times"),
        (("--times", "lognormal"), "unknown times 'lognormal'"),
        (("--times", "log-normal", "--shift", "2"), "times that end at 80 take no shift"),
    ],
)
def test_bad_input_is_one_line(command, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("plot", "times", *words)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
