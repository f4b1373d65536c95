"""A process of honest devices, one a thread: ``python -m tests.soak.devices`` with a DeviceProcess as JSON on stdin.

Writes one JSON line for each outcome and one for each device's end. The frames are held in memory and come at a rate,
as a camera's do; one that is due while the device still has to take an earlier one is not made. An edge with tokens is
shown the one of $AECNN_TOKEN, which the package's client does by itself.
"""

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import AecnnError
from aecnn_deploy.runtimes.device_client import DeviceSettings, ImageReport, run_frames
from aecnn_deploy.runtimes.sources import SourceImage
from tests.soak.ledger import Ended, Outcome

_AGAIN_S = 0.3  # between two attempts to begin, while no edge answers
_TIMEOUT_S = 5.0


class DeviceProcess(msgspec.Struct, frozen=True):
    """What one process is told; times by ``time.perf_counter``."""

    bundle: str
    url: str
    photos: list[str]
    devices: list[int]
    frame_hz: float
    begin_s: float
    end_s: float


@dataclass(slots=True)
class FrameSource:
    """Frames of one device, named by their number; ``handed_over`` counts them. Iterating again goes on."""

    contents: list[bytes]
    frame_hz: float
    begin_s: float
    end_s: float
    handed_over: int = field(default=0)

    def __iter__(self) -> Iterator[SourceImage]:
        period_s = 1 / self.frame_hz
        due_s = max(self.begin_s, time.perf_counter())
        while due_s < self.end_s:
            now_s = time.perf_counter()
            if now_s < due_s:
                time.sleep(due_s - now_s)
            number = self.handed_over
            self.handed_over += 1
            yield SourceImage(str(number), self.contents[number % len(self.contents)])
            # The next one that is not over already: what nobody took in time, no camera kept.
            missed = max(0, int((time.perf_counter() - due_s) / period_s))
            due_s += max(1, missed) * period_s


def device_settings(order: DeviceProcess, device: int) -> DeviceSettings:
    """Every third device goes on by itself while the edge is away, so that both ways are run."""
    return DeviceSettings(
        order.url, threads=1, timeout_s=_TIMEOUT_S, fallback="local" if device % 3 == 0 else "none", seed=device
    )


def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=DeviceProcess)
    bundle = open_bundle(Path(order.bundle))
    contents = [Path(photo).read_bytes() for photo in order.photos]
    threads = [
        threading.Thread(target=_run_device, args=(order, bundle, contents, device), name=f"device {device}")
        for device in order.devices
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


def _run_device(order: DeviceProcess, bundle: Bundle, contents: list[bytes], device: int) -> None:
    offset_s = device / order.frame_hz / (max(order.devices) + 1)  # not all in the same moment
    source = FrameSource(contents, order.frame_hz, order.begin_s + offset_s, order.end_s)

    def told(report: ImageReport) -> None:
        error = f"{report.failure}: {report.error}" if report.failure else ""
        _write(Outcome(device, int(report.source), report.status, report.path, report.index, error, _now_s()))

    while True:
        try:
            settings, live = device_settings(order, device), device % 2 == 1  # live: the newest frame is wanted
            run_frames(bundle, settings, iter(source), live=live, on_image=told, keep=False)
            break
        except AecnnError as exc:
            if source.handed_over or _now_s() > order.end_s:
                sys.stderr.write(f"device {device} gave up: {exc}\n")
                break
            time.sleep(_AGAIN_S)  # it could not begin: an edge that is just away
    _write(Ended(device, source.handed_over))


def _write(line: msgspec.Struct) -> None:
    with _writing:
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()


def _now_s() -> float:
    return time.perf_counter()


_writing = threading.Lock()


if __name__ == "__main__":
    sys.exit(main())
