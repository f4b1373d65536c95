"""Quantised planes to bytes and back, without loss. Adding a coder: one entry in ``coders.py``."""

from aecnn_deploy.codec.coders import CODERS, Coder, coder_by_name, coder_names
from aecnn_deploy.codec.delta import DELTA_CODERS, MAX_DISTANCE, DeltaCoder, Earlier, delta_names
from aecnn_deploy.codec.layout import PlaneDictionary, PlaneLayout, Planes
from aecnn_deploy.codec.planes import DeltaEncoder, EncodedPlanes, PlaneDecoder, PlaneEncoder
from aecnn_deploy.codec.prediction import NO_PREDICTOR, PREDICTORS
from aecnn_deploy.codec.zstd import DEFAULT_LEVEL, MAX_DICTIONARY_BYTES, MAX_LEVEL, MIN_LEVEL

__all__ = [
    "CODERS",
    "DEFAULT_LEVEL",
    "DELTA_CODERS",
    "MAX_DICTIONARY_BYTES",
    "MAX_DISTANCE",
    "MAX_LEVEL",
    "MIN_LEVEL",
    "NO_PREDICTOR",
    "PREDICTORS",
    "Coder",
    "DeltaCoder",
    "DeltaEncoder",
    "Earlier",
    "EncodedPlanes",
    "PlaneDecoder",
    "PlaneDictionary",
    "PlaneEncoder",
    "PlaneLayout",
    "Planes",
    "coder_by_name",
    "coder_names",
    "delta_names",
]
