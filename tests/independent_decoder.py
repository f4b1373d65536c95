"""A second reader of wire format 1, written from docs/wire-format.md alone: it imports nothing of this project.

Slow and short: what the page says, in its order, one message at a time. ``read(message)`` gives the header's fields
and the JSON object; ``planes_of(message, shape, bits)`` the values of an INFER, as nested lists.
"""

import json
import re
import struct
import zlib
from typing import Any

import jpeg_ls
import zstandard

KINDS = {1: "HELLO", 2: "WELCOME", 3: "REFUSED", 4: "INFER", 5: "RESULT", 6: "FAILED", 7: "GOODBYE"}
WITH_ID = {"INFER", "RESULT", "FAILED"}
NUMBER = (int, float)
KEYS: dict[str, dict[str, Any]] = {
    "HELLO": {"bundle_id": str, "wire_versions": list, "variants": list, "coders": list, "software": str},
    "WELCOME": {"wire_version": int, "bundle_id": str, "variants": list, "coders": list, "max_in_flight": int}
    | {"max_payload_bytes": int, "max_raw_bytes": int, "runner": str, "software": str},
    "REFUSED": {"code": str, "reason": str},
    "RESULT": {"top": list, "decode_ms": NUMBER, "queue_ms": NUMBER, "tail_ms": NUMBER, "total_ms": NUMBER}
    | {"in_flight": int, "variant": str},
    "FAILED": {"code": str, "reason": str},
    "GOODBYE": {"reason": str},
}
FIELDS = ("version", "kind", "flags", "request", "variant", "coder", "reserved", "deadline", "size", "raw", "checksum")


class BrokenRuleError(ValueError):
    """A rule of the page that a message breaks."""


def need(rule: object, text: str) -> None:
    if not rule:
        raise BrokenRuleError(text)


def read(message: bytes) -> tuple[dict[str, int], str, Any]:
    """Header fields, kind, and the payload: an object, or an INFER's bytes. Sections 1 and 2."""
    need(len(message) >= 36, "a header has 36 bytes")
    fields = dict(zip(FIELDS, struct.unpack(">xxxxBBHQHBBIIII", message[:36]), strict=True))
    need(message[:4] == b"AECN" and fields["version"] == 1, "magic and version")
    need(fields["kind"] in KINDS, "kind")
    kind = KINDS[fields["kind"]]
    need(not fields["flags"] and not fields["reserved"], "flags and reserved are 0")
    need((fields["request"] > 0) == (kind in WITH_ID), "request id")
    payload = message[36:]
    need(len(payload) == fields["size"], "payload size")
    need(fields["checksum"] == zlib.crc32(payload, zlib.crc32(message[:32])), "checksum")
    if kind == "INFER":
        need(fields["size"] and fields["raw"], "an INFER is not empty")
        return fields, kind, payload
    need(not any(fields[name] for name in ("variant", "coder", "deadline", "raw")), "0 in all but INFER")
    content = json.loads(payload)
    for key, form in KEYS[kind].items():
        need(isinstance(content.get(key), form), f"{kind}.{key}")
    if "code" in content:
        need(re.fullmatch("[a-z][a-z0-9-]{0,39}", content["code"]), "code")
    return fields, kind, content


def planes_of(
    message: bytes,
    shape: tuple[int, int, int],
    bits: int,
    earlier: dict[int, Any] | None = None,
    dictionary: tuple[str, bytes] = ("none", b""),
) -> list[list[list[int]]]:
    """The planes of an INFER, section 3; ``earlier``: planes by request id, ``dictionary``: prediction and bytes."""
    fields, kind, payload = read(message)
    _, height, width = shape
    count = shape[0] * height * width
    need(kind == "INFER" and fields["raw"] == count, "raw size is C·H·W")
    coder, names = fields["coder"], {3: "left", 4: "up", 5: "median", 7: dictionary[0], 10: "paeth"}
    if coder in (8, 9):
        reference = (earlier or {}).get(fields["request"] - payload[0])
        need(payload[0] and reference is not None, "a reference that is kept")
        half = 1 << bits - 1 if coder == 9 else 0
        changed = decoded({8: 1, 9: 6}[coder], payload[1:], shape, bits)
        past = [value for plane in reference for row in plane for value in row]  # type: ignore[union-attr]
        values = [(a + b - half) % (1 << bits) for a, b in zip(changed, past, strict=True)]
    elif coder in names:
        values = predicted(unframed(payload, count, dictionary[1] if coder == 7 else b""), shape, bits, names[coder])
    else:
        values = decoded(coder, payload, shape, bits)
    rows = [values[i : i + width] for i in range(0, count, width)]
    return [rows[i : i + height] for i in range(0, len(rows), height)]


def decoded(coder: int, payload: bytes, shape: tuple[int, int, int], bits: int) -> list[int]:
    """The values of coders 0, 1, 2 and 6."""
    count, width = shape[0] * shape[1] * shape[2], shape[2]
    if coder == 0:
        values = list(payload)
    elif coder == 1:
        values = list(unframed(payload, count))
    elif coder == 2:
        text = "".join(f"{byte:08b}" for byte in payload)
        need(len(payload) == -(-count * bits // 8) and "1" not in text[count * bits :], "packed size and padding")
        values = [int(text[i * bits : (i + 1) * bits], 2) for i in range(count)]
    else:
        need(coder == 6 and not re.search(rb"\xff[\x80-\xff]", payload), "a coder; a scan without markers")
        frame = struct.pack(">HHBHHBBBB", 0xFFF7, 11, max(2, bits), count // width, width, 1, 1, 0x11, 0)
        before = b"\xff\xd8" + frame + bytes.fromhex("ffda 0008 01 01 00 00 00 00")
        values = list(jpeg_ls.decode_buffer(before + payload + b"\xff\xd9")[0])
    need(len(values) == count and max(values) < 1 << bits, "C·H·W values within the bits")
    return values


def unframed(payload: bytes, count: int, dictionary: bytes = b"") -> bytes:
    """One zstd frame of ``count`` bytes."""
    need(payload[:4] == bytes.fromhex("28b52ffd"), "one zstd frame")
    need(zstandard.frame_content_size(payload) == count, "the frame's content size")
    past = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    return zstandard.ZstdDecompressor(dict_data=past).decompress(payload, allow_extra_data=False)


def predicted(residuals: bytes, shape: tuple[int, int, int], bits: int, name: str) -> list[int]:
    """Values again, from the table of predictions."""
    _, height, width = shape
    values: list[int] = []
    if name == "none":
        return list(residuals)
    for index, residual in enumerate(residuals):
        row, column = index // width % height, index % width
        a = values[index - 1] if column else 0
        b = values[index - width] if row else 0
        if not row:
            prediction = a
        elif not column:
            prediction = b
        else:
            c = values[index - width - 1]
            paeth = min((a, b, c), key=lambda value: abs(a + b - c - value))
            prediction = {"left": a, "up": b, "median": sorted((a, b, a + b - c))[1], "paeth": paeth}[name]
        values.append((prediction + residual) % (1 << bits))
    return values
