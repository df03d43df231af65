"""The Inception Score: closed forms, torchmetrics, and parts that merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditwright.errors import UserError
from ditwright.metrics.score import Score, inception_score


def probabilities_of(count: int, classes: int = 7) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(classes, 0.3), count)


def test_its_limits():
    """K for certain samples of all K classes alike, 1 for samples that are all the same."""
    certain = np.eye(8)[np.arange(80) % 8]
    assert inception_score(certain, 10).mean == pytest.approx(8, rel=1e-12)
    assert inception_score(np.full((50, 8), 1 / 8), 5) == (pytest.approx(1, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert inception_score(np.eye(8)[np.zeros(50, int)], 5).mean == pytest.approx(1, rel=1e-12)


def test_the_definition():
    p = probabilities_of(60)
    scores = []
    for part in np.split(p, 4):
        scores.append(np.exp(np.mean([(row * np.log(row / part.mean(0))).sum() for row in part])))
    assert inception_score(p, 4) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-11)


def test_parts_cover_all_samples_where_they_do_not_divide():
    p = probabilities_of(50)
    known = [inception_score(p[a:b], 1).mean for a, b in ((0, 16), (16, 33), (33, 50))]
    assert inception_score(p, 3).mean == pytest.approx(np.mean(known), rel=1e-12)


def test_torchmetrics_agrees():
    image = pytest.importorskip("torchmetrics.image.inception")
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 9)) * 3)
    with pytest.warns(UserWarning, match="Metric `InceptionScore` will save"):
        theirs = image.InceptionScore(feature=torch.nn.Identity(), splits=4)
    theirs.update(logits)
    torch.manual_seed(0)
    mean, std = (float(number) for number in theirs.compute())
    torch.manual_seed(0)
    ours = inception_score(logits[torch.randperm(200)].softmax(1).numpy(), 4)
    assert ours.mean == pytest.approx(mean, rel=1e-9)
    assert ours.std * (4 / 3) ** 0.5 == pytest.approx(std, rel=1e-9)  # theirs is over splits - 1


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_parts_make_the_whole(parts):
    p = probabilities_of(100).astype(np.float32)
    whole = Score(7)
    for part in np.array_split(p, parts):
        score = Score(7)
        for batch in np.array_split(part, 3):
            score.update(batch)
        whole = whole.merge(score)
    assert whole.count == 100
    assert whole.value == pytest.approx(inception_score(p, 1).mean, rel=1e-12)
    assert whole.over_processes().value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: inception_score(np.random.default_rng(0).standard_normal((20, 5))), "after a softmax; got others"),
        (lambda: inception_score(np.full((20, 5), 0.3)), "rows that sum up to 1"),
        (lambda: inception_score(probabilities_of(20) * np.nan), "sample 0 has NaN"),
        (lambda: inception_score(probabilities_of(9)), "in 10 splits .*; got 9"),
        (lambda: inception_score(probabilities_of(9), 0), "in 0 splits"),
        (lambda: Score(5).update(probabilities_of(9)), "7 features a sample, where 5 are expected"),
        (lambda: Score(5).value, "needs samples; got none"),
        (lambda: Score(5).merge(Score(6)), "of 5 and 6 classes cannot be merged"),
    ],
)
def test_what_has_no_score_is_refused(ask, said):
    with pytest.raises(UserError, match=said):
        ask()
