"""Condition in, pictures out: a network, its codec, and what it must know of itself."""

from .card import CARD, WEIGHTS, Card
from .folder import best_device, find_checkpoint
from .pipeline import Frame, ImagePipelineOutput, Pipeline

__all__ = [
    "CARD",
    "WEIGHTS",
    "Card",
    "Frame",
    "ImagePipelineOutput",
    "Pipeline",
    "best_device",
    "find_checkpoint",
]
