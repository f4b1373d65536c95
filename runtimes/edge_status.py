"""A bounded picture of an edge for its status page: ``GET /v1/status``, shown by ``GET /``. docs/observability.md."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from aecnn_deploy import __version__
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.edge_view import FULL, OTHER, SPLIT, STAGES, TOTAL, EdgeState, Peer
from aecnn_deploy.runtimes.log_lines import MAX_FIELD_CHARACTERS, one_line
from aecnn_deploy.runtimes.recent import RATE_S, WINDOW_S, LastAnswers, SecondSums, percentile

_OK, _FAILED = 0, 1  # columns of a row's and of the edge's counts


@dataclass(frozen=True, slots=True)
class StatusSettings:
    """How much a status page remembers. Raises SettingsError: a number is out of its range."""

    max_devices: int = 512  # kept; the least recently seen is dropped first
    max_listed: int = 100  # of them in one document, the most recently seen first
    max_refusals: int = 32  # kinds of refusal
    sample: int = 64  # answers of each device, for its percentiles
    edge_sample: int = 1024  # answers of each path, for its percentiles

    def __post_init__(self) -> None:
        for name in ("max_devices", "max_listed", "max_refusals", "sample", "edge_sample"):
            if not 1 <= getattr(self, name) <= 65536:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 1 to 65536")


class StageShare(msgspec.Struct, frozen=True):
    """One stage of a path: its mean over the last minute, and for each second (null: nothing was answered)."""

    name: str
    mean_ms: float | None
    by_second_ms: list[float | None]


class PathShare(msgspec.Struct, frozen=True):
    """One path's answers of the last minute; the stages' means add up to the mean total."""

    path: str
    answered: int
    images_per_s: float
    bytes_per_image: float | None
    p50_ms: float | None
    p95_ms: float | None
    stages: list[StageShare]


class DeviceRow(msgspec.Struct, frozen=True):
    """One device, or one client of HTTP. Ages in seconds; latency is the edge's own, of at most a minute."""

    name: str
    verified: bool
    address: str
    software: str
    path: str
    variant: str
    streams: int
    since_s: float
    seen_s: float
    ok: int
    failed: int
    images_per_s: float
    bytes_per_image: float | None
    p50_ms: float | None
    p95_ms: float | None


class VariantRow(msgspec.Struct, frozen=True):
    """One variant of the bundle; ``batch_mean`` and ``images_per_s`` of the last minute and the last 10 seconds."""

    id: str
    loaded: bool
    target: str
    queued: int
    images_per_s: float
    batch_mean: float | None


class RefusalRow(msgspec.Struct, frozen=True):
    """One kind of refused or failed request, with the words and the peer of the last one."""

    what: str
    code: str
    count: int
    last_s: float
    reason: str
    peer: str


class StatusDocument(msgspec.Struct, frozen=True):
    """What ``GET /v1/status`` answers."""

    state: str
    version: str
    bundle_id: str
    runner: str
    uptime_s: float
    in_flight: int
    streams: int
    ok: int
    failed: int
    received_bytes: int
    sent_bytes: int
    images_per_s: float
    ok_by_second: list[int]
    failed_by_second: list[int]
    paths: list[PathShare]
    devices: list[DeviceRow]
    devices_not_listed: int
    variants: list[VariantRow]
    refusals: list[RefusalRow]


@dataclass(slots=True)
class _Device:
    """What is kept of one device."""

    peer: Peer  # the last that was seen of it
    answers: LastAnswers
    since_s: float
    seen_s: float = 0.0
    streams: int = 0
    path: str = SPLIT
    variant: str = ""
    ok: int = 0
    failed: int = 0
    seconds: SecondSums = field(default_factory=lambda: SecondSums(1))


@dataclass(slots=True)
class _Path:
    answers: LastAnswers
    seconds: SecondSums  # answered, bytes, and each stage's milliseconds, "other" last


@dataclass(slots=True)
class _Refusal:
    count: int = 0
    last_s: float = 0.0
    reason: str = ""
    peer: str = ""


class EdgeStatus:
    """Counts what happens, O(1) a request, and makes a document of it when somebody looks.

    Memory is bounded whatever peers do: devices and kinds of refusal are kept up to the settings' number, the rest is
    of fixed size. ``look`` is asked for the edge's state; ``now_s`` is a clock that never goes back.
    """

    def __init__(
        self,
        look: Callable[[], EdgeState],
        settings: StatusSettings | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._settings, self._now_s = look, settings or StatusSettings(), now_s
        self._since_s = now_s()
        self._devices: OrderedDict[tuple[str, ...], _Device] = OrderedDict()  # the least recently seen first
        self._refusals: OrderedDict[tuple[str, str], _Refusal] = OrderedDict()
        self._variants: dict[str, SecondSums] = {}  # images, batches
        self._counts = SecondSums(2)
        self._paths = {
            path: _Path(LastAnswers(self._settings.edge_sample), SecondSums(3 + len(stages)))
            for path, stages in STAGES.items()
        }
        self._ok = self._failed = self._received_bytes = self._sent_bytes = 0
        self._written: tuple[float, bytes] = (-1.0, b"")

    def welcomed(self, peer: Peer) -> None:
        """A device's stream was let in."""
        known = peer.key in self._devices
        self._device(peer).streams += known  # a new row counts its stream itself

    def left(self, peer: Peer) -> None:
        """A device's stream that was let in has ended."""
        device = self._devices.get(peer.key)
        if device is not None:
            device.streams = max(0, device.streams - 1)

    def received(self, size_bytes: int) -> None:
        """Bytes of a request came."""
        self._received_bytes += size_bytes

    def answered(
        self,
        path: str,
        variant: str,
        peer: Peer,
        stages_ms: Mapping[str, float],
        *,
        received_bytes: int,
        sent_bytes: int,
    ) -> None:
        """One request of ``received_bytes`` succeeded."""
        device = self._device(peer)
        second, total_ms = int(device.seen_s), stages_ms[TOTAL]
        device.path, device.variant = path, variant
        device.ok += 1
        device.answers.add(device.seen_s, total_ms, received_bytes)
        device.seconds.add(second, (1,))
        each = [stages_ms.get(stage, 0.0) for stage in STAGES[path]]
        seen = self._paths[path]
        seen.answers.add(device.seen_s, total_ms, received_bytes)
        seen.seconds.add(second, (1, received_bytes, *each, max(0.0, total_ms - sum(each))))
        self._counts.add(second, (1, 0))
        self._ok += 1
        self._sent_bytes += sent_bytes

    def failed(self, path: str, outcome: str, peer: Peer | None, reason: str) -> None:
        """One request failed."""
        now_s = self._now_s()
        if peer is not None and (peer.welcomed or path == FULL):
            device = self._device(peer)
            device.path = path
            device.failed += 1
        self._counts.add(int(now_s), (0, 1))
        self._failed += 1
        self._refuse("request", outcome, reason, peer)

    def connection_refused(self, reason_code: str, reason: str, peer: Peer | None) -> None:
        """Somebody was not let in."""
        self._refuse("connection", reason_code, reason, peer)

    def batch_ran(self, variant: str, size: int) -> None:
        """A model ran once on ``size`` images."""
        sums = self._variants.get(variant)
        if sums is None:
            sums = self._variants[variant] = SecondSums(2)
        sums.add(int(self._now_s()), (size, 1))

    def encoded(self) -> bytes:
        """``document`` as JSON; made at most once a second, however often it is asked for."""
        now_s = self._now_s()
        if not 0 <= now_s - self._written[0] < 1.0 or not self._written[1]:
            self._written = now_s, msgspec.json.encode(self.document())
        return self._written[1]

    def document(self) -> StatusDocument:
        """What is so now."""
        now_s, state = self._now_s(), self._look()
        second, uptime_s = int(now_s), now_s - self._since_s
        counts = self._counts.rows(second)
        rate_s = min(float(RATE_S), max(1.0, uptime_s))
        listed = list(reversed(self._devices.values()))[: self._settings.max_listed]
        served = {variant.id for variant in state.variants}
        self._variants = {name: sums for name, sums in self._variants.items() if name in served}
        return StatusDocument(
            state=state.state,
            version=__version__,
            bundle_id=state.bundle_id,
            runner=state.runner,
            uptime_s=round(uptime_s, 1),
            in_flight=state.in_flight,
            streams=state.streams,
            ok=self._ok,
            failed=self._failed,
            received_bytes=self._received_bytes,
            sent_bytes=self._sent_bytes,
            images_per_s=_rate(self._counts, second, rate_s),
            ok_by_second=[int(row[_OK]) for row in counts],
            failed_by_second=[int(row[_FAILED]) for row in counts],
            paths=[self._path(name, path, now_s, rate_s) for name, path in self._paths.items()],
            devices=[_device_row(device, now_s, rate_s) for device in listed],
            devices_not_listed=len(self._devices) - len(listed),
            variants=[
                VariantRow(
                    id=variant.id,
                    loaded=variant.loaded,
                    target=variant.target,
                    queued=variant.queued,
                    images_per_s=_rate(self._variants.get(variant.id), second, rate_s),
                    batch_mean=_batch_mean(self._variants.get(variant.id), second),
                )
                for variant in state.variants
            ],
            refusals=[
                RefusalRow(what, code, kept.count, round(now_s - kept.last_s, 1), kept.reason, kept.peer)
                for (what, code), kept in reversed(self._refusals.items())
            ],
        )

    def _path(self, name: str, path: _Path, now_s: float, rate_s: float) -> PathShare:
        second, stages = int(now_s), (*STAGES[name], OTHER)
        rows = path.seconds.rows(second)
        answered, size_bytes, *sums_ms = path.seconds.sums(second)
        totals_ms, _ = path.answers.since(now_s - WINDOW_S)
        return PathShare(
            path=name,
            answered=int(answered),
            images_per_s=_rate(path.seconds, second, rate_s),
            bytes_per_image=round(size_bytes / answered, 1) if answered else None,
            p50_ms=_rounded(percentile(totals_ms, 0.5)),
            p95_ms=_rounded(percentile(totals_ms, 0.95)),
            stages=[
                StageShare(
                    name=stage,
                    mean_ms=round(sums_ms[number] / answered, 3) if answered else None,
                    by_second_ms=[round(row[2 + number] / row[0], 3) if row[0] else None for row in rows],
                )
                for number, stage in enumerate(stages)
            ],
        )

    def _device(self, peer: Peer) -> _Device:
        """The row of ``peer``, now the most recently seen."""
        now_s, device = self._now_s(), self._devices.get(peer.key)
        if device is None:
            while len(self._devices) >= self._settings.max_devices:
                self._devices.popitem(last=False)
            # Dropped and seen again, its stream is open all the same.
            device = _Device(peer, LastAnswers(self._settings.sample), now_s, streams=int(peer.stream > 0))
            self._devices[peer.key] = device
        else:
            self._devices.move_to_end(peer.key)
        device.peer, device.seen_s = peer, now_s
        return device

    def _refuse(self, what: str, code: str, reason: str, peer: Peer | None) -> None:
        kept = self._refusals.pop((what, code), None) or _Refusal()
        while len(self._refusals) >= self._settings.max_refusals:
            self._refusals.popitem(last=False)
        kept.count, kept.last_s = kept.count + 1, self._now_s()
        kept.reason = one_line(reason, MAX_FIELD_CHARACTERS)
        kept.peer = (peer.name or peer.address) if peer is not None else ""
        self._refusals[what, code] = kept


def _device_row(device: _Device, now_s: float, rate_s: float) -> DeviceRow:
    peer = device.peer
    totals_ms, sizes = device.answers.since(now_s - WINDOW_S)
    return DeviceRow(
        name=peer.name,
        verified=peer.verified,
        address=peer.address,
        software=peer.software,
        path=device.path,
        variant=device.variant,
        streams=device.streams,
        since_s=round(now_s - device.since_s, 1),
        seen_s=round(now_s - device.seen_s, 1),
        ok=device.ok,
        failed=device.failed,
        images_per_s=_rate(device.seconds, int(now_s), rate_s),
        bytes_per_image=round(sum(sizes) / len(sizes), 1) if sizes else None,
        p50_ms=_rounded(percentile(totals_ms, 0.5)),
        p95_ms=_rounded(percentile(totals_ms, 0.95)),
    )


def _rate(sums: SecondSums | None, second: int, rate_s: float) -> float:
    """The first column a second, over the last ``rate_s`` complete seconds."""
    return round(sums.sums(second, RATE_S)[0] / rate_s, 1) if sums is not None else 0.0


def _batch_mean(sums: SecondSums | None, second: int) -> float | None:
    images, batches = sums.sums(second) if sums is not None else (0.0, 0.0)
    return round(images / batches, 2) if batches else None


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
