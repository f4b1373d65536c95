"""Damaged messages against a running edge: each is refused, memory stays, an honest stream beside them is served."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import CODERS, DELTA_CODERS, DeltaEncoder, PlaneEncoder
from aecnn_deploy.wire import Kind, ResultReceived, Welcomed, pack
from tests.bundles import Edge, make_bundle, serving
from tests.edge_client import Client, planes_of
from tests.planes import DICTIONARY

CONNECTIONS = 150
GROWTH_BYTES = 48 << 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("fuzz") / "bundle"
    make_bundle(path, dictionary=True)
    return open_bundle(path)


def resident_bytes(edge: Edge) -> int:
    pages = int(Path(f"/proc/{edge.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def damaged(rng: np.random.Generator, bundle: Bundle, request_id: int) -> bytes:
    """An INFER with a payload of some coder that was changed, sometimes with a header that was changed too."""
    spec = bundle.manifest.variants[0]
    smooth = planes_of(spec, int(rng.integers(0, 1000))) // 4
    coder_name = str(rng.choice([*CODERS, *DELTA_CODERS]))
    if coder_name in CODERS:
        encoded = PlaneEncoder(spec.planes, spec.bits, coder=coder_name, dictionary=DICTIONARY).encode(smooth)
    else:  # to planes that the edge has, or has not, or never had
        distance = int(rng.integers(1, 9))
        encoded = DeltaEncoder(spec.planes, spec.bits, coder=coder_name).encode(smooth, smooth ^ 1, distance)
    payload = bytearray(encoded.payload)
    for _ in range(rng.integers(1, 6)):
        payload[int(rng.integers(0, len(payload)))] = int(rng.integers(0, 256))
    if rng.random() < 0.3:
        payload = payload[: max(1, int(rng.integers(0, len(payload))))]
    coder = int(rng.integers(0, 256)) if rng.random() < 0.2 else encoded.coder_id
    raw = int(rng.choice([encoded.raw_bytes, 1, 1 << 22])) if rng.random() < 0.2 else encoded.raw_bytes
    variant = int(rng.integers(0, 1 << 16)) if rng.random() < 0.1 else 0
    message = bytearray(
        pack(Kind.INFER, bytes(payload), request_id=request_id, variant=variant, coder=coder, raw_bytes=raw)
    )
    if rng.random() < 0.3:
        message[int(rng.integers(0, 36))] ^= 1 << int(rng.integers(0, 8))
    return bytes(message)


def attack(edge: Edge, bundle: Bundle, rng: np.random.Generator) -> tuple[int, int | None]:
    """One connection with up to eight damaged requests: how many were answered, and the close code if it hung up."""
    answered = 0
    with Client(edge, bundle) as peer:
        assert isinstance(peer.event(), Welcomed)
        try:
            for request_id in range(1, 9):
                peer.socket.send(damaged(rng, bundle, request_id))
                data = peer.socket.recv(timeout=10)
                assert isinstance(data, bytes)
                assert data[5] in (Kind.RESULT, Kind.FAILED)
                answered += 1
        except ConnectionClosed as exc:
            return answered, exc.rcvd.code if exc.rcvd is not None else 1006
    return answered, None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the edge's memory from /proc")
def test_damaged_messages_harm_nobody_else(bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    planes = planes_of(spec, 7)
    stop, wrong, served = threading.Event(), [], [0]

    def honest(edge: Edge) -> None:
        with Client(edge, bundle) as peer:
            assert isinstance(peer.event(), Welcomed)
            first = None
            while not stop.is_set():
                peer.ask(spec, 0, planes)
                event = peer.event()
                if not isinstance(event, ResultReceived):
                    wrong.append(event)
                    return
                first = first or event.result.top
                if event.result.top != first:
                    wrong.append(event)
                served[0] += 1

    with serving(bundle.path) as edge:
        neighbour = threading.Thread(target=honest, args=(edge,))
        neighbour.start()
        rng = np.random.default_rng(11)
        try:
            for _ in range(20):
                attack(edge, bundle, rng)
            before = resident_bytes(edge)
            outcomes = [attack(edge, bundle, rng) for _ in range(CONNECTIONS)]
            after = resident_bytes(edge)
        finally:
            stop.set()
            neighbour.join(timeout=20)
        assert wrong == []
        assert served[0] > CONNECTIONS
        assert sum(answered for answered, _ in outcomes) > CONNECTIONS
        codes = [code for _, code in outcomes]
        assert codes.count(1002) > CONNECTIONS / 10
        assert set(codes) == {None, 1002}
        assert after - before < GROWTH_BYTES
        with Client(edge, bundle) as peer:  # and a new one is served as ever
            assert isinstance(peer.event(), Welcomed)
            peer.ask(spec, 0, planes)
            assert isinstance(peer.event(), ResultReceived)
        assert edge.process.poll() is None
