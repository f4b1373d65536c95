"""A drive through a tunnel: the device's live choice against every fixed variant and full offloading.

    .venv/bin/python -m benchmarks.link_drive [--data FOLDER]

Labelled test photographs at a fixed pace over a link whose uplink follows one of ``TRACES`` and whose downlink is ten
times as fast (``benchmarks.namespaces``; needs root), one thread for each half's models. Every arm drives alone, with
the same photographs at the same moments: ``live`` (``run_frames`` with a deadline and no variant), every variant alone
(coder ``auto``), full offloading as JPEG (``benchmarks.link_drivers``).

Per frame: answered in time or not, and by which variant. ``score`` is the mean over all frames of (in time) × (accuracy
that the manifest states for the variant that answered); ``right`` the share of frames in time with the right label.
``hindsight``: for each frame the best score among the fixed variants' drives, and once more with full offloading's.
Bounds: live is above every fixed variant and above full offloading, and at 95 % or more of hindsight over the variants.
``followed``: for each stretch of the trace, after how many frames the live choice came to what it stays with there. The
exit status is 1 when a bound is missed.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from aecnn_deploy.bundle.manifest import Manifest
from benchmarks.link_arms import short_name
from benchmarks.link_drivers import READY, Drive, Driver, Outcome, drive_process
from benchmarks.link_edge import serving_at
from benchmarks.link_fig5 import labelled_test_photographs
from benchmarks.link_figures import draw_drive
from benchmarks.machine import describe_machine, write_result
from benchmarks.namespaces import Link, linked, why_not
from benchmarks.processes import Worker, sleep_until, working
from benchmarks.traffic import ZOO, default_data, named_bundle

# Seconds, and Mbit/s for so long: good, into a tunnel, out of it, good again; by stairs, or from one frame to the next.
# In the tunnel only the smallest message fits the default deadline; everything, full offloading too, fits it in the
# good parts.
TRACES: Mapping[str, Sequence[tuple[float, float]]] = MappingProxyType(
    {
        "stairs": (
            (9.0, 10.0),
            (1.0, 2.0),
            (1.0, 0.7),
            (1.0, 0.35),
            (7.0, 0.2),
            (1.0, 0.35),
            (1.0, 0.7),
            (1.0, 2.0),
            (8.0, 10.0),
        ),
        "wall": ((11.0, 10.0), (8.0, 0.2), (11.0, 10.0)),
    }
)
DOWNLINK = 10.0  # times the uplink's rate, as links to a network's edge are made
LIVE = Driver("live")
FULL = Driver("full, jpeg-q75", image_coding="jpeg-q75")
HINDSIGHT_BOUND = 0.95
WARM_UP_S = 2.0  # at the first rate
_STAYS = 3  # frames in a row, and it has followed
_LEAD_S = 0.5
_ANSWER_S = 120.0
_SEED = 0
_FOLDER = Path(__file__).parent
RESULTS = _FOLDER / "results"
FIGURES = _FOLDER.parent / "docs" / "figures"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if reason := why_not():
        print(f"link_drive skipped: {reason}")
        return 0
    if options.data is None:
        print("link_drive skipped: no photographs; give --data or set AECNN_DATA")
        return 0
    bundle = named_bundle(options.bundle)
    trace = [(seconds * options.scale, rate * 1e6) for seconds, rate in TRACES[options.trace]]
    photographs = _photographs(options, sum(seconds for seconds, _ in trace))
    fixed = [Driver(variant.id, variant.id) for variant in bundle.manifest.variants]
    drivers = [LIVE, *fixed, FULL] if not options.no_live else [*fixed, FULL]
    drives: dict[str, list[Outcome]] = {}
    with (
        linked(downlink=options.downlink) as link,
        serving_at(link, str(bundle.path)) as url,
        working(drive_process, link.names["device"], str(bundle.path), url) as device,
    ):
        device.receive()
        for driver in drivers:
            drives[driver.name] = _driven(link, device, _drive(driver, photographs, options), trace)
            print(f"{driver.name}: {sum(each.in_time for each in drives[driver.name])} in time", file=sys.stderr)
    counted = photographs[-len(drives[FULL.name]) :]
    document = _document(options, bundle.manifest, trace, counted, drives)
    write_result(options.out, document)
    print(table(document))
    draw_drive(document, options.figure)
    print(f"{document['met']}; {options.out}, {options.figure}")
    return 0 if all(document["met"].values()) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="the folder caltech101")
    parser.add_argument("--bundle", default=ZOO, help="a bundle, or zoo:NAME")
    parser.add_argument("--trace", choices=TRACES, default="stairs", help="how the rate changes")
    parser.add_argument("--pace-hz", type=float, default=10.0, help="frames a second")
    parser.add_argument("--deadline-ms", type=float, default=70.0, help="of each frame, from when it is due")
    parser.add_argument("--scale", type=float, default=1.0, help="of the trace's times; 0.4 for a trial")
    parser.add_argument("--no-live", action="store_true", help="without the live choice")
    parser.add_argument("--downlink", type=float, default=DOWNLINK, help="its rate, as a multiple of the uplink's")
    parser.add_argument(
        "--out", type=Path, help=f"where to write the JSON; {RESULTS.name}/link_drive_TRACE.json if not given"
    )
    parser.add_argument("--figure", type=Path, help=f"where to draw; {FIGURES.name}/link_drive_TRACE.png if not given")
    options = parser.parse_args(arguments)
    options.out = options.out or RESULTS / f"link_drive_{options.trace}.json"
    options.figure = options.figure or FIGURES / f"link_drive_{options.trace}.png"
    return options


def _photographs(options: argparse.Namespace, seconds: float) -> list[Path]:
    """One for each frame, the warm-up's first; drawn with a fixed seed, again from the beginning when all were."""
    names = labelled_test_photographs(options.data)
    order = np.random.default_rng(_SEED).permutation(len(names))
    count = round((seconds + WARM_UP_S) * options.pace_hz)
    return [names[int(order[number % len(order)])] for number in range(count)]


def _drive(driver: Driver, photographs: list[Path], options: argparse.Namespace) -> Drive:
    return Drive(driver, photographs, round(WARM_UP_S * options.pace_hz), options.pace_hz, options.deadline_ms)


def _driven(link: Link, device: Worker, drive: Drive, trace: list[tuple[float, float]]) -> list[Outcome]:
    """The outcomes of the frames that count."""
    link.shape(None)
    device.send(drive)
    ready = device.receive(_ANSWER_S)
    assert ready == READY
    link.shape(trace[0][1])
    moment_s = time.perf_counter() + drive.warm_up / drive.pace_hz + _LEAD_S
    device.send(moment_s)
    for seconds, rate_bps in trace:
        sleep_until(moment_s)
        link.shape(rate_bps)
        moment_s += seconds
    outcomes: list[Outcome] = device.receive(_ANSWER_S)
    link.shape(None)
    assert len(outcomes) == len(drive.photographs) - drive.warm_up
    return outcomes


def _document(
    options: argparse.Namespace,
    manifest: Manifest,
    trace: list[tuple[float, float]],
    photographs: list[Path],
    drives: dict[str, list[Outcome]],
) -> dict[str, Any]:
    accuracy = {variant.id: variant.accuracy for variant in manifest.variants}
    accuracy[FULL.name] = manifest.measurements.get("unsplit_accuracy")
    if None in accuracy.values():
        raise SystemExit(
            f"the bundle states no accuracy of {[name for name, value in accuracy.items() if value is None]}"
        )
    gains = {name: [_gain(each, name, accuracy) for each in outcomes] for name, outcomes in drives.items()}
    variants = [gains[variant.id] for variant in manifest.variants]
    letters = {name: chr(ord("a") + number) for number, name in enumerate(accuracy)}
    hindsight = {
        "variants": round(float(np.mean(np.max(variants, axis=0))), 4),
        "variants and full offloading": round(float(np.mean(np.max([*variants, gains[FULL.name]], axis=0))), 4),
    }
    scores = {name: round(float(np.mean(each)), 4) for name, each in gains.items()}
    met: dict[str, bool] = {}
    if LIVE.name in drives:
        met["above every other"] = all(scores[LIVE.name] > score for name, score in scores.items() if name != LIVE.name)
        met["hindsight"] = scores[LIVE.name] >= HINDSIGHT_BOUND * hindsight["variants"]
    rows = [
        {
            "arm": name,
            "score": scores[name],
            "of_hindsight": round(scores[name] / hindsight["variants"], 4),
            "in_time": round(float(np.mean([each.in_time for each in outcomes])), 4),
            "right": round(_right(outcomes, photographs), 4),
            "variants": dict(Counter(str(each.variant) for each in outcomes if each.in_time).most_common()),
            "failures": dict(Counter(each.failure for each in outcomes if each.failure).most_common()),
            "in_time_by_stretch": _by_stretch(outcomes, trace, options.pace_hz),
        }
        for name, outcomes in drives.items()
    ]
    return {
        "benchmark": "link_drive",
        "command": f".venv/bin/python -m benchmarks.link_drive --trace {options.trace} --data $AECNN_DATA/caltech101",
        "downlink": options.downlink,
        "bundle_id": manifest.bundle_id,
        "trace": [{"seconds": seconds, "rate_bps": rate_bps} for seconds, rate_bps in trace],
        "pace_hz": options.pace_hz,
        "deadline_ms": options.deadline_ms,
        "frames": len(photographs),
        "bounds": {"of_hindsight": HINDSIGHT_BOUND},
        "met": met,
        "hindsight": hindsight,
        "accuracy": accuracy,
        "rows": rows,
        "followed": _followed(drives[LIVE.name], trace, options.pace_hz) if LIVE.name in drives else None,
        "letters": letters,
        "frames_by_arm": {name: _in_letters(name, outcomes, letters) for name, outcomes in drives.items()},
        **describe_machine(),
    }


def _in_letters(arm: str, outcomes: list[Outcome], letters: dict[str, str]) -> str:
    """A letter for each frame: of what was chosen, a capital one where it was in time; a dot where nothing was."""
    marks = (letters.get(each.variant or arm, ".") for each in outcomes)
    return "".join(mark.upper() if each.in_time else mark for mark, each in zip(marks, outcomes, strict=True))


def _gain(outcome: Outcome, arm: str, accuracy: dict[str, float | None]) -> float:
    """A frame's part of the score."""
    return (accuracy[outcome.variant or arm] or 0.0) if outcome.in_time else 0.0


def _right(outcomes: list[Outcome], photographs: list[Path]) -> float:
    """The share of all frames whose label came in time and is right."""
    pairs = zip(outcomes, photographs, strict=True)
    return float(np.mean([each.in_time and each.label == photograph.parent.name for each, photograph in pairs]))


def _stretches(trace: list[tuple[float, float]], pace_hz: float, count: int) -> list[tuple[int, int]]:
    """The first frame of each stretch of the trace, and the first after it."""
    ends = [min(count, round(sum(seconds for seconds, _ in trace[: each + 1]) * pace_hz)) for each in range(len(trace))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _by_stretch(outcomes: list[Outcome], trace: list[tuple[float, float]], pace_hz: float) -> list[float]:
    stretches = _stretches(trace, pace_hz, len(outcomes))
    return [round(float(np.mean([each.in_time for each in outcomes[first:end]])), 3) for first, end in stretches]


def _followed(outcomes: list[Outcome], trace: list[tuple[float, float]], pace_hz: float) -> list[dict[str, Any]]:
    """For each stretch what was chosen mostly in its second half, and when this had been chosen three times in a row.

    ``frames`` counts those before; None: it never was.
    """
    rows = []
    for (first, end), (_, rate_bps) in zip(_stretches(trace, pace_hz, len(outcomes)), trace, strict=True):
        chosen = [each.variant for each in outcomes[first:end]]
        mostly = Counter(chosen[len(chosen) // 2 :]).most_common(1)[0][0]
        runs = (number for number in range(len(chosen)) if chosen[number : number + _STAYS] == [mostly] * _STAYS)
        frames = next(runs, None)
        in_time = next((number for number, each in enumerate(outcomes[first:end]) if each.in_time), None)
        rows.append(
            {
                "rate_bps": rate_bps,
                "variant": mostly,
                "frames": frames,
                "seconds": None if frames is None else round(frames / pace_hz, 3),
                "first_in_time": in_time,
            }
        )
    return rows


def table(document: dict[str, Any]) -> str:
    """Markdown: an arm a line."""
    rates = " | ".join(f"{each['rate_bps'] / 1e6:g}" for each in document["trace"])
    lines = [
        f"| arm | score | of hindsight | in time | right and in time | {rates} |",
        "|---|---|---|---|---|" + "---|" * len(document["trace"]),
    ]
    for row in document["rows"]:
        stretches = " | ".join(f"{share:.0%}" for share in row["in_time_by_stretch"])
        lines.append(
            f"| {short_name(row['arm'])} | {row['score']:.3f} | {row['of_hindsight']:.1%} | {row['in_time']:.1%} | "
            f"{row['right']:.1%} | {stretches} |"
        )
    lines += [f"| hindsight over {name} | {score:.3f} | |" for name, score in document["hindsight"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
