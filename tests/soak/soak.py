"""The soak: honest devices on a bad link, hostile ones beside them, an edge that is killed; and what became of it."""

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.frames import read_frame
from benchmarks.traffic import make_traffic, planes_of
from tests.bundles import environment, make_bundle, make_photos, run_directly, run_full
from tests.link_proxy import LinkProxy, LinkSettings
from tests.soak.devices import DeviceProcess
from tests.soak.edge_keeper import EdgeKeeper
from tests.soak.hostile import Hostiles
from tests.soak.judges import MemoryVerdict, Shares, judge_memory, judge_shares, rss_bytes
from tests.soak.ledger import Ended, Expected, Ledger, Outcome, answered_within
from tests.soak.settings import SoakSettings

ROOT = Path(__file__).resolve().parents[2]
_PHOTOS = 16
_BEGIN_S = 4.0  # for the device processes to start
_LAST_ANSWERS_S = 60.0
_TIE = 1e-5

_lines = msgspec.json.Decoder(Outcome | Ended)


@dataclass(frozen=True, slots=True)
class SoakReport:
    """What a soak found; ``problems`` is empty where all is as it must be."""

    problems: list[str]
    outcomes: dict[str, int]
    kills: int
    cuts: int
    shares: Shares
    memory: list[MemoryVerdict]
    hostile: dict[str, dict[str, int]]
    seconds: float

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            "outcomes": self.outcomes,
            "kills": self.kills,
            "cuts": self.cuts,
            "shares": {str(device): round(share, 3) for device, share in self.shares.by_device.items()},
            "memory": {
                each.who: {
                    "begin_bytes": each.begin_bytes,
                    "end_bytes": each.end_bytes,
                    "growth": round(each.growth, 4),
                }
                for each in self.memory
            },
            "hostile": self.hostile,
        }

    def text(self) -> str:
        """For a person."""
        lines = [f"soak of {self.seconds:.0f} s: {self.kills} kills of the edge, {self.cuts} connections cut"]
        lines += [f"  {count:8,d}  {kind}" for kind, count in sorted(self.outcomes.items(), key=lambda item: -item[1])]
        shares = self.shares.by_device.values()
        if shares:
            lines.append(f"shares of the mean: {min(shares):.0%} to {max(shares):.0%}")
        for each in self.memory:
            sizes = f"{each.begin_bytes / 1e6:.1f} to {each.end_bytes / 1e6:.1f} MB"
            lines.append(f"memory of {each.who}: {sizes} ({each.growth:+.1%})")
        for name, counts in self.hostile.items():
            lines.append(f"{name}: " + ", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
        lines += [f"PROBLEM: {each}" for each in self.problems] or ["no problem was found"]
        return "\n".join(lines)


def run_soak(settings: SoakSettings, folder: Path, *, say: Callable[[str], None]) -> SoakReport:
    """Run it, with its files in ``folder``; ``say`` gets a line of the table every ``tick_s``."""
    started_s = time.perf_counter()
    make_bundle(folder / "bundle", seed=settings.seed)
    bundle = open_bundle(folder / "bundle")
    photos = make_photos(folder / "photos", _PHOTOS, seed=settings.seed)
    ledger = Ledger(_expected(bundle, photos))
    token, options = _token(folder)
    link = LinkSettings(delay_s=settings.delay_s, cut_every_s=settings.cut_every_s, seed=settings.seed)
    with ExitStack() as stack:
        edge = stack.enter_context(EdgeKeeper(bundle.path, folder, options))
        proxy = stack.enter_context(LinkProxy(edge.port, link))
        begin_s = time.perf_counter() + _BEGIN_S
        end_s = begin_s + settings.seconds
        processes = [
            stack.enter_context(_Devices(order, token, ledger, folder))
            for order in _orders(settings, bundle, photos, proxy.url, (begin_s, end_s))
        ]
        hostiles = stack.enter_context(Hostiles(edge.url, _traffic(bundle, photos), token=token, seed=settings.seed))
        _watch(settings, begin_s, edge, proxy, processes, ledger, say)
        proxy.stop_cutting()
        problems = [problem for each in processes if (problem := each.wait(_LAST_ANSWERS_S))]
        hostiles.stop()
        edge.stop()
    windows = [window for life in edge.lives if (window := life.settled(begin_s, end_s)) is not None]
    devices = range(settings.devices)
    shares = judge_shares(
        answered_within(ledger.answered, devices, windows),
        settings.smallest_share,
        asked=settings.frame_hz * sum(until_s - from_s for from_s, until_s in windows),
    )
    memory = [judge_memory("the edge", edge.longest_memory(), largest_growth=settings.memory_growth)]
    memory += [judge_memory(each.name, each.memory, largest_growth=settings.memory_growth) for each in processes]
    problems += [*edge.problems, *ledger.problems(devices), *shares.problems, *hostiles.problems()]
    problems += [each.problem for each in memory if each.problem]
    if edge.kills != settings.kills or not proxy.cuts:
        problems.append(f"{edge.kills} of {settings.kills} kills and {proxy.cuts} cuts: the soak was none")
    tally = {name: dict(counts) for name, counts in hostiles.tally.items()}
    took_s = time.perf_counter() - started_s
    return SoakReport(problems, dict(ledger.kinds), edge.kills, proxy.cuts, shares, memory, tally, took_s)


class _Devices:
    """A process of honest devices, and the thread that reads what it writes into the ledger."""

    def __init__(self, order: DeviceProcess, token: str, ledger: Ledger, folder: Path) -> None:
        self.name = f"device process {order.devices[0] + 1}"
        self.memory: list[tuple[float, int]] = []
        self._order, self._ledger = order, ledger
        self._environment = environment() | {"AECNN_TOKEN": token}
        self._errors = folder / f"{self.name.replace(' ', '-')}.log"
        self._thread = threading.Thread(target=self._read, name=self.name)

    def __enter__(self) -> "_Devices":
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.devices"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=self._environment,
            )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(msgspec.json.encode(self._order))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join()

    def look_at_memory(self) -> int:
        size = rss_bytes(self._process.pid) or 0
        if size:
            self.memory.append((time.perf_counter(), size))
        return size

    def wait(self, timeout_s: float) -> str | None:
        """Until every device has ended; what was wrong with that, if anything was."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"{self.name}: still at it {timeout_s:g} s after the last frame"
        self._thread.join()
        errors = self._errors.read_text(errors="replace").strip()
        return f"{self.name}: exit status {status}, {errors[-500:]!r}" if status or errors else None

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                told = _lines.decode(line)
                if isinstance(told, Ended):
                    self._ledger.end(told)
                else:
                    self._ledger.add(told)


def _watch(
    settings: SoakSettings,
    begin_s: float,
    edge: EdgeKeeper,
    proxy: LinkProxy,
    processes: list[_Devices],
    ledger: Ledger,
    say: Callable[[str], None],
) -> None:
    """Until the last frame: kill when it is time, look at memory, print."""
    kills = [begin_s + at_s for at_s in settings.kill_times_s]
    end_s, tick_s, before = begin_s + settings.seconds, begin_s + settings.tick_s, 0
    say(f"{'s':>6} {'kills':>5} {'cuts':>5} {'results/s':>9} {'outcomes':>9} {'edge MB':>8} {'devices MB':>10}")
    while (now_s := time.perf_counter()) < end_s:
        if kills and now_s >= kills[0]:
            kills.pop(0)
            edge.kill()
        edge_bytes, device_bytes = edge.look_at_memory(), sum(each.look_at_memory() for each in processes)
        if now_s >= tick_s:
            counts = ledger.counts()
            results = counts["split"]
            say(
                f"{now_s - begin_s:6.0f} {edge.kills:5d} {proxy.cuts:5d} {(results - before) / settings.tick_s:9.1f} "
                f"{counts.total():9d} {(edge_bytes or 0) / 1e6:8.1f} {device_bytes / 1e6:10.1f}"
            )
            tick_s, before = tick_s + settings.tick_s, results
        time.sleep(max(0.0, min(settings.sample_s, end_s - time.perf_counter())))


def _orders(
    settings: SoakSettings,
    bundle: Bundle,
    photos: list[Path],
    url: str,
    times_s: tuple[float, float],
) -> list[DeviceProcess]:
    return [
        DeviceProcess(
            bundle=str(bundle.path),
            url=url,
            photos=[str(photo) for photo in photos],
            devices=list(range(number, settings.devices, settings.processes)),
            frame_hz=settings.frame_hz,
            begin_s=times_s[0],
            end_s=times_s[1],
        )
        for number in range(settings.processes)
    ]


def _expected(bundle: Bundle, photos: list[Path]) -> Expected:
    """By ONNX Runtime alone, without any of our runners."""
    frames = [read_frame(photo, bundle.manifest.input) for photo in photos]
    variant = bundle.manifest.variants[0].id
    return Expected(
        split=[_best(run_directly(bundle, frame, variant)) for frame in frames],
        full=[_best(run_full(bundle, frame)) for frame in frames],
    )


def _best(logits: "np.ndarray[Any, Any]") -> frozenset[int]:
    """The best class, or those that tie with it: a batch may sum in another order."""
    return frozenset(np.flatnonzero(logits >= logits.max() - _TIE * np.abs(logits).max()).tolist())


def _traffic(bundle: Bundle, photos: list[Path]) -> Any:
    variant = bundle.manifest.variants[0].id
    frames = np.stack([read_frame(photo, bundle.manifest.input) for photo in photos])
    return make_traffic(bundle, variant, planes_of(bundle, variant, frames, threads=1))


def _token(folder: Path) -> tuple[str, list[str]]:
    """A token for the honest devices and the edge's options for it."""
    token, file = secrets.token_hex(16), folder / "tokens"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
        _write_tokens(out, token)
    return token, ["--token-file", str(file)]


def _write_tokens(out: TextIO, token: str) -> None:
    out.write(f"honest-devices {token}\n")
