"""What a device reports: one line for each image, and a summary that takes no more memory for days than for minutes."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from aecnn_deploy.runtimes.frame_failure import NO_FAULT, Failure

SPLIT, LOCAL = "split", "local"

_EXACT = 4096  # values that are kept as they are
_STEP = math.log(1.005)  # between buckets after that: a percentile is right to half a per cent


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What became of one image.

    Milliseconds: ``total`` = ``device`` + ``link`` + ``edge`` + ``stages_ms["queue"]``, the last being what the image
    waited for a stage of the device that was busy with another one.
    """

    source: str
    status: Literal["ok", "failed"]
    variant: str
    error: str | None = None
    failure: str | None = None  # a Failure: the error for programs
    path: str = SPLIT  # or "local": the unsplit model, here
    fallback: str | None = None  # with "local": the Failure of the split path
    head: str | None = None  # precision of the head that ran
    coder: str | None = None
    index: int | None = None  # of the best class
    label: str | None = None
    score: float | None = None  # its softmax score
    wire_bytes: int | None = None  # the whole INFER message
    device_ms: float | None = None
    link_ms: float | None = None
    edge_ms: float | None = None
    total_ms: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    choice: dict[str, Any] | None = None  # how the variant was chosen for this image, if that was asked for
    edge: str | None = None  # the address of the edge that it went to, where the device has several
    advised: bool | None = None  # whether it went as the controller said; None: there is none, or its turn never came
    unadvised: str | None = None  # why it did not: a word of docs/controller.md


class Percentiles:
    """Percentiles of positive numbers: exact for some thousands, then within half a per cent, in bounded memory."""

    def __init__(self) -> None:
        self._values = array("d")  # and not a list: its numbers would lie about in memory for as long as the run
        self._buckets: dict[int, int] = {}
        self._count = 0

    def add(self, value: float) -> None:
        self._count += 1
        if not self._buckets and len(self._values) < _EXACT:
            self._values.append(value)
            return
        for moved in self._values:
            self._put(moved)
        del self._values[:]
        self._put(value)

    def at(self, percent: float) -> float | None:
        """None where there is no value."""
        if not self._count:
            return None
        if not self._buckets:
            return float(np.percentile(self._values, percent))
        rank = percent / 100 * (self._count - 1)
        below = 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            if below > rank:
                return math.exp((bucket + 0.5) * _STEP)
        raise AssertionError("unreachable: the last bucket holds the last rank")

    def _put(self, value: float) -> None:
        bucket = math.floor(math.log(min(max(value, 1e-6), 1e12)) / _STEP)  # at most 8,313 of them
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1


class RunTotals:
    """Counts and means over the images of a run, in bounded memory."""

    def __init__(self, images: Iterable[ImageReport] = ()) -> None:
        self._failures: dict[str, int] = {}
        self._paths = {SPLIT: 0, LOCAL: 0}
        self._failed = self._faults = 0
        self._advised, self._unadvised = 0, dict[str, int]()
        self._bytes, self._sized = 0, 0
        self._totals_ms = Percentiles()
        for image in images:
            self.add(image)

    def add(self, image: ImageReport) -> None:
        """One more image is done."""
        if image.advised:
            self._advised += 1
        elif image.unadvised is not None:
            self._unadvised[image.unadvised] = self._unadvised.get(image.unadvised, 0) + 1
        if image.status == "failed":
            self._failed += 1
            self._faults += image.failure not in NO_FAULT
            name = image.failure or Failure.INTERNAL
            self._failures[name] = self._failures.get(name, 0) + 1
            return
        self._paths[image.path] += 1
        if image.wire_bytes is not None:
            self._bytes += image.wire_bytes
            self._sized += 1
        if image.total_ms is not None:
            self._totals_ms.add(image.total_ms)

    @property
    def faults(self) -> int:
        """Images that failed, less those that a policy dropped or the user's end of the run cut off."""
        return self._faults

    def summary(self) -> dict[str, Any]:
        """Counts, the mean of the bytes and the 50th and 99th percentile of the total, of the images that are ok."""
        p50, p99 = self._totals_ms.at(50), self._totals_ms.at(99)
        told = {"advised": self._advised, "unadvised": dict(sorted(self._unadvised.items()))}
        return {
            "ok": sum(self._paths.values()),
            "failed": self._failed,
            "dropped": self._failures.get(Failure.DROPPED, 0),
            SPLIT: self._paths[SPLIT],
            LOCAL: self._paths[LOCAL],
            "failures": dict(sorted(self._failures.items())),
            "wire_bytes_mean": round(self._bytes / self._sized, 1) if self._sized else None,
            "total_ms_p50": None if p50 is None else round(p50, 3),
            "total_ms_p99": None if p99 is None else round(p99, 3),
            **(told if self._advised or self._unadvised else {}),  # with a controller
        }


@dataclass(frozen=True, slots=True)
class RunReport:
    """A whole run; ``document()`` is what ``run-device --json`` prints. ``images`` is empty where none were kept."""

    bundle_id: str
    images: list[ImageReport]
    interrupted: bool
    coders: dict[str, Any] | None = None  # with a coder that was chosen for each frame: how, at the end of the run
    totals: RunTotals | None = None  # None: of ``images``
    error: str | None = None  # why the source ended before its end

    def summary(self) -> dict[str, Any]:
        return self._totals().summary()

    @property
    def faults(self) -> int:
        """Images that failed by a fault, and not by policy or by the user's wish: what an exit status is about."""
        return self._totals().faults

    def document(self) -> dict[str, Any]:
        return {
            "bundle_id": self.bundle_id,
            "images": [asdict(image) for image in self.images],
            **self.ending(),
        }

    def ending(self) -> dict[str, Any]:
        """The document without its images: the last line of ``run-device --jsonl``."""
        return {
            "summary": self.summary(),
            "interrupted": self.interrupted,
            "error": self.error,
            "coder_choice": self.coders,
        }

    def _totals(self) -> RunTotals:
        return self.totals if self.totals is not None else RunTotals(self.images)
