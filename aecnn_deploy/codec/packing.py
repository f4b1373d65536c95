"""Values of few bits side by side, without entropy coding: the first value in the highest bits of the first byte."""

import numpy as np

from aecnn_deploy.codec.layout import Payload, PlaneLayout, Planes
from aecnn_deploy.errors import CodecError, PayloadSizeError

_GROUP = 8  # so many values fill ``bits`` whole bytes


def packed_bytes(layout: PlaneLayout) -> int:
    """⌈C·H·W·bits / 8⌉."""
    return (layout.raw_bytes * layout.bits + 7) // 8


def pack(layout: PlaneLayout, planes: Planes) -> bytes:
    """The planes (C, H, W) with ``bits`` a value; the last byte is filled up with zeros."""
    groups = np.zeros((-(-layout.raw_bytes // _GROUP), _GROUP), np.uint8)
    groups.reshape(-1)[: layout.raw_bytes] = planes.reshape(-1)
    words = groups[:, 0].astype(np.uint64)
    for position in range(1, _GROUP):
        words <<= np.uint64(layout.bits)
        words |= groups[:, position]
    content = words.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - layout.bits :]
    return content.tobytes()[: packed_bytes(layout)]


def unpack(layout: PlaneLayout, payload: Payload) -> Planes:
    """The reverse of ``pack``. Raises PayloadSizeError: another size. CodecError: the padding is not zero."""
    if (got := memoryview(payload).nbytes) != (expected := packed_bytes(layout)):
        raise PayloadSizeError("packed payload holds", got, expected)
    bits, count = layout.bits, -(-layout.raw_bytes // _GROUP)
    content = np.zeros(count * bits, np.uint8)
    content[:got] = np.frombuffer(payload, np.uint8)
    wide = np.zeros((count, 8), np.uint8)
    wide[:, 8 - bits :] = content.reshape(count, bits)
    words = wide.view(">u8").astype(np.uint64).reshape(count)
    groups = np.empty((count, _GROUP), np.uint8)
    for position in range(_GROUP):
        groups[:, position] = (words >> np.uint64(bits * (_GROUP - 1 - position))) & np.uint64(layout.mask)
    values = groups.reshape(-1)
    if values[layout.raw_bytes :].any():
        raise CodecError("packed payload ends with bits that are not zero; fill the last byte up with zeros")
    return values[: layout.raw_bytes].reshape(layout.shape)
