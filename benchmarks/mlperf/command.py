"""MLPerf LoadGen's four scenarios over the whole system: a device process, a real socket, a ``serve-edge`` process.

    python -m benchmarks.mlperf [--data FOLDER/categories]          # reduced: about three minutes
    python -m benchmarks.mlperf --official --data FOLDER/categories # 600 s and more for each test: hours
    python -m benchmarks.mlperf --table                             # the last results, as Markdown

``split``: the device client's own pipeline, head here, tail on the edge. ``full``: the photograph's file to the edge.
``local``: the unsplit model on the device. Each scenario runs in performance mode and in accuracy mode; every answer
that LoadGen logged is compared with the models run directly, and the two modes with each other. Exit status 1: a test
failed, or an answer is wrong; 2: wrong use. INVALID is LoadGen's verdict, and no failure: it stands in the results.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError, SettingsError
from benchmarks.machine import describe_machine, write_result
from benchmarks.mlperf.confs import OFFICIAL, check_conf
from benchmarks.mlperf.loadgen import loadgen_module
from benchmarks.mlperf.photographs import open_photographs
from benchmarks.mlperf.series import Series, keep_logs, run_series
from benchmarks.mlperf.settings import (
    ARMS,
    SAMPLE_KINDS,
    SCENARIOS,
    JudgeError,
    JudgeSettings,
    SystemSettings,
)
from benchmarks.mlperf.table import line, table
from benchmarks.traffic import ZOO, default_data, named_bundle
from tests.bundles import serving

RESULTS = Path(__file__).parents[1] / "results" / "mlperf.json"
_REDUCED_PHOTOGRAPHS = 200


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        if options.table:
            print(_read_table(options.out))
            return 0
        return _run(options)
    except AecnnError as exc:
        print(exc, file=sys.stderr)
        return 2 if isinstance(exc, SettingsError) else 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mlperf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", default=ZOO, help="a path, or zoo:NAME")
    add("--variant", help="of the bundle; its first if not given")
    add("--coder", help="of the device; what it chooses itself if not given")
    add("--data", type=Path, default=default_data(), help="photographs in a folder for each category")
    add(
        "--split", type=Path, help="a training run's data.json, whose test photographs are taken; of the zoo's: its own"
    )
    add("--photographs", type=int, help=f"how many; 0: all; {_REDUCED_PHOTOGRAPHS} if not given, all with --official")
    add("--scenario", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="only these")
    add("--arm", nargs="+", choices=ARMS, default=ARMS, help="only these systems")
    add("--official", action="store_true", help="MLPerf's own minimums: 600 s, and its query counts")
    add("--seconds", type=float, help="at least, for each performance run; 8 if not given")
    add("--user-conf", type=Path, help="LoadGen's settings, in its own format")
    add("--server-target-qps", type=float, help="images a second; a share of what Offline reached if not given")
    add("--server-load", type=float, default=0.8, help="that share")
    add("--server-tries", type=int, default=2, help="Server runs, each at 3/4 of the rate before, until one is in time")
    add("--server-latency-ms", type=float, help="bound of the Server scenario; as in the user.conf if not given")
    add("--no-accuracy", action="store_true", help="performance mode only")
    add("--in-flight", type=int, default=8, help="requests of the device without an answer")
    add("--device-threads", type=int, default=1, help="of each model on the device")
    add("--edge-threads", type=int, default=1, help="of each model on the edge")
    add("--sample", choices=SAMPLE_KINDS, default="frame", help="what is in memory when the clock starts")
    add("--edge", help="an edge that runs elsewhere, ws://HOST:PORT; a process here if not given")
    add("--edge-arguments", default="", help="more options of serve-edge, as one text")
    add("--out", type=Path, default=RESULTS, help="the JSON; logs go to the folder of that name without .json")
    add("--table", action="store_true", help="print the results that --out has, and run nothing")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    tests = JudgeSettings(
        official=options.official,
        seconds=options.seconds,
        user_conf=options.user_conf,
        server_target_qps=options.server_target_qps,
        server_load=options.server_load,
        server_tries=options.server_tries,
        server_latency_ms=options.server_latency_ms,
        accuracy=not options.no_accuracy,
    )
    system = SystemSettings(
        variant=options.variant,
        coder=options.coder,
        in_flight=options.in_flight,
        device_threads=options.device_threads,
        edge_threads=options.edge_threads,
        sample=options.sample,
    )
    loadgen_module()
    lines = check_conf(tests.conf)
    lower = [key for key in lines if tests.official and key.rpartition(".")[2] in OFFICIAL]
    if tests.user_conf is not None and lower:
        raise SettingsError(f"{tests.conf} sets {lower[0]}, which is MLPerf's to say in an --official run; drop either")
    count = options.photographs
    if count is None:
        count = 0 if options.official else _REDUCED_PHOTOGRAPHS
    if count < 0:
        raise SettingsError(f"--photographs is {count}, expected 1 or more, or 0 for all")
    bundle = named_bundle(options.bundle)
    words = _words(tests)
    print(words, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = open_photographs(
            bundle, options.bundle, options.data, options.split, count, folder / "photographs"
        )
        with _edge(bundle, system, options) as (url, pid):
            series = Series(bundle, photographs, system, tests, options.scenario, options.arm, url, pid)
            rows = run_series(series, folder / "logs", lambda row: print(line(row), flush=True))
        good = all(row["answers"]["good"] for row in rows)
        document = {
            "benchmark": "mlperf",
            "command": ".venv/bin/python -m benchmarks.mlperf --data $AECNN_DATA/caltech101",
            "run": "official" if options.official else "reduced",
            "run_words": words,
            "loadgen": version("mlcommons-loadgen"),
            "bundle_id": bundle.id,
            "variant": bundle.variant(system.variant).id,
            "photographs": {
                "count": len(photographs.files),
                "origin": photographs.origin,
                "labelled": photographs.labels is not None,
            },
            "system": asdict(system),
            "answers_good": good,
            "rows": rows,
            **describe_machine(),
        }
        keep_logs(folder / "logs", options.out.with_suffix(""))
        write_result(options.out, document)
    invalid = sum(row["result"] != "VALID" for row in rows)
    print(
        f"{len(rows)} tests, {invalid} of them INVALID; answers: {'all right' if good else 'WRONG'}; "
        f"{'official' if options.official else 'reduced'} run; {options.out}"
    )
    return 0 if good else 1


@contextmanager
def _edge(bundle: Bundle, system: SystemSettings, options: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """The edge's address, and its process where it is one of ours."""
    if options.edge:
        yield options.edge, None
        return
    extra = ["--threads", str(system.edge_threads), *shlex.split(options.edge_arguments)]
    with ExitStack() as stack:
        try:
            edge = stack.enter_context(serving(bundle.path, *extra))
        except AssertionError as exc:
            raise JudgeError(str(exc).strip()) from None
        yield edge.url, edge.process.pid


def _words(tests: JudgeSettings) -> str:
    if tests.official:
        return "Official lengths: 600 s and more for each test, and MLPerf's query counts."
    seconds = "each test as long as its file says" if tests.seconds is None else f"{tests.seconds:g} s for each test"
    if tests.user_conf is not None:
        return f"Reduced run, settings of {tests.user_conf.name}: {seconds}, in place of 600 s."
    reduced = check_conf(tests.conf)
    if tests.seconds is None:
        seconds = f"{float(reduced['*.Offline.min_duration']) / 1e3:g} s for each test"
    return (
        f"Reduced run: {seconds} in place of 600 s, Offline {reduced['*.Offline.min_query_count']} samples or more in "
        f"place of 24576, MultiStream {reduced['*.MultiStream.min_query_count']} queries or more in place of 662, and "
        f"of MultiStream and Server the {reduced['*.Server.target_latency_percentile']}th percentile, not the 99th."
    )


def _read_table(path: Path) -> str:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return table(document)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise JudgeError(f"{path} has no results: {type(exc).__name__}: {exc}; run the tests first") from None
