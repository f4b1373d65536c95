"""Fifty million bytes of damage: decoder, reader and session refuse by their own errors, in bounded memory and time.

Each part runs in a process of its own whose address space may grow by 64 MiB and no more, so that a size that is only
claimed cannot be believed anywhere, in C code neither. Seeds are fixed: a failure comes again.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.planes import DICTIONARY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by RLIMIT_AS")

COMMON = """
import json
import resource
import sys

import numpy as np

from aecnn_deploy.codec import CODERS, DELTA_CODERS, DeltaEncoder, PlaneDecoder, PlaneDictionary, PlaneEncoder
from aecnn_deploy.errors import CodecError, WireError
from aecnn_deploy.wire import (
    EdgeSession, Goodbye, Hello, HelloReceived, InferReceived, Kind, MessageReader, Result, Welcome, WireLimits,
    encode_control, pack,
)

rng = np.random.default_rng(int(sys.argv[1]))
target = int(sys.argv[2])


def mutated(content, others):
    # One to four changes of the kinds that break parsers: bits, bytes, sizes, cuts, copies, pieces of another message.
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(data) + 1))
        kind = rng.integers(0, 8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1 and data:
            data[at % len(data)] = int(rng.integers(0, 256))
        elif kind == 2:
            data[at : at + 4] = bytes(rng.choice([[255] * 4, [0] * 4, [127, 255, 255, 255], [0, 128, 0, 0]]).tolist())
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 5:
            data[at:at] = data[: int(rng.integers(0, 256))]
        elif kind == 6:
            other = others[int(rng.integers(0, len(others)))]
            cut = int(rng.integers(0, len(other)))
            data[at:] = other[cut:]
        else:
            begin = int(rng.integers(0, 40))
            data[begin : begin + 4] = rng.bytes(4)
    return bytes(data)


def limit_memory():
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20),) * 2)
"""

DECODER = """
shape, bits = (8, 28, 28), 4
y, x = np.mgrid[0:28, 0:28]
wave = 7.5 + 6 * np.sin(x / 4 + np.arange(8)[:, None, None]) * np.cos(y / 5)
planes = (wave + rng.normal(0, 0.6, wave.shape)).clip(0, 15).astype(np.uint8)
earlier = planes ^ (rng.random(shape) < 0.1)
past = {3: earlier}.get
dictionary = PlaneDictionary("median", bytes.fromhex(sys.argv[3]))
samples = []
for name in CODERS:
    encoded = PlaneEncoder(shape, bits, coder=name, dictionary=dictionary).encode(planes)
    samples.append((encoded.coder_id, encoded.payload))
for name in DELTA_CODERS:
    encoded = DeltaEncoder(shape, bits, coder=name).encode(planes, earlier, 3)
    samples.append((encoded.coder_id, encoded.payload))
assert len({coder_id for coder_id, _ in samples}) == 11
payloads = [payload for _, payload in samples]
decoder = PlaneDecoder(shape, bits, dictionary=dictionary)
for coder_id, payload in samples:
    assert np.array_equal(decoder.decode(coder_id, payload, past), planes)
limit_memory()
done = refused = 0
while done < target:
    coder_id, payload = samples[int(rng.integers(0, len(samples)))]
    if rng.random() < 0.1:
        coder_id = int(rng.integers(0, 256))
    data = mutated(payload, payloads)
    done += len(data)
    try:
        decoded = decoder.decode(coder_id, data, past)
    except CodecError as exc:
        refused += 1
        assert "\\n" not in str(exc) and len(str(exc)) < 600, exc
        continue
    assert decoded.shape == shape and decoded.dtype == np.uint8 and decoded.max() < 16
for coder_id, payload in samples:
    assert np.array_equal(decoder.decode(coder_id, payload, past), planes)
print(json.dumps({"bytes": done, "refused": refused}))
"""

SESSION = """
limits = WireLimits(max_payload_bytes=1 << 16, max_raw_bytes=1 << 16, max_control_bytes=1 << 12)
hello = Hello("b1d", [1], ["v16", "v32"], ["raw", "zstd"], "device 1")
welcome = Welcome(1, "b1d", ["v16"], ["raw", "zstd"], 4, 1 << 15, 1 << 16, "onnxruntime", "edge 1")
messages = [
    pack(Kind.HELLO, encode_control(hello)),
    *(pack(Kind.INFER, rng.bytes(size), request_id=size, raw_bytes=3136) for size in (1, 40, 1200, 3000)),
    pack(Kind.GOODBYE, encode_control(Goodbye("x"))),
    pack(Kind.RESULT, encode_control(Result([(3, 0.75)], 0.5, 0.25, 12.5, 13.5, 1, "v16")), request_id=1),
]


def opened():
    session = EdgeSession(limits)
    (event,) = session.receive(messages[0])
    assert isinstance(event, HelloReceived)
    session.welcome(welcome)
    return session


limit_memory()
done = refused = asked = 0
neighbour, number = opened(), 0
while done < target:
    session = opened() if rng.random() < 0.8 else EdgeSession(limits)
    try:
        for _ in range(int(rng.integers(1, 5))):
            message = messages[int(rng.integers(0, len(messages)))]
            data = message if rng.random() < 0.3 else mutated(message, messages)
            done += len(data)
            for begin in range(0, len(data), 700):  # as a stream gives it
                events = session.receive(data[begin : begin + 700])
                asked += sum(isinstance(event, InferReceived) for event in events)
    except WireError as exc:
        refused += 1
        assert len(str(exc)) < 1000, exc
    # Another stream goes on as if nothing were.
    number += 1
    (event,) = neighbour.receive(pack(Kind.INFER, b"abc", request_id=number, raw_bytes=3))
    assert isinstance(event, InferReceived) and event.payload == b"abc"
    neighbour.result(number, Result([(3, 0.75)], 0.5, 0.25, 12.5, 13.5, 1, "v16"))
print(json.dumps({"bytes": done, "refused": refused, "asked": asked}))
"""

TINY = """
# Ten thousand messages of one byte, then one of the largest size, byte for byte at its end.
limits = WireLimits(max_payload_bytes=8 << 20, max_raw_bytes=8 << 20)
reader = MessageReader(limits)
one = pack(Kind.INFER, b"x", request_id=1, raw_bytes=1)
large = pack(Kind.INFER, bytes(8 << 20), request_id=2, raw_bytes=8 << 20)
limit_memory()
count = sum(len(reader.feed(one)) for _ in range(10_000))
count += len(reader.feed(one * 10_000))
count += len(reader.feed(large[:-1]))
count += len(reader.feed(large[-1:]))
try:
    reader.feed(pack(Kind.INFER, b"x", request_id=3, raw_bytes=1)[:24] + b"\\xff" * 4 + b"\\0\\0\\0\\1" + bytes(4))
except WireError as exc:
    print(json.dumps({"messages": count, "refused": str(exc)}))
"""


def run(script: str, *arguments: int | str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMMON) + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, int] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_payloads_are_refused_and_the_decoder_goes_on(seed: int) -> None:
    result = run(DECODER, seed, 15_000_000, DICTIONARY.content.hex())
    assert result["bytes"] >= 15_000_000
    assert result["refused"] > 1000


def test_damaged_streams_are_refused_and_their_neighbours_unharmed() -> None:
    result = run(SESSION, 3, 20_000_000)
    assert result["bytes"] >= 20_000_000
    assert min(result["refused"], result["asked"]) > 1000


def test_ten_thousand_tiny_messages_and_one_of_the_largest_size() -> None:
    result = run(TINY, 4, 0)
    assert result["messages"] == 20_001
    assert "4294967295" in str(result["refused"])
    assert "8388608" in str(result["refused"])
