"""Quantised planes to bytes and back, without loss. Adding a coder: one entry in ``coders.py``."""

from aecnn_deploy.codec.coders import CODERS, Coder, coder_by_id, coder_by_name, coder_names
from aecnn_deploy.codec.layout import PlaneLayout
from aecnn_deploy.codec.planes import EncodedPlanes, PlaneDecoder, PlaneEncoder
from aecnn_deploy.codec.zstd import DEFAULT_LEVEL, MAX_LEVEL, MIN_LEVEL

__all__ = [
    "CODERS",
    "DEFAULT_LEVEL",
    "MAX_LEVEL",
    "MIN_LEVEL",
    "Coder",
    "EncodedPlanes",
    "PlaneDecoder",
    "PlaneEncoder",
    "PlaneLayout",
    "coder_by_id",
    "coder_by_name",
    "coder_names",
]
