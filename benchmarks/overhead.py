"""The time that our own code adds to one image, on each side of the link.

    .venv/bin/python -m benchmarks.overhead [--images N] [--out FILE]

A real ``serve-edge`` process and the device's real client (``runtimes.device_client.Device``, what ``run-device``
loops over) talk over loopback, for raw payloads of 1, 4 and 16 KiB of noise, which zstd cannot shrink. Models are
tiny, so that what is measured is not theirs. Milliseconds of one image:

* ``device``: the wall time of ``Device.run`` less three things: reading, decoding and resizing the image; the head's
  run; and the time inside the WebSocket library's send and receive, which is waiting for the link. Left are encoding,
  building and packing the message, parsing the answer, checks, bookkeeping and the report.
* ``edge``: what the edge states as its total less the tail's run: parsing our message, the hand-over to the tail's
  thread and back with the waking up of both, decoding, the top classes.
* ``wait``: the time inside the device's send and receive less the tail's run: the edge's side of our code, all of it,
  and beside it both WebSocket libraries, uvicorn, the kernel's loopback and waking up idle processes.
* ``bare``: the round trip of as many bytes, answered by as many as a RESULT has, between the same libraries with
  nothing of ours in between, measured in turns with ``wait`` so that both find equally idle processes: what waiting
  for the link costs here.
* ``edge_at_most`` = ``wait`` - ``bare`` (difference of medians): ``edge`` and what the edge does before and after its
  own clock runs, packing and sending the RESULT for one.

Not counted: process start, connecting, HELLO, the first images (warm-up), printing, and ``bare``.
The target is below 1.0 ms at the median for each side: ``device``, and the larger of ``edge`` and ``edge_at_most``.
Every answer is compared with head and tail run directly. The exit status is 1 when the target is missed or an answer
is wrong.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.device_client import Device, DeviceSettings
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.sources import SourceImage
from benchmarks.machine import describe_machine, write_result
from tests.bundles import Edge, TinyVariant, make_bundle, run_directly, serving

TARGET_MS = 1.0
SIZE = 256
VARIANTS = (
    TinyVariant("raw-1k", channels=4, stride=16, bits=8),
    TinyVariant("raw-4k", channels=4, stride=8, bits=8),
    TinyVariant("raw-16k", channels=16, stride=8, bits=8),
)
PARTS = ("device", "edge", "wait", "bare")
RESULT_BYTES = 330  # of a RESULT with five classes
BARE_EDGE = f"""
import socket
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

async def answer(websocket):
    await websocket.accept()
    while (await websocket.receive())["type"] != "websocket.disconnect":
        await websocket.send_bytes(bytes({RESULT_BYTES}))

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        print(sockets[0].getsockname()[1], flush=True)

config = uvicorn.Config(
    Starlette(routes=[WebSocketRoute("/", answer)]),
    ws="websockets-sansio", ws_per_message_deflate=False, lifespan="off", log_level="critical", access_log=False,
)
Server(config).run(sockets=[socket.create_server(("127.0.0.1", 0))])
"""
RESULTS = Path(__file__).parent / "results" / "overhead.json"
WARM_UP = 30


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=400, help="images for each payload size")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        make_bundle(Path(folder) / "bundle", variants=VARIANTS, size=SIZE)
        bundle = open_bundle(Path(folder) / "bundle")
        photos = _noise(Path(folder), 8)
        with serving(bundle.path) as edge, _bare_link() as bare:
            rows = [_measure(bundle, edge, bare, variant.id, photos, options.images) for variant in VARIANTS]
    worst = [max(row["device_ms"]["p50"], row["edge_ms"]["p50"], row["edge_at_most_ms"]) for row in rows]
    met = max(worst) < TARGET_MS
    document = {
        "benchmark": "overhead",
        "command": ".venv/bin/python -m benchmarks.overhead",
        "images": options.images,
        "target_ms": TARGET_MS,
        "met": met,
        "rows": rows,
        **describe_machine(),
    }
    write_result(options.out, document)
    _print(rows)
    print(f"target: each side below {TARGET_MS} ms at the median: {'met' if met else 'MISSED'}; {options.out}")
    return 0 if met else 1


@contextmanager
def _bare_link() -> Iterator[ClientConnection]:
    """A connection to a process that answers every message at once."""
    process = subprocess.Popen([sys.executable, "-c", BARE_EDGE], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"ws://127.0.0.1:{int(process.stdout.readline())}/"
        with connect(url, compression=None, proxy=None) as connection:
            yield connection
    finally:
        process.kill()
        process.communicate()


def _round_trip_ms(bare: ClientConnection, size_bytes: int) -> float:
    message = bytes(size_bytes)
    started_s = time.perf_counter()
    bare.send(message)
    assert len(bare.recv(timeout=10)) == RESULT_BYTES
    return (time.perf_counter() - started_s) * 1e3


def _measure(
    bundle: Bundle, edge: Edge, bare: ClientConnection, variant: str, photos: list[Path], count: int
) -> dict[str, Any]:
    expected = [
        int(np.argmax(run_directly(bundle, read_frame(photo, bundle.manifest.input), variant))) for photo in photos
    ]
    samples: dict[str, list[float]] = {part: [] for part in PARTS}
    sizes = []
    with Device(bundle, DeviceSettings(edge.url, variant=variant, threads=1)) as device:
        for number in range(WARM_UP + count):
            image = SourceImage("noise", photos[number % len(photos)])
            started_s = time.perf_counter()
            report = device.run(image)
            wall_ms = (time.perf_counter() - started_s) * 1e3
            if report.status != "ok" or report.index != expected[number % len(photos)]:
                raise SystemExit(f"{variant}: wrong answer: {report}, expected class {expected[number % len(photos)]}")
            if number < WARM_UP:
                continue
            stages = report.stages_ms
            assert report.edge_ms is not None
            assert report.wire_bytes is not None
            device_ms = wall_ms - stages["read"] - stages["head"] - stages["wait"]
            edge_ms = report.edge_ms - stages["edge_tail"]
            wait_ms = stages["wait"] - stages["edge_tail"]
            _same_pause(bundle, image)
            bare_ms = _round_trip_ms(bare, report.wire_bytes)
            for part, value in zip(PARTS, (device_ms, edge_ms, wait_ms, bare_ms), strict=True):
                samples[part].append(value)
            sizes.append(report.wire_bytes)
    row: dict[str, Any] = {
        "variant": variant,
        "raw_bytes": bundle.variant(variant).plane_bytes,
        "wire_bytes_mean": round(float(np.mean(sizes)), 1),
    }
    for part, values in samples.items():
        p50, p90, p99 = map(float, np.percentile(values, (50, 90, 99)))
        row[f"{part}_ms"] = {"p50": round(p50, 4), "p90": round(p90, 4), "p99": round(p99, 4)}
    row["edge_at_most_ms"] = round(row["wait_ms"]["p50"] - row["bare_ms"]["p50"], 4)
    return row


def _same_pause(bundle: Bundle, image: SourceImage) -> None:
    """What a device does before it sends: the bare link must find its peer as idle as the edge was."""
    read_frame(image.content, bundle.manifest.input)


def _noise(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"noise{number}.bmp" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (SIZE * 9 // 8, SIZE * 9 // 8, 3), dtype=np.uint8)).save(path)
    return paths


def _print(rows: list[dict[str, Any]]) -> None:
    print("milliseconds, median/99th percentile")
    print(f"{'raw':>6} {'wire':>6} " + " ".join(f"{part:>12}" for part in PARTS) + "  edge<=")
    for row in rows:
        cells = (f"{row[f'{part}_ms']['p50']:6.3f}/{row[f'{part}_ms']['p99']:6.2f}" for part in PARTS)
        print(
            f"{row['raw_bytes']:6d} {row['wire_bytes_mean']:6.0f} "
            + " ".join(f"{cell:>12}" for cell in cells)
            + f" {row['edge_at_most_ms']:7.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
