"""Quantised planes to payload bytes and back, for one variant."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from aecnn_deploy.codec.coders import CODERS, RAW, Decode, coder_by_id, coder_by_name
from aecnn_deploy.codec.layout import Payload, PlaneLayout, Planes
from aecnn_deploy.codec.zstd import DEFAULT_LEVEL
from aecnn_deploy.errors import CodecError, MissingExtraError


@dataclass(frozen=True, slots=True)
class EncodedPlanes:
    """One image's planes as bytes: ``coder`` is the coder that was really used, "raw" where coding did not pay."""

    coder: str
    coder_id: int
    payload: bytes
    raw_bytes: int


class PlaneEncoder:
    """Encodes the planes of one variant, ``shape`` (C, H, W) with values below 2**``bits``.

    Keeps one compressor, which saves its set-up on every image; so one encoder serves one thread.
    Raises CodecError: unknown coder, impossible shape or bits, planes that the coder cannot take. SettingsError:
    ``level`` is not the coder's. MissingExtraError: the coder's library is not installed.
    """

    def __init__(
        self, shape: tuple[int, int, int], bits: int, *, coder: str = "zstd", level: int = DEFAULT_LEVEL
    ) -> None:
        self.layout = PlaneLayout(shape, bits)
        self.coder = coder_by_name(coder)
        self._encode = self.coder.make_encode(self.layout, level)

    def encode(self, planes: Planes) -> EncodedPlanes:
        """The payload for uint8 ``planes`` (C, H, W). Raises CodecError: wrong dtype, shape or value."""
        layout = self.layout
        if planes.dtype != np.uint8 or planes.shape != layout.shape:
            raise CodecError(f"encoder expects uint8 {layout.shape}, got {planes.dtype} {planes.shape}")
        layout.check_values(planes)
        coder, payload = self.coder, self._encode(np.ascontiguousarray(planes))
        if payload is None or (len(payload) >= layout.raw_bytes and coder is not RAW):
            coder, payload = RAW, planes.tobytes()
        return EncodedPlanes(coder.name, coder.wire_id, payload, layout.raw_bytes)


class PlaneDecoder:
    """Decodes payloads of one variant, by any coder. One decoder serves one thread.

    Raises CodecError: impossible shape or bits.
    """

    def __init__(self, shape: tuple[int, int, int], bits: int) -> None:
        self.layout = PlaneLayout(shape, bits)
        self._decode: dict[int, Decode] = {}  # by wire id
        for coder in CODERS.values():
            if coder.is_installed():  # now: loading a library must not fall into a request's time
                with suppress(CodecError):  # planes that it cannot take: said when a payload comes
                    self._decode[coder.wire_id] = coder.make_decode(self.layout)

    def decode(self, coder_id: int, payload: Payload) -> Planes:
        """uint8 planes (C, H, W) from untrusted bytes; read-only, and they may share the memory of ``payload``.

        Raises CodecError: unknown coder, one whose library is not installed, damaged or foreign payload, another size
        than the layout's (refused before memory is taken), a value that does not fit in the layout's bits.
        """
        decode = self._decode.get(coder_id)
        if decode is None:
            try:
                decode = coder_by_id(coder_id).make_decode(self.layout)
            except MissingExtraError as exc:
                raise CodecError(str(exc)) from exc
        planes = decode(payload)
        self.layout.check_values(planes)
        return planes
