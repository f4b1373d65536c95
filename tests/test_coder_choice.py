"""The choice of a coder: each is chosen where it is the fastest way to the other side; the link's rate is measured."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import PlaneDecoder, PlaneDictionary, PlaneEncoder, coder_names, delta_names
from aecnn_deploy.errors import CodecError
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.runtimes.coder_choice import CoderChoice, LinkRate, Reference
from aecnn_deploy.runtimes.device_client import DeviceSettings, run_device
from tests.bundles import command, make_bundle, make_photos, serving
from tests.planes import DICTIONARY, waves

MEGABIT = 0.008  # ms a byte at 1 Mbit/s


def noise(bits: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 1 << bits, (4, 56, 56), np.uint8)


def rows_alike() -> np.ndarray:
    """Each row nearly the one above it."""
    rng = np.random.default_rng(2)
    first = rng.integers(0, 256, (4, 1, 56), np.uint8)
    return first + np.cumsum(rng.random((4, 56, 56)) < 0.04, axis=1, dtype=np.uint8)


def columns_alike() -> np.ndarray:
    return np.ascontiguousarray(rows_alike().transpose(0, 2, 1))


def tiles() -> np.ndarray:
    """One patch of noise again and again."""
    return np.tile(np.random.default_rng(3).integers(0, 256, (4, 14, 56), np.uint8), (1, 4, 1))


def smooth(side: int, noise: float) -> np.ndarray:
    """Waves as in the planes of a photograph, with noise."""
    y, x = np.mgrid[0:side, 0:side]
    shift = np.arange(4)[:, None, None]
    wave = 127 + 100 * np.sin(x / 5 + shift) * np.cos(y / 5 - shift)
    return (wave + np.random.default_rng(4).normal(0, noise, wave.shape)).clip(0, 255).astype(np.uint8)


# A coder's milliseconds to encode and to decode 4×56×56: a machine of its own, so that the test does not time this one.
SPEEDS = {
    "raw": (0.002, 0.002),
    "zstd": (0.06, 0.015),
    "packed": (0.03, 0.04),
    "left-zstd": (0.07, 0.05),
    "up-zstd": (0.07, 0.05),
    "median-zstd": (0.15, 1.0),
    "jpegls": (0.3, 0.25),
    "paeth-zstd": (0.07, 0.13),
    "zstd-dict": (0.02, 0.1),  # of one plane of 14×14
    "delta-zstd": (0.06, 0.02),
    "delta-jpegls": (0.31, 0.26),
}


def chosen(
    planes: np.ndarray,
    bits: int,
    megabits: float,
    *,
    earlier: np.ndarray | None = None,
    dictionary: PlaneDictionary | None = None,
) -> str:
    """What is chosen for ``planes`` on a link of ``megabits``, with the real coders' bytes and the speeds above."""
    choice = CoderChoice(planes.shape, bits, list(SPEEDS), dictionary=dictionary)
    reference = None if earlier is None else Reference(earlier, 1)
    choice.encode(planes, MEGABIT / megabits, reference)
    for name, known in choice._known.items():
        known.encode_ms, known.decode_ms = SPEEDS[name]
    best = choice.costs(MEGABIT / megabits)
    assert [cost.total_ms for cost in best] == sorted(cost.total_ms for cost in best)
    assert (earlier is None) == (not any(cost.coder in delta_names() for cost in best))
    return best[0].coder


@pytest.mark.parametrize(
    ("planes", "bits", "megabits", "coder"),
    [
        (smooth(56, 3), 8, 10_000, "raw"),
        (noise(4), 4, 100, "packed"),
        (tiles(), 8, 10, "zstd"),
        (columns_alike(), 8, 1, "left-zstd"),
        (rows_alike(), 8, 1, "up-zstd"),
        (smooth(28, 12), 8, 0.1, "median-zstd"),
        (smooth(56, 3), 8, 3, "jpegls"),
        (smooth(56, 3), 8, 30, "paeth-zstd"),
    ],
)
def test_each_coder_is_chosen_somewhere(planes: np.ndarray, bits: int, megabits: float, coder: str) -> None:
    assert chosen(planes, bits, megabits) == coder


def test_a_dictionary_is_chosen_for_small_planes_and_differences_for_frames_that_have_one_before() -> None:
    assert chosen(waves(1, 14, 8, seed=9, noise=0.02), 8, 1, dictionary=DICTIONARY) == "zstd-dict"
    before = smooth(56, 3)
    few = before + (np.random.default_rng(1).random(before.shape) < 0.01)
    many = before + (np.random.default_rng(1).random(before.shape) < 0.2)
    assert chosen(few.astype(np.uint8), 8, 100, earlier=before) == "delta-zstd"
    assert chosen(many.astype(np.uint8), 8, 1, earlier=before) == "delta-jpegls"
    assert chosen(columns_alike(), 8, 1, earlier=before) == "left-zstd"


def test_the_fewest_bytes_are_chosen_whatever_they_take() -> None:
    planes = smooth(56, 3)
    choice = CoderChoice(planes.shape, 8, coder_names(), objective="bytes")
    for ms_per_byte in (0.0, 1.0):
        name, encoded = choice.encode(planes, ms_per_byte)
        assert len(encoded.payload) == min(
            len(PlaneEncoder(planes.shape, 8, coder=other).encode(planes).payload)
            for other in coder_names()
            if other != "zstd-dict"
        )
        assert choice.costs(ms_per_byte)[0].coder == name == "jpegls"


def test_where_a_difference_turns_out_large_the_smaller_of_both_is_sent() -> None:
    rng = np.random.default_rng(6)
    one, other = smooth(28, 2), np.ascontiguousarray(smooth(28, 2)[:, ::-1])
    choice = CoderChoice(one.shape, 8, ["zstd", "delta-zstd"], objective="bytes")
    before, coders = None, []
    for scene in [one] * 6 + [other] * 6:
        planes = (scene + (rng.random(scene.shape) < 0.02)).astype(np.uint8)
        name, encoded = choice.encode(planes, 1.0, Reference(before, 1) if before is not None else None)
        assert name == encoded.coder
        coders.append(name)
        before = planes
    assert coders == ["zstd", *["delta-zstd"] * 5, "zstd", *["delta-zstd"] * 5]


def test_differences_are_tried_again_soon_after_they_did_not_pay() -> None:
    rng = np.random.default_rng(6)
    choice = CoderChoice((2, 14, 14), 8, ["zstd", "delta-zstd"], objective="bytes")
    before = rng.integers(0, 60, (2, 14, 14), np.uint8)
    choice.encode(before, 1.0)
    coders = []
    for index in range(60):
        unlike = rng.integers(0, 60, before.shape, np.uint8)
        planes = unlike if index < 30 else (before + (rng.random(before.shape) < 0.02)).astype(np.uint8)
        coders.append(choice.encode(planes, 1.0, Reference(before, 1))[0])
        before = planes
    assert set(coders[:30]) == {"zstd"}
    assert set(coders[45:]) == {"delta-zstd"}


def test_the_chosen_coder_has_the_least_sum_and_its_frame_decodes() -> None:
    planes = smooth(56, 3)
    choice = CoderChoice(planes.shape, 8, coder_names(), level=3)
    assert choice.costs(1.0) == ()
    for megabits in (10_000, 100, 1, 0.01):
        name, encoded = choice.encode(planes, MEGABIT / megabits)
        np.testing.assert_array_equal(PlaneDecoder(planes.shape, 8).decode(encoded.coder_id, encoded.payload), planes)
        for cost in choice.costs(MEGABIT / megabits):
            send_ms = bytes_on_link(36 + cost.bytes) * MEGABIT / megabits
            assert cost.total_ms == pytest.approx(cost.encode_ms + send_ms + cost.decode_ms)
        assert name in coder_names()
    assert name == "jpegls"  # at 10 kbit/s bytes are all that counts


def test_one_slow_answer_does_not_keep_a_coder_out_for_good() -> None:
    planes = smooth(56, 3)
    choice = CoderChoice(planes.shape, 8, ["zstd", "jpegls"], level=3)
    rate = MEGABIT / 1
    assert choice.encode(planes, rate)[0] == "jpegls"
    choice.decoded("jpegls", 1e4)
    names = [choice.encode(planes, rate)[0] for _ in range(200)]
    assert names[0] == "zstd"
    assert names[-1] == "jpegls"


def test_coders_that_cannot_take_the_planes_are_left_out() -> None:
    choice = CoderChoice((1, 1, 70_000), 8, ["jpegls", "raw"], level=3)
    assert choice.encode(np.zeros((1, 1, 70_000), np.uint8), 1.0)[0] == "raw"
    with pytest.raises(CodecError, match="none of the coders jpegls, zstd-dict takes planes"):
        CoderChoice((1, 1, 70_000), 8, ["jpegls", "zstd-dict"])
    with pytest.raises(CodecError, match="at most 65535 rows and columns"):
        CoderChoice((1, 1, 70_000), 8, ["jpegls"])


def test_a_rate_is_what_time_grows_by_with_bytes() -> None:
    rate = LinkRate()
    rate.heard(1000, 50.0)  # before anything is known of an empty message
    assert (rate.frames, rate.ms_per_byte) == (0, 0.0008)
    for took_ms in (4.0, 2.0, 9.0):
        rate.pinged(took_ms)
    for index in range(40):
        rate.heard(1000 + index, 2.0 + bytes_on_link(1000 + index) * MEGABIT + (30.0 if index % 3 == 0 else 0.0))
    assert rate.ms_per_byte == pytest.approx(MEGABIT, rel=1e-3)
    assert rate.frames == 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("choice") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), 6)[0].parent


class TestOverALink:
    def test_a_slow_link_is_measured_and_gets_the_fewest_bytes(self, bundle: Bundle, photos: Path) -> None:
        bytes_per_s = 20_000
        with serving(bundle.path) as edge, throttled(edge.url, bytes_per_s) as url:
            report = run_device(bundle, DeviceSettings(url, coder="auto"), str(photos), stdin=io.BytesIO())
        assert {image.status for image in report.images} == {"ok"}
        assert report.coders is not None
        assert report.coders["link"]["megabits_per_s"] == pytest.approx(8e-6 * bytes_per_s, rel=0.35)
        costs = report.coders["coders"]
        assert costs[0]["payload_bytes"] < 1.1 * min(cost["payload_bytes"] for cost in costs)
        assert report.images[-1].coder == costs[0]["coder"]

    def test_the_command_says_how_it_chose(self, bundle: Bundle, photos: Path) -> None:
        with serving(bundle.path) as edge:
            words = ("run-device", str(bundle.path), "--edge", edge.url, "--source", str(photos), "--explain")
            done = command(*words, "--coder", "auto")
            fixed, smallest = command(*words, "--coder", "zstd"), command(*words)
        assert (done.returncode, fixed.returncode, smallest.returncode) == (0, 0, 0)
        lines = done.stdout.decode().splitlines()
        assert max(map(len, lines)) <= 80
        # Every coder but the one that needs a dictionary has a row, and the best one the last line.
        known = {*coder_names(), *delta_names()} - {"zstd-dict"}
        assert sorted(line.split()[0] for line in lines if line.split()[0] in known) == sorted(
            [*known, lines[-1].split()[0]]
        )
        assert lines[-1].endswith("is expected to be done first")
        assert smallest.stdout.decode().splitlines()[-1].endswith("is expected to be the smallest")
        assert "the coder was fixed" in fixed.stdout.decode()


@contextmanager
def throttled(url: str, bytes_per_s: float) -> Iterator[str]:
    """A TCP relay to ``url`` on loopback that lets bytes to it through at a rate; answers come at once."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = [listener]

    def relay(source: socket.socket, target: socket.socket, rate: float | None) -> None:
        with suppress(OSError):
            while data := source.recv(512):
                if rate:
                    time.sleep(len(data) / rate)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                device, _ = listener.accept()
                edge = socket.create_connection(("127.0.0.1", port))
                edge.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ends.extend((device, edge))
                threading.Thread(target=relay, args=(device, edge, bytes_per_s), daemon=True).start()
                threading.Thread(target=relay, args=(edge, device, None), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        thread.join(timeout=5)
