"""Headers and the cutting of bytes into messages."""

import struct
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.errors import PayloadTooBigError, SettingsError, WireError
from aecnn_deploy.wire import HEADER_BYTES, Kind, Message, MessageReader, WireLimits, pack

LIMITS = WireLimits(max_payload_bytes=1000, max_raw_bytes=2000, max_control_bytes=500)
FIELDS = (
    "magic",
    "version",
    "kind",
    "flags",
    "request_id",
    "variant",
    "coder",
    "reserved",
    "deadline_ms",
    "size",
    "raw",
)


def header(**changed: object) -> bytes:
    """36 bytes of a valid INFER header (10 bytes for 20) with some fields changed and the checksum right."""
    values = dict(zip(FIELDS, (b"AECN", 1, Kind.INFER, 0, 1, 0, 1, 0, 0, 10, 20), strict=True)) | changed
    fields = struct.pack(">4sBBHQHBBIII", *values.values())
    return fields + struct.pack(">I", zlib.crc32(fields + bytes(10)))


@st.composite
def packed_messages(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(Kind))
    request_id = draw(st.integers(1, 2**64 - 1)) if kind in (Kind.INFER, Kind.RESULT, Kind.FAILED) else 0
    if kind is not Kind.INFER:
        return pack(kind, draw(st.binary(max_size=60)), request_id=request_id)
    return pack(
        kind,
        draw(st.binary(min_size=1, max_size=200)),
        request_id=request_id,
        variant=draw(st.integers(0, 2**16 - 1)),
        coder=draw(st.integers(0, 255)),
        deadline_ms=draw(st.integers(0, 2**32 - 1)),
        raw_bytes=draw(st.integers(1, 2000)),
    )


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def read_all(chunks: list[bytes]) -> tuple[list[Message], str | None, bool]:
    """The messages, the error's words and ``at_boundary`` of a stream that ends with these chunks."""
    reader, messages = MessageReader(LIMITS), []
    try:
        for chunk in [*chunks, b""]:
            messages += reader.feed(chunk)
    except WireError as exc:
        return messages, str(exc), reader.at_boundary
    return messages, None, reader.at_boundary


@settings(deadline=None)
@given(st.lists(packed_messages(), max_size=5), st.lists(st.integers(0, 5000), max_size=12))
def test_any_chunking_gives_the_same_messages(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    messages, error, at_boundary = read_all(chunked(stream, cuts))
    assert error is None
    assert at_boundary
    again = [
        pack(
            message.header.kind,
            message.payload,
            request_id=message.header.request_id,
            variant=message.header.variant,
            coder=message.header.coder,
            deadline_ms=message.header.deadline_ms,
            raw_bytes=message.header.raw_bytes,
        )
        for message in messages
    ]
    assert again == parts


@settings(deadline=None)
@given(
    st.lists(packed_messages(), min_size=1, max_size=3),
    st.integers(0, 5000),
    st.integers(1, 255),
    st.lists(st.integers(0, 5000), max_size=8),
)
def test_any_chunking_of_a_broken_stream_gives_the_same_messages_and_error(
    parts: list[bytes], at: int, flip: int, cuts: list[int]
) -> None:
    stream = bytearray(b"".join(parts))
    stream[at % len(stream)] ^= flip
    whole = read_all([bytes(stream)])
    assert read_all(chunked(bytes(stream), cuts)) == whole
    assert read_all([bytes([byte]) for byte in stream]) == whole
    assert not whole[2]  # one changed byte never goes unseen: an error, or a message that still lacks bytes


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120), st.integers(0, HEADER_BYTES))
def test_garbage_raises_only_wire_errors(garbage: bytes, kept: int) -> None:
    messages, _error, _ = read_all([header()[:kept] + garbage])
    assert all(isinstance(message, Message) for message in messages)


def test_one_byte_at_a_time_shows_where_a_message_ends() -> None:
    data, reader = pack(Kind.GOODBYE, b"{}"), MessageReader(LIMITS)
    assert reader.at_boundary
    for byte in data[:-1]:
        assert reader.feed(bytes([byte])) == []
        assert not reader.at_boundary
    assert [message.payload for message in reader.feed(data[-1:])] == [b"{}"]
    assert reader.at_boundary


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_payloads_are_copies_that_outlive_what_was_fed(kind: type) -> None:
    buffer = bytearray(pack(Kind.INFER, b"abc", request_id=1, raw_bytes=3))
    (message,) = MessageReader(LIMITS).feed(kind(buffer))
    buffer[:] = bytes(len(buffer))
    assert message.payload == b"abc"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"magic": b"HTTP"}, "begins with b'HTTP'"),
        ({"version": 2}, "wire version 2, this half reads 1; upgrade"),
        ({"kind": 0}, "unknown kind 0"),
        ({"kind": 8}, "unknown kind 8; wire version 1 has 1 to 7"),
        ({"flags": 1}, "flags 0x1"),
        ({"reserved": 3}, "reserved 0x3"),
        ({"request_id": 0}, "INFER has request id 0"),
        ({"size": 0}, "cannot be empty"),
        ({"raw": 0}, "cannot be empty"),
        ({"kind": Kind.HELLO}, "HELLO has request id 1"),
        ({"kind": Kind.RESULT, "coder": 0}, "raw size 20"),
        ({"kind": Kind.RESULT, "raw": 0}, "coder 1"),
        ({"kind": Kind.FAILED, "raw": 0, "coder": 0, "variant": 2}, "variant 2"),
        ({"kind": Kind.FAILED, "raw": 0, "coder": 0, "deadline_ms": 9}, "deadline 9"),
    ],
)
def test_headers_that_break_a_rule_are_refused(changed: dict[str, object], message: str) -> None:
    (whole,) = MessageReader(LIMITS).feed(header() + bytes(10))
    assert whole.header.kind is Kind.INFER  # nothing else is wrong with it
    with pytest.raises(WireError, match=message):
        MessageReader(LIMITS).feed(header(**changed))


@pytest.mark.parametrize(
    ("changed", "size", "limit"),
    [
        ({"size": 1001}, 1001, 1000),
        ({"size": 2**32 - 1}, 2**32 - 1, 1000),
        ({"raw": 2001}, 2001, 2000),
        ({"kind": Kind.RESULT, "coder": 0, "raw": 0, "size": 501}, 501, 500),
    ],
)
def test_oversize_messages_are_refused_by_their_header_alone(changed: dict[str, object], size: int, limit: int) -> None:
    with pytest.raises(PayloadTooBigError) as caught:
        MessageReader(LIMITS).feed(header(**changed))
    assert (caught.value.size, caught.value.limit) == (size, limit)


def test_messages_at_the_limits_are_read() -> None:
    data = pack(Kind.INFER, bytes(1000), request_id=1, raw_bytes=2000) + pack(Kind.GOODBYE, bytes(500))
    assert [len(message.payload) for message in MessageReader(LIMITS).feed(data)] == [1000, 500]


def test_a_declared_size_takes_no_memory_before_its_bytes_come() -> None:
    reader = MessageReader(WireLimits())
    start = pack(Kind.INFER, bytes(8 << 20), request_id=1, raw_bytes=8 << 20)[: HEADER_BYTES + 100]
    tracemalloc.start()
    try:
        assert reader.feed(start) == []
        assert tracemalloc.get_traced_memory()[1] < 16 << 10
    finally:
        tracemalloc.stop()


def test_a_damaged_payload_is_found_by_the_checksum() -> None:
    data = bytearray(pack(Kind.GOODBYE, b'{"reason":"x"}'))
    data[-3] ^= 1
    with pytest.raises(WireError, match="checksum"):
        MessageReader(LIMITS).feed(data)


def test_a_broken_stream_stays_broken() -> None:
    reader = MessageReader(LIMITS)
    good = pack(Kind.GOODBYE, b"{}")
    assert len(reader.feed(good + b"nonsense" * 9)) == 1  # what came before the break is not lost
    assert not reader.at_boundary
    for data in (b"", good):
        with pytest.raises(WireError, match="begins with b'nons'"):
            reader.feed(data)


def test_kinds_of_the_wrong_side_are_refused_by_their_header_alone() -> None:
    reader = MessageReader(LIMITS, kinds={Kind.RESULT, Kind.FAILED})
    with pytest.raises(WireError, match="INFER came from the side that does not send it"):
        reader.feed(header())


@pytest.mark.parametrize(
    "wrong", [{"request_id": 2**64}, {"variant": 65536}, {"coder": 256}, {"deadline_ms": 2**32}, {"raw_bytes": -1}]
)
def test_fields_out_of_range_are_not_packed(wrong: dict[str, int]) -> None:
    with pytest.raises(WireError, match="INFER cannot be packed"):
        pack(Kind.INFER, b"a", **{"request_id": 1, "raw_bytes": 1, **wrong})


@pytest.mark.parametrize("name", ["max_payload_bytes", "max_raw_bytes", "max_control_bytes"])
@pytest.mark.parametrize("value", [0, -1, 2**32])
def test_impossible_limits_are_refused(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"WireLimits.{name} .* got {value}"):
        WireLimits(**{name: value})
