"""Pixels to vectors: the registry, loading, preprocessing, pooling, controls."""

from pathfm_kedro.encoders.base import Encoder
from pathfm_kedro.encoders.registry import load_encoder
from pathfm_kedro.encoders.spec import EncoderSpec, read_encoders

__all__ = ["Encoder", "EncoderSpec", "load_encoder", "read_encoders"]
