"""Content to vectors: tokenising, batching, pooling, models. Knows neither Kafka nor Faust.

Importing it costs numpy and no torch: torch and transformers are imported when a text encoder is loaded.
"""

from encoders.encoder import EncodedBatch, Encoder, Tokens
from encoders.engine import Engine
from encoders.load import load_encoder, measure_peak, warm_up
from encoders.model_spec import ModelSpec, model_spec
from encoders.version import VersionSpec, resolve_spec

__all__ = [
    "EncodedBatch",
    "Encoder",
    "Engine",
    "ModelSpec",
    "Tokens",
    "VersionSpec",
    "load_encoder",
    "measure_peak",
    "model_spec",
    "resolve_spec",
    "warm_up",
]
