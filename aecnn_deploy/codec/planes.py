"""Quantised planes to payload bytes and back, for one variant."""

from dataclasses import dataclass

import numpy as np

from aecnn_deploy.codec.coders import CODERS, RAW, Decode, coder_by_name
from aecnn_deploy.codec.delta import DELTA_BY_ID, DELTA_CODERS, MAX_DISTANCE, Earlier, split_delta
from aecnn_deploy.codec.layout import Payload, PlaneDictionary, PlaneLayout, Planes
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
        self,
        shape: tuple[int, int, int],
        bits: int,
        *,
        coder: str = "zstd",
        level: int = DEFAULT_LEVEL,
        dictionary: PlaneDictionary | None = None,
    ) -> None:
        self.layout = PlaneLayout(shape, bits, dictionary)
        self.coder = coder_by_name(coder)
        self._encode = self.coder.make_encode(self.layout, level)

    def encode(self, planes: Planes) -> EncodedPlanes:
        """The payload for uint8 ``planes`` (C, H, W). Raises CodecError: wrong dtype, shape or value."""
        _check(planes, self.layout)
        coder, payload = self.coder, self._encode(np.ascontiguousarray(planes))
        if payload is None or (len(payload) >= self.layout.raw_bytes and coder is not RAW):
            return _raw(planes, self.layout)
        return EncodedPlanes(coder.name, coder.wire_id, payload, self.layout.raw_bytes)


class DeltaEncoder:
    """Encodes the planes of one variant as their difference to earlier ones. One encoder serves one thread.

    Raises CodecError: no such coder of differences, and what PlaneEncoder raises.
    """

    def __init__(
        self, shape: tuple[int, int, int], bits: int, *, coder: str = "delta-zstd", level: int = DEFAULT_LEVEL
    ) -> None:
        self.layout = PlaneLayout(shape, bits)
        try:
            self.coder = DELTA_CODERS[coder]
        except KeyError:
            known = ", ".join(DELTA_CODERS)
            raise CodecError(f"unknown coder of differences {coder!r}; choose one of {known}") from None
        self._encode = coder_by_name(self.coder.base).make_encode(self.layout, level)

    def encode(self, planes: Planes, earlier: Planes, distance: int) -> EncodedPlanes:
        """The payload for uint8 ``planes`` (C, H, W), which come ``distance`` requests after ``earlier``.

        Raises CodecError: wrong dtype, shape, value or distance.
        """
        _check(planes, self.layout)
        _check(earlier, self.layout)
        if not 1 <= distance <= MAX_DISTANCE:
            raise CodecError(f"earlier planes lie 1 to {MAX_DISTANCE} requests back, got {distance}")
        coded = self._encode(self.coder.difference(self.layout, planes, earlier))
        if coded is None or len(coded) + 1 >= self.layout.raw_bytes:
            return _raw(planes, self.layout)
        return EncodedPlanes(self.coder.name, self.coder.wire_id, bytes((distance,)) + coded, self.layout.raw_bytes)


class PlaneDecoder:
    """Decodes payloads of one variant, by any coder. One decoder serves one thread.

    Raises CodecError: impossible shape or bits, a damaged dictionary.
    """

    def __init__(self, shape: tuple[int, int, int], bits: int, *, dictionary: PlaneDictionary | None = None) -> None:
        self.layout = PlaneLayout(shape, bits, dictionary)
        self._decode: dict[int, Decode] = {}  # by wire id
        self._missing: dict[int, str] = {}  # why there is none for a coder that this version knows
        for coder in CODERS.values():  # now: loading a library must not fall into a request's time
            try:
                self._decode[coder.wire_id] = coder.make_decode(self.layout)
            except (CodecError, MissingExtraError) as exc:
                if coder.name == "zstd-dict" and dictionary is not None:
                    raise
                self._missing[coder.wire_id] = str(exc)

    def decode(self, coder_id: int, payload: Payload, earlier: Earlier = lambda distance: None) -> Planes:
        """uint8 planes (C, H, W) from untrusted bytes; read-only, and they may share the memory of ``payload``.

        ``earlier``: the planes of the request that lies so many ids before this one, None where they are not there.
        Raises CodecError: unknown coder, one whose library is not installed, damaged or foreign payload, another size
        than the layout's (refused before memory is taken), a value that does not fit in the layout's bits.
        NoReferenceError: a difference to planes that are not there.
        """
        delta = DELTA_BY_ID.get(coder_id)
        if delta is None:
            return self._frame(coder_id, payload)
        reference, rest = split_delta(payload, earlier)
        planes = delta.undo(self.layout, self._frame(CODERS[delta.base].wire_id, rest), reference)
        planes.flags.writeable = False
        return planes

    def _frame(self, coder_id: int, payload: Payload) -> Planes:
        decode = self._decode.get(coder_id)
        if decode is None:
            ids = [(coder.wire_id, name) for name, coder in CODERS.items()]
            ids += [(delta.wire_id, name) for name, delta in DELTA_CODERS.items()]
            known = ", ".join(f"{wire_id} ({name})" for wire_id, name in ids)
            unknown = f"unknown coder id {coder_id}; this version knows {known}; upgrade the older half"
            raise CodecError(self._missing.get(coder_id, unknown))
        planes = decode(payload)
        self.layout.check_values(planes)
        return planes


def _check(planes: Planes, layout: PlaneLayout) -> None:
    if planes.dtype != np.uint8 or planes.shape != layout.shape:
        raise CodecError(f"encoder expects uint8 {layout.shape}, got {planes.dtype} {planes.shape}")
    layout.check_values(planes)


def _raw(planes: Planes, layout: PlaneLayout) -> EncodedPlanes:
    return EncodedPlanes(RAW.name, RAW.wire_id, planes.tobytes(), layout.raw_bytes)
