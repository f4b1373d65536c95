"""A device process that drives: frames of photographs at a fixed pace, by one arm, over a link whose rate changes.

``split``: ``runtimes.device_client.run_frames``, with a variant or, without one, with the device's own choice.
``full``: a client that sends the newest frame as a JPEG when the one before has its answer or passed its deadline; it
breaks a connection off with what was not sent, as nothing of it is wanted any more.
"""

import http.client
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.device_client import DeviceSettings, ImageReport, run_frames
from aecnn_deploy.runtimes.sources import SourceImage
from benchmarks.link_arms import ImageClient, image_bytes
from benchmarks.namespaces import enter
from benchmarks.processes import sleep_until
from benchmarks.traffic import named_bundle

DROPPED, LATE = "dropped", "deadline"
READY = "ready"


class Driver(msgspec.Struct, frozen=True):
    """What drives. ``image_coding``: full offloading; else split, without a ``variant`` by the device's choice."""

    name: str
    variant: str | None = None
    image_coding: str | None = None


class Drive(msgspec.Struct, frozen=True):
    """One drive: the photographs in turn, ``pace_hz`` of them a second; the first ``warm_up`` of them do not count."""

    driver: Driver
    photographs: list[Path]
    warm_up: int
    pace_hz: float
    deadline_ms: float


class Outcome(msgspec.Struct, frozen=True):
    """What became of one frame."""

    in_time: bool
    variant: str | None  # that was chosen; None: full offloading, or it came to no choice
    label: str | None
    total_ms: float | None
    failure: str | None


def drive_process(connection: Connection, namespace: str, bundle: str, edge_url: str) -> None:
    """A process within ``namespace``: for each ``Drive``, "ready", then it is told when to begin, then the outcomes.

    The moment to begin is of ``time.perf_counter``, and that of the first frame that counts.
    """
    enter(namespace)
    opened = named_bundle(bundle)
    connection.send(READY)
    while True:
        drive: Drive = connection.recv()
        go = _full if drive.driver.image_coding is not None else _split
        connection.send(go(connection, opened, edge_url, drive)[drive.warm_up :])


def _split(connection: Connection, bundle: Bundle, edge_url: str, drive: Drive) -> list[Outcome]:
    settings = DeviceSettings(
        edge_url, variant=drive.driver.variant, threads=1, coder="auto", deadline_ms=drive.deadline_ms
    )
    outcomes: list[Outcome] = []

    def on_image(report: ImageReport) -> None:
        ok = report.status == "ok"
        in_time = ok and report.total_ms is not None and report.total_ms <= drive.deadline_ms
        chosen = report.variant if ok or report.failure == LATE else None  # else it was not sent
        outcomes.append(Outcome(in_time, chosen, report.label, report.total_ms, report.failure))

    def frames() -> Iterator[SourceImage]:
        for number, due_s in _due(connection, drive):
            sleep_until(due_s)
            path = drive.photographs[number]
            yield SourceImage(path.name, path, due_s)

    run_frames(bundle, settings, frames(), live=True, on_image=on_image, keep=False)
    return outcomes


def _full(connection: Connection, bundle: Bundle, edge_url: str, drive: Drive) -> list[Outcome]:
    outcomes: list[Outcome] = []
    coding, labels = drive.driver.image_coding, bundle.manifest.labels
    assert coding is not None
    dues = list(_due(connection, drive))
    with ImageClient(edge_url) as client:
        for number, due_s in dues:
            sleep_until(due_s)
            if number + 1 < len(dues) and time.perf_counter() >= dues[number + 1][1]:
                outcomes.append(Outcome(False, None, None, None, DROPPED))
                continue
            content = image_bytes(drive.photographs[number], coding, bundle.manifest.input)
            left_s = due_s + drive.deadline_ms / 1e3 - time.perf_counter()
            index = None
            with suppress(OSError, http.client.HTTPException):
                if left_s > 0:
                    index = client.classify(content, left_s)
            total_ms = (time.perf_counter() - due_s) * 1e3
            if index is None or total_ms > drive.deadline_ms:
                if index is None:
                    client.abort()
                outcomes.append(Outcome(False, None, None, total_ms, LATE))
                continue
            outcomes.append(Outcome(True, None, labels[index], total_ms, None))
    return outcomes


def _due(connection: Connection, drive: Drive) -> Iterator[tuple[int, float]]:
    """Every frame's number and when it is due: it is said now that all is ready, and asked when to begin."""
    connection.send(READY)
    begin_s: float = connection.recv()
    for number in range(len(drive.photographs)):
        yield number, begin_s + (number - drive.warm_up) / drive.pace_hz
