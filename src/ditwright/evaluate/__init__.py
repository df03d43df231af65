"""Samples against a reference: pictures -> features -> statistics -> numbers that carry what they depend on."""

from .captioned import captioned
from .compare import completed, evaluate, plan
from .fidelity import Fidelity, fidelity
from .measures import METRICS
from .pictures import Images, images_from, labelled
from .presets import PRESETS
from .reference import make_reference, reference_from
from .scores import Score, Scores
from .side import Reading, Side

__all__ = [
    "METRICS",
    "PRESETS",
    "Fidelity",
    "Images",
    "Reading",
    "Score",
    "Scores",
    "Side",
    "captioned",
    "completed",
    "evaluate",
    "fidelity",
    "images_from",
    "labelled",
    "make_reference",
    "plan",
    "reference_from",
]
