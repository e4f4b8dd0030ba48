"""Pixels to vectors: the registry, loading, preprocessing, pooling, controls."""

from pathfm_kedro.encoders.base import Encoder
from pathfm_kedro.encoders.registry import load_encoder
from pathfm_kedro.encoders.spec import EncoderSpec, read_encoders
from pathfm_kedro.encoders.stream import embed_batches
from pathfm_kedro.encoders.trial import RuntimeTrial

__all__ = [
    "Encoder",
    "EncoderSpec",
    "RuntimeTrial",
    "embed_batches",
    "load_encoder",
    "read_encoders",
]
