"""The link from this machine to an edge, measured by requests to it: an empty one there and back, the uplink's rate.

The rate is that of whole images that are posted, of two sizes in turns: what both have in common, the round trip, the
edge's work and the first bytes that a shaper lets through at once, cancels out.
"""

import io
import struct
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.calibration.classify_client import ClassifyClient
from aecnn_deploy.calibration.loopback import blank_planes, hello_for
from aecnn_deploy.calibration.profile_facts import now, seconds_since, versions
from aecnn_deploy.calibration.turns import Progress, no_progress
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.planning.link import HTTP_BYTES, bytes_on_link
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profiles import LinkProfile, timing
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.wire import HEADER_BYTES, WireLimits

FASTEST_BPS = 1e9  # above it the two halves' own code is what takes the time

_SMALLEST = 8 << 10  # bytes of the first larger image
_LARGEST = 4 << 20
_TELLING_MS = 60.0  # of a transfer: long enough beside what else takes time
_LONG_MS = 400.0  # so long takes no growing any more
_TELLING_BYTES = 64 << 10  # more than shapers let through at once
_LARGER = 4  # times the smaller image
_SEGMENT = 0xFFFF - 2  # bytes of one JPEG comment


@dataclass(frozen=True, slots=True)
class LinkEffort:
    """How long a link is measured. Raises SettingsError: a number is out of its range."""

    requests: int = 25  # empty ones
    pairs: int = 9  # of a smaller and a larger image
    least_pairs: int = 3  # as many are sent however long they take
    longest_s: float = 4.0  # for those beyond ``least_pairs``
    pause_ms: float = 5.0  # between two empty requests

    def __post_init__(self) -> None:
        if not 1 <= self.requests <= 10_000 or not 1 <= self.least_pairs <= self.pairs <= 1000:
            raise SettingsError(f"{self.requests} requests and {self.least_pairs} to {self.pairs} pairs, expected some")
        if not 0 < self.longest_s <= 3600 or not 0 <= self.pause_ms <= 1000:
            raise SettingsError(
                f"longest_s is {self.longest_s} and pause_ms {self.pause_ms}, expected 3600, 1000 at most"
            )


LINK_EFFORT = LinkEffort()


def time_link(
    bundle: Bundle,
    edge: str,
    credentials: Credentials,
    *,
    variant: str | None = None,
    threads: int = 0,
    timeout_s: float = 30.0,
    effort: LinkEffort = LINK_EFFORT,
    progress: Progress = no_progress,
) -> LinkProfile:
    """Measure the link to ``edge``, which serves ``bundle``: below ten seconds from 0.5 Mbit/s on.

    ``variant``: whose head runs between two empty requests and whose tail answers them; None: the first. ``timeout_s``:
    longest wait for one answer. A rate over FASTEST_BPS is kept as that: it is at least so much. Raises
    EdgeUnreachableError, SessionRefusedError, RequestFailedError; SettingsError, CredentialsError; BundleError: no such
    variant. MissingExtraError.
    """
    began_s = time.perf_counter()
    spec = bundle.variant(variant)
    software, trips, request_bytes, sent = _empty_requests(bundle, spec, edge, credentials, threads, timeout_s, effort)
    progress(0.3)
    with ClassifyClient(edge, credentials, timeout_s=timeout_s) as client:
        uplink = _Uplink(client, effort, lambda done: progress(0.3 + 0.7 * done))
        rates = uplink.measure()
    on_link_ms = bytes_on_link(request_bytes) * 8e3 / rates["p50"]
    return LinkProfile(
        bundle_id=bundle.id,
        machine=this_machine(),
        versions=versions(),
        measured_at=now(),
        took_s=seconds_since(began_s),
        edge=edge,
        edge_software=software,
        rate_bps=rates,
        fixed=timing([trip - on_link_ms for trip in trips]),
        bytes_sent=sent + uplink.bytes_sent,
    )


def is_too_fast(profile: LinkProfile) -> bool:
    """Whether the link is at least as fast as the rate says, and too fast to measure."""
    return profile.rate_bps["p50"] >= FASTEST_BPS


def _empty_requests(
    bundle: Bundle,
    spec: VariantSpec,
    edge: str,
    credentials: Credentials,
    threads: int,
    timeout_s: float,
    effort: LinkEffort,
) -> tuple[str, list[float], int, int]:
    """The edge's software; milliseconds of each request there and back without the edge's own; a request's bytes; all.

    The head runs before each, and this machine waits a little, as between two images: what is warm is so in a run.
    """
    planes = blank_planes(spec)
    index = bundle.manifest.variants.index(spec)
    trips: list[float] = []
    link = EdgeLink(
        edge, hello_for(bundle, "calibrate"), timeout_s=timeout_s, limits=WireLimits(), credentials=credentials
    )
    with OnnxRuntimeRunner(bundle.file(spec.head), threads=threads, variant=spec.id) as head:
        frame = np.zeros((1, *head.input_shape), head.input_dtype)
        try:
            software = link.open().software
            for number in range(-2, effort.requests):  # the edge may have to load the tail first
                time.sleep(effort.pause_ms / 1e3)
                head.infer(frame)
                reply = link.request(index, planes, deadline_ms=0)
                if number >= 0:
                    trips.append(reply.round_trip_ms - reply.result.total_ms)
        finally:
            link.close()
    size = HEADER_BYTES + len(planes.payload)
    return software, trips, size, round((effort.requests + 2) * bytes_on_link(size))


class _Uplink:
    """Posts images until a transfer takes long enough to tell, then pairs of that size and a quarter of it."""

    def __init__(self, client: ClassifyClient, effort: LinkEffort, progress: Progress) -> None:
        self._client, self._effort, self._progress = client, effort, progress
        self._noise = np.random.default_rng().bytes(_LARGEST)  # nothing on the way can make it smaller
        self.bytes_sent = 0

    def measure(self) -> dict[str, float]:
        """Bits a second, headers of packets included: "p10", "p50", "p90" over the pairs."""
        for _ in range(2):  # the edge may have to load the model first
            empty_ms = self._send_ms(_SMALLEST // _LARGER)
        size = _SMALLEST
        while True:
            took_ms = self._send_ms(size) - empty_ms
            if size >= _LARGEST or took_ms >= _LONG_MS:
                break
            if size >= _TELLING_BYTES and took_ms >= max(_TELLING_MS, 2 * empty_ms):
                break
            size *= 2
        small, large, end_s = [], [], time.perf_counter() + self._effort.longest_s
        for pair in range(self._effort.pairs):
            if pair >= self._effort.least_pairs and time.perf_counter() > end_s:
                break
            large.append(self._send_ms(size))
            small.append(self._send_ms(size // _LARGER))
            self._progress((pair + 1) / self._effort.pairs)
        self._progress(1.0)
        bits = 8 * (bytes_on_link(size, HTTP_BYTES) - bytes_on_link(size // _LARGER, HTTP_BYTES))
        slow, middle, fast = np.percentile(large, (90, 50, 10)) - np.median(small)
        return {
            name: round(min(bits * 1e3 / max(float(ms), 1e-6), FASTEST_BPS))
            for name, ms in (("p10", slow), ("p50", middle), ("p90", fast))
        }

    def _send_ms(self, size: int) -> float:
        """Milliseconds that an image file of ``size`` bytes takes there, and its answer back, less the edge's work."""
        content = padded_jpeg(self._noise, size)
        answer = self._client.classify(content)
        self.bytes_sent += round(bytes_on_link(len(content), HTTP_BYTES))
        return answer.took_ms - answer.decode_ms - answer.full_ms


def padded_jpeg(noise: bytes, size: int) -> bytes:
    """A small JPEG file of exactly ``size`` bytes: the rest of it is comments of ``noise``, which nobody decodes.

    A larger picture would take the edge longer, too.
    """
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (120, 130, 140)).save(out, "JPEG", quality=50)
    picture = out.getvalue()
    missing = size - len(picture)
    if missing < 4 or missing > len(noise):
        raise SettingsError(f"a padded JPEG of {size} bytes, expected {len(picture) + 4} to {len(noise)}")
    comments, at = [], 0
    while missing:
        # A comment has four bytes around it: what is left over must be none, or enough for another.
        length = min(missing - 4, _SEGMENT)
        if 0 < missing - 4 - length < 4:
            length -= 4
        comments.append(b"\xff\xfe" + struct.pack(">H", length + 2) + noise[at : at + length])
        at += length
        missing -= length + 4
    return picture[:2] + b"".join(comments) + picture[2:]
