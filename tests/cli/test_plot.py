"""Times as a picture."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--output", "times.jpg"), "--output takes a .png file"),
        (("--shfit", "3"), "did you mean 'shift'?"),
        (("--times", "mode", "--mode_scale", "2"), "from -1 to 2 / (pi - 2)"),
        (("--mode_scale", "1"), "objective.mode_scale is for mode times"),
        (("--times", "lognormal"), "unknown times 'lognormal'"),
    ],
)
def test_bad_input_is_one_line(command, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("plot", "times", *words)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
