"""``aecnn-deploy run-device``: classify images with a head here and its tail on an edge."""

import io
import json
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import print_json, say
from aecnn_deploy.cli.explain_choice import ChoiceLines
from aecnn_deploy.cli.guard_options import CaOption, CertOption, DeviceTokenOption, KeyOption
from aecnn_deploy.cli.service import log_warnings, stop_on_sigterm
from aecnn_deploy.cli.source_options import (
    DecodeThreadsOption,
    FpsOption,
    RealtimeOption,
    RetryOption,
    SourceOption,
    StallOption,
    source_settings,
)
from aecnn_deploy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aecnn_deploy.runtimes.run_report import ImageReport, RunReport

EXAMPLE = "Example: aecnn-deploy run-device bundle --edge ws://192.168.1.20:8765 --source photos/"

_HEADER = f"{'image':<22} {'label':<20} {'score':>5} {'bytes':>6} {'device':>6} {'link':>6} {'edge':>6}"


class Policy(StrEnum):
    """What becomes of a frame that waits for the head when a newer one is there."""

    LATEST = "latest"
    ALL = "all"


class Fallback(StrEnum):
    """What is done with a frame that the edge gives no result for."""

    LOCAL = "local"
    NONE = "none"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("run-device", epilog=EXAMPLE)(run_device)


def run_device(
    bundle: BundleArgument,
    edge: Annotated[
        list[str],
        typer.Option(
            help="Where the edge is: ws://HOST:PORT, wss://, http:// or https://; several: each image goes to one of "
            "them, NAME=URL gives one another name than its address."
        ),
    ],
    source: SourceOption,
    variant: Annotated[
        str | None,
        typer.Option(help="Variant to run; if not given, chosen for each image with --deadline-ms, else the first."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print a line of JSON for each image, and a last one with the summary.")
    ] = False,
    head: Annotated[
        str, typer.Option(help="Precision of the head: fp32, int8, or auto: the faster ('calibrate device').")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the head; 0 takes every core.")] = 0,
    spinning: Annotated[
        bool, typer.Option("--spinning/--no-spinning", help="Let idle ONNX Runtime threads burn their core.")
    ] = False,
    coder: Annotated[
        str | None,
        typer.Option(
            help="How the planes are coded: smallest, auto (the fastest on this link), or a coder. auto if the variant "
            "is chosen for each image, else smallest."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say how variants were chosen, and at the end how coders were.")
    ] = False,
    zstd_level: Annotated[int, typer.Option(help="zstd level of the planes, 1 to 22.")] = 3,
    deadline_ms: Annotated[float | None, typer.Option(help="Milliseconds for each image, from file to label.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="With --deadline-ms: choose among variants of this accuracy, 0 to 1, or more.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for the edge, each time.")] = 10.0,
    name: Annotated[
        str | None, typer.Option(help="What the edge's status page calls this device; the host's name if not given.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="Log each image on stderr as well: text, or json (one object a line).")
    ] = None,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: DeviceTokenOption = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many images.")] = None,
    fps: FpsOption = None,
    realtime: RealtimeOption = False,
    stall_s: StallOption = 10.0,
    source_retry: RetryOption = False,
    decode_threads: DecodeThreadsOption = 1,
    in_flight: Annotated[
        int, typer.Option(help="Requests without an answer at a time; 1: one image after the other.")
    ] = 4,
    policy: Annotated[
        Policy | None,
        typer.Option(help="latest: a newer frame replaces one that waits for the head; all: none is dropped."),
    ] = None,
    fallback: Annotated[
        Fallback, typer.Option(help="local: the unsplit model runs here while the edge is away.")
    ] = Fallback.NONE,
    controller: Annotated[
        str | None,
        typer.Option(help="Who says where each image goes: http://HOST:PORT or https://, with --deadline-ms."),
    ] = None,
) -> None:
    """Classify images: the head runs here, the edge does the rest.

    Prints a line for each image: label, score, bytes on the wire, and milliseconds on the device, the link and the
    edge. An image that fails does not end the run; the exit status is then 1.
    """
    from aecnn_deploy.runtimes import device_client
    from aecnn_deploy.runtimes.credentials import Credentials

    if as_json and as_jsonl:
        raise SettingsError("--json is one document and --jsonl a line for each image; choose one of them")
    settings = device_client.DeviceSettings(
        edge=edge[0],
        other_edges=tuple(edge[1:]),
        controller=controller,
        variant=variant,
        head=head,
        threads=threads,
        spinning=spinning,
        coder=coder,
        zstd_level=zstd_level,
        deadline_ms=deadline_ms,
        min_accuracy=min_accuracy,
        explain=explain,
        timeout_s=timeout_s,
        name=name,
        credentials=Credentials(ca, cert, key, token_file),
        in_flight=in_flight,
        policy=policy.value if policy is not None else None,
        fallback=fallback.value,
    )
    table = _Table(ChoiceLines())
    watchers: list[Callable[[ImageReport], None]] = [] if as_json else [_line if as_jsonl else table.row]
    if log_format is None:
        log_warnings("aecnn_deploy.device", "aecnn_deploy.device.source")
    else:
        from aecnn_deploy.runtimes.device_log import log_image
        from aecnn_deploy.runtimes.log_lines import LogSettings, configure_logging

        configure_logging(LogSettings(log_format, requests=True), sys.stderr)
        watchers.append(log_image)

    def done(image: "ImageReport") -> None:
        for watch in watchers:
            watch(image)

    with stop_on_sigterm() as stop:
        report = device_client.run_device(
            open_named(bundle),
            settings,
            source,
            stdin=_stdin(),
            source_settings=source_settings(fps, realtime, stall_s, source_retry, decode_threads),
            limit=limit,
            on_image=done,
            stop=stop,
            keep=as_json,
        )
    if as_json:
        print_json(report.document())
    elif as_jsonl:
        _print(json.dumps(report.ending(), ensure_ascii=False))
    else:
        table.end(report)
        if explain:
            _explain(report.coders)
    if report.error is not None:
        say(f"error: {report.error}")
    if report.interrupted and not stop.is_set():
        raise typer.Exit(130)
    raise typer.Exit(1 if report.faults or report.error is not None else 0)


def _stdin() -> BinaryIO:
    """Standard input by a reader of its own: a thread may still wait in it when Python ends, and must not hold
    ``sys.stdin``'s lock then."""
    if sys.stdin is None:  # closed before Python began
        return io.BytesIO()
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:  # called from a program that put something of its own in its place
        return sys.stdin.buffer


def _line(image: "ImageReport") -> None:
    _print(json.dumps(asdict(image), ensure_ascii=False))


def _explain(choice: "dict[str, Any] | None") -> None:
    """The link's rate and every coder's expected cost, the best first."""
    if choice is None:
        _print("the coder was fixed; --coder auto chooses the fastest for each frame, smallest the fewest bytes")
        return
    link, coders = choice["link"], choice["coders"]
    rate = f"{link['megabits_per_s']:,.3g} Mbit/s" if link["megabits_per_s"] else "too fast to measure"
    trip = f", {link['fixed_ms']:.2f} ms there and back" if link["fixed_ms"] is not None else ""
    _print(f"link: {rate}{trip}, from {link['frames']} frames")
    if "variant" in choice:
        _print(f"coders of {_fitted(choice['variant'], 69)}:")
    _print(f"{'coder':<12} {'bytes':>8} {'encode':>8} {'send':>9} {'decode':>8} {'together, ms':>13}")
    for row in coders:
        _print(
            f"{row['coder']:<12} {row['payload_bytes']:8,.0f} {row['encode_ms']:8.3f} {row['send_ms']:9.3f} "
            f"{row['decode_ms']:8.3f} {row['total_ms']:13.3f}"
        )
    if coders:
        end = "done first" if choice["objective"] == "time" else "the smallest"
        _print(f"{coders[0]['coder']} is expected to be {end}")


class _Table:
    """Lines of 80 columns, printed as the images are done."""

    def __init__(self, choices: ChoiceLines) -> None:
        self._begun, self._choices = False, choices

    def row(self, image: "ImageReport") -> None:
        self._row(image)
        for line in self._choices.of(image.source, image.choice):
            _print(line)

    def _row(self, image: "ImageReport") -> None:
        if not self._begun:
            _print(_HEADER)
            self._begun = True
        name = _fitted(image.source, 22)
        if image.failure == "dropped":
            _print(f"{name:<22} dropped")
            return
        if image.status == "failed":
            _print(f"{name:<22} failed: {_printable(image.error or '')}")
            return
        size = image.path if image.wire_bytes is None else image.wire_bytes
        _print(
            f"{name:<22} {_fitted(image.label or '', 20, from_left=True):<20} {image.score:5.3f} {size:>6} "
            f"{image.device_ms:6.1f} {image.link_ms:6.1f} {image.edge_ms:6.1f}"
        )

    def end(self, report: "RunReport") -> None:
        for line in self._choices.rest():
            _print(line)
        summary = report.summary()
        line = f"{summary['ok']} ok, {summary['failed']} failed"
        line += "".join(f", {summary[key]} {key}" for key in ("dropped", "local") if summary[key])
        if summary["wire_bytes_mean"] is not None:
            line += f"; mean {summary['wire_bytes_mean']:.0f} bytes"
        if summary["ok"]:
            line += f"; total p50 {summary['total_ms_p50']:.1f} ms, p99 {summary['total_ms_p99']:.1f} ms"
        _print(line + ("; interrupted" if report.interrupted else ""))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _printable(text: str) -> str:
    """File names are strangers' words: nothing in them may steer the terminal."""
    return "".join(mark if mark.isprintable() else "?" for mark in text)


def _fitted(text: str, columns: int, *, from_left: bool = False) -> str:
    """``text`` in at most ``columns``: of a path the end is kept, of a label the beginning."""
    text = _printable(text)
    if len(text) <= columns:
        return text
    return text[: columns - 1] + "…" if from_left else "…" + text[1 - columns :]
