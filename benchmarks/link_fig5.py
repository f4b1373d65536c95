"""Completion times over links of stated rates, measured: what AECNN's Fig. 5 draws from its model.

    .venv/bin/python -m benchmarks.link_fig5 [--data FOLDER]

A device process and an edge process in two network namespaces, a link of 1 to 150 Mbit/s between them
(``benchmarks.namespaces``; needs root), one thread for each half's model, one image after the other. Arms
(``benchmarks.link_arms``): every variant of the bundle with the coder of the fewest bytes and raw; full offloading as
JPEG, WebP and BMP of the model's frame, and as the photograph's file; the unsplit model on the device. Rates and arms
take turns in rounds, the link without a rate among them, so that the machine's mood hits all alike. Every answer's
class is compared with the models run directly.

* ``expected_ms`` of a cell: for each of its images what the same arm took for the same photograph without a shaper
  (median over the rounds) + (its bytes on the uplink + those of the answer on the downlink, headers included) × 8 ÷
  rate; of these the median. Bound: |p50 − expected| is at most 10 % of expected + 2 ms.
* ``predicted_ms``: what the planner says, from profiles measured in the same run (``benchmarks.link_predictions``).
  Bound: the mean of |predicted − p50| ÷ p50 over all arms and rates is at most 10 %.

The exit status is 1 when a bound is missed, or the shaper is not what it says (``benchmarks.shaper_check``).
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle
from benchmarks.link_arms import Arm, Done, Order, Sample, alike, all_arms, device_process, link_bytes, right_classes
from benchmarks.link_edge import serving_at
from benchmarks.link_figures import draw_fig5
from benchmarks.machine import describe_machine, write_result
from benchmarks.namespaces import Link, linked, why_not
from benchmarks.processes import Worker, working
from benchmarks.shaper_check import RATES_BPS, check_shaper
from benchmarks.traffic import ZOO, default_data, named_bundle

SHARE, MARGIN_MS = 0.10, 2.0  # of an expected time, and beside it
PREDICTION_BOUND = 0.10
WARM_UP_IMAGES = 3
_ANSWER_S = 300.0
_FOLDER = Path(__file__).parent
RESULTS = _FOLDER / "results" / "link_fig5.json"
SPLIT = _FOLDER / "results" / "caltech101-lite0" / "h100" / "data.json"
FIGURE = _FOLDER.parent / "docs" / "figures" / "link_fig5.png"

Cell = tuple[Arm, float | None]  # an arm at a rate; None: without a shaper
Measured = tuple[dict[Cell, list[Sample]], dict[Arm, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if reason := why_not():
        print(f"link_fig5 skipped: {reason}")
        return 0
    if options.data is None:
        print("link_fig5 skipped: no photographs; give --data or set AECNN_DATA")
        return 0
    bundle = named_bundle(options.bundle)
    photographs = alike(labelled_test_photographs(options.data), options.photographs)
    arms = all_arms(bundle, photographs)
    with linked(downlink=options.downlink) as link:
        shaper = check_shaper(link, options.rates)
        with serving_at(link, str(bundle.path)) as url:
            predicted = None if options.no_predictions else _predictions(link, bundle, url, photographs, arms, options)
            names = (link.names["device"], str(bundle.path), url, photographs)
            with working(device_process, *names) as device:
                device.receive()
                cells, answers = _measure(link, device, arms, options)
    _check(bundle, arms, photographs, cells)
    rows = _rows(cells, answers, predicted, options.downlink)
    document = _document(options, bundle, photographs, shaper, rows)
    write_result(options.out, document)
    print(table(rows))
    draw_fig5(rows, options.figure)
    print(f"{document['met']}; {options.out}, {options.figure}")
    return 0 if all(document["met"].values()) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="the folder caltech101")
    parser.add_argument("--bundle", default=ZOO, help="a bundle, or zoo:NAME")
    parser.add_argument("--photographs", type=int, default=16, help="how many different ones, all of one size")
    parser.add_argument("--images", type=int, default=8, help="of each arm, rate and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cell-s", type=float, default=8.0, help="about the longest time for the images of a round")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES_BPS, help="bits a second")
    parser.add_argument("--no-predictions", action="store_true", help="without the planner's profiles")
    parser.add_argument("--downlink", type=float, default=1.0, help="its rate, as a multiple of the uplink's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="where to draw")
    return parser.parse_args(arguments)


def labelled_test_photographs(data: Path) -> list[Path]:
    """The photographs that no training of the zoo's bundle saw."""
    names: list[str] = json.loads(SPLIT.read_text())["test"]
    return [data / name for name in names]


def _predictions(
    link: Link, bundle: Bundle, url: str, photographs: list[Path], arms: list[Arm], options: argparse.Namespace
) -> dict[tuple[Arm, float], float]:
    """The planner's milliseconds, from profiles that are measured now: the link's at the fastest rate."""
    from benchmarks.link_predictions import calibrate, predictions

    with tempfile.TemporaryDirectory() as folder:
        images, profiles = Path(folder, "photographs"), Path(folder, "profiles")
        images.mkdir()
        for number, photograph in enumerate(photographs):
            shutil.copy(photograph, images / f"{number:03d}.jpg")
        link.shape(max(options.rates))
        calibrate(link, str(bundle.path), url, images, profiles)
        with Image.open(photographs[0]) as image:
            size = image.size
        return predictions(bundle, profiles, arms, options.rates, size, downlink=options.downlink)


def _measure(link: Link, device: Worker, arms: list[Arm], options: argparse.Namespace) -> Measured:
    """All cells' samples, in rounds, and the mean bytes of each arm's answers."""
    cells: dict[Cell, list[Sample]] = defaultdict(list)
    answers: dict[Arm, list[float]] = defaultdict(list)
    link.shape(None)
    for arm in arms:
        device.ask(Order(arm, [each % options.photographs for each in range(WARM_UP_IMAGES)]), _ANSWER_S)
    for turn in range(options.rounds):
        for rate_bps in (None, *options.rates):
            link.shape(rate_bps)
            for arm in arms:
                count = options.images
                if rate_bps is not None:
                    each_s = _expected_s(cells[arm, None], arm, rate_bps)
                    count = min(count, max(1, int(options.cell_s / each_s)))
                first = turn * options.images
                numbers = [(first + each) % options.photographs for each in range(count)]
                done: Done = device.ask(Order(arm, numbers), _ANSWER_S)
                cells[arm, rate_bps] += done.samples
                if rate_bps is None:
                    answers[arm].append(done.answer_bytes)
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
    link.shape(None)
    return cells, {arm: median(each) for arm, each in answers.items()}


def _expected_s(alone: list[Sample], arm: Arm, rate_bps: float) -> float:
    return median(each.ms / 1e3 + link_bytes(arm, each.sent_bytes) * 8 / rate_bps for each in alone)


def _check(bundle: Bundle, arms: list[Arm], photographs: list[Path], cells: dict[Cell, list[Sample]]) -> None:
    """Raises SystemExit: an answer is not what the models say when they are run directly."""
    right = right_classes(bundle, arms, photographs)
    for (arm, rate_bps), samples in cells.items():
        for each in samples:
            if each.index not in right[arm][each.photograph]:
                path = photographs[each.photograph]
                raise SystemExit(f"{arm.name} at {rate_bps} bit/s: {path} is {each.index}, not {right[arm]}")


def _rows(
    cells: dict[Cell, list[Sample]],
    answers: dict[Arm, float],
    predicted: dict[tuple[Arm, float], float] | None,
    downlink: float,
) -> list[dict[str, Any]]:
    """A row of the document for each cell."""
    rows = []
    for (arm, rate_bps), samples in cells.items():
        p50, p99 = np.percentile([each.ms for each in samples], (50, 99))
        row: dict[str, Any] = {
            "arm": arm.name,
            "variant": arm.variant,
            "coder": arm.coder,
            "image_coding": arm.image_coding,
            "rate_bps": rate_bps,
            "images": len(samples),
            "sent_bytes_mean": round(float(np.mean([each.sent_bytes for each in samples])), 1),
            "link_bytes_mean": round(float(np.mean([link_bytes(arm, each.sent_bytes) for each in samples])), 1),
            "answer_link_bytes": round(answers[arm], 1),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
        }
        if rate_bps is not None:
            expected = _expected_ms(cells[arm, None], arm, answers[arm] / downlink, rate_bps, samples)
            row["expected_ms"] = round(expected, 3)
            row["off_ms"] = round(float(p50) - expected, 3)
            row["met"] = bool(abs(p50 - expected) <= SHARE * expected + MARGIN_MS)
            if predicted is not None:
                row["predicted_ms"] = round(predicted[arm, rate_bps], 3)
                row["prediction_error"] = round(abs(predicted[arm, rate_bps] / float(p50) - 1), 4)
        rows.append(row)
    return rows


def _expected_ms(alone: list[Sample], arm: Arm, answer_bytes: float, rate_bps: float, samples: list[Sample]) -> float:
    """The median over ``samples`` of what each photograph took alone + bytes ÷ rate.

    ``answer_bytes``: as many as would take as long on the uplink.
    """
    took_ms: dict[int, list[float]] = defaultdict(list)
    for each in alone:
        took_ms[each.photograph].append(each.ms)
    return median(
        median(took_ms[each.photograph]) + (link_bytes(arm, each.sent_bytes) + answer_bytes) * 8e3 / rate_bps
        for each in samples
    )


def _document(
    options: argparse.Namespace,
    bundle: Bundle,
    photographs: list[Path],
    shaper: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    shaped = [row for row in rows if row["rate_bps"] is not None]
    errors = [row["prediction_error"] for row in shaped if "prediction_error" in row]
    met = {"shaper": all(row["met"] for row in shaper), "completion_time": all(row["met"] for row in shaped)}
    prediction = None
    if errors:
        prediction = {"mean_absolute_error": round(float(np.mean(errors)), 4), "largest": max(errors)}
        met["prediction"] = prediction["mean_absolute_error"] <= PREDICTION_BOUND
    return {
        "benchmark": "link_fig5",
        "command": ".venv/bin/python -m benchmarks.link_fig5 --data $AECNN_DATA/caltech101",
        "downlink": options.downlink,
        "bundle_id": bundle.id,
        "photographs": [str(Path(*each.parts[-2:])) for each in photographs],
        "rounds": options.rounds,
        "bounds": {"share": SHARE, "margin_ms": MARGIN_MS, "prediction": PREDICTION_BOUND},
        "met": met,
        "cells": len(shaped),
        "cells_met": sum(row["met"] for row in shaped),
        "prediction": prediction,
        "shaper_check": shaper,
        "rows": rows,
        **describe_machine(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: an arm a line, for each rate p50 / p99 in milliseconds, and what is wrong with a cell."""
    rates = sorted({row["rate_bps"] for row in rows if row["rate_bps"] is not None})
    by_arm: dict[str, dict[float | None, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_arm[row["arm"]][row["rate_bps"]] = row
    lines = [
        "| arm | bytes | alone | " + " | ".join(f"{rate / 1e6:g} Mbit/s" for rate in rates) + " |",
        "|---|---|---|" + "---|" * len(rates),
    ]
    for arm, found in by_arm.items():
        cells = [f"{found[None]['p50_ms']:.1f}", *(_shown(found[rate]) for rate in rates)]
        lines.append(f"| {arm} | {found[None]['sent_bytes_mean']:,.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(row: dict[str, Any]) -> str:
    return f"{row['p50_ms']:.1f} / {row['p99_ms']:.1f}{'' if row['met'] else ' MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
