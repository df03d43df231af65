"""Is a class-conditional sample of its class, and are classes as varied as real ones? Judged without the model.

N images, H height, W width, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..extras import need


class Judge(NamedTuple):
    """A classifier that never saw a generated picture."""

    classifier: object
    real_accuracy: float  # on the half of the real images that it was not trained on

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of images (N, H, W, C) uint8 that it takes for their label."""
        return float(self.classifier.score(_rows(images), labels))  # type: ignore[attr-defined]


def train_judge(images: np.ndarray, labels: np.ndarray, seed: int = 0) -> Judge:
    """A support vector machine on one half of the real images, measured on the other (halves stratified by class)."""
    svm, selection = need("sklearn.svm", extra="demo"), need("sklearn.model_selection", extra="demo")
    halves = selection.train_test_split(_rows(images), labels, test_size=0.5, random_state=seed, stratify=labels)
    train, held_out, train_labels, held_out_labels = halves
    classifier = svm.SVC(C=10.0, gamma="scale").fit(train, train_labels)
    return Judge(classifier, float(classifier.score(held_out, held_out_labels)))


def spread(images: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Standard deviation within each class: root of the mean over pixels of their variance over the class."""
    return {int(k): float(_rows(images[labels == k]).var(0).mean() ** 0.5) for k in np.unique(labels)}


def nearest_real_ratio(images: np.ndarray, real: np.ndarray) -> float:
    """How far samples are from the nearest real image, as a share of how far real images are from each other.

    Medians of Euclidean distances: 0 for copies of the training set, about 1 for images as new as real ones.
    """
    nearest = need("sklearn.neighbors", extra="demo").NearestNeighbors(n_neighbors=2).fit(_rows(real))
    ours, theirs = nearest.kneighbors(_rows(images))[0][:, 0], nearest.kneighbors(_rows(real))[0][:, 1]
    return float(np.median(ours) / np.median(theirs))


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0
