"""Where ours spends its time under the comparison's load: CPU by thread, and the event loop's by function.

As a module of its own it is ``serve-edge`` that also writes which thread is which, and what cProfile saw on the event
loop's thread from a SIGUSR1 on.
"""

import cProfile
import json
import os
import pstats
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from benchmarks.peer_clients import Work
from benchmarks.peer_load import Load, Order, generate
from benchmarks.peer_model import PeerSettings
from benchmarks.peer_rounds import Plan
from benchmarks.peer_servers import IMAGE, PEERS, SPLIT, RunningPeer, free_port, running
from benchmarks.processes import Worker, sleep_until, working

_FOLDER = "AECNN_PROFILE_FOLDER"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SECONDS = 4.0
_FUNCTIONS = 20
_LOOK_S = 0.1


def profile(plan: Plan, works: Mapping[str, Work], bundle: Path, variant: str) -> str:
    """A report in Markdown of closed loops of split traffic and of whole images, some 20 seconds."""
    lines = []
    with working(generate, msgspec.msgpack.encode(dict(works)), set(plan.client_cores)) as clients:
        clients.receive()
        bare_ms = _bare_ms(bundle, variant, plan)
        for sent in (SPLIT, IMAGE):
            with tempfile.TemporaryDirectory() as folder:
                threads, load = _run(plan, clients, bundle, variant, sent, Path(folder))
                _run(plan, clients, bundle, variant, sent, Path(folder), loop=True)
                lines += _by_thread(sent, threads, load, bare_ms[sent])
                lines += _by_function(Path(folder), sent)
    return "\n".join(lines) + "\n"


def _run(
    plan: Plan, clients: Worker, bundle: Path, variant: str, sent: str, folder: Path, *, loop: bool = False
) -> tuple[dict[str, float], Load]:
    """CPU seconds by thread, and the load that they were taken under."""
    peer = replace(
        PEERS["ours"],
        command=lambda *given: [*_wrapped(PEERS["ours"].command(*given))],
        environment=lambda _: {_FOLDER: str(folder)},
    )
    settings = PeerSettings(bundle, variant, free_port(), len(plan.server_cores), plan.max_batch, plan.batch_wait_ms)
    front = peer.fronts[sent][0]
    with running(peer, settings, set(plan.server_cores), None) as server:
        target, work = front.target(server.port), f"{sent}/{front.body}"
        clients.send((target, work))
        if (said := clients.receive()) != "right":
            raise SystemExit(said)
        order = Order(target, work, plan.clients[0], _SECONDS)
        clients.send(order)
        clients.receive()
        start_s = time.perf_counter() + _LOOK_S
        clients.send(start_s)
        sleep_until(start_s + order.warm_up_s)
        if loop:
            server.process.send_signal(signal.SIGUSR1)
        before = _threads_cpu_s(server)
        sleep_until(start_s + order.warm_up_s + order.seconds)
        after = _threads_cpu_s(server)
        load: Load = clients.receive()
    names: dict[str, str] = json.loads((folder / "threads.json").read_text())
    found: dict[str, float] = {}
    for thread, cpu_s in after.items():
        name = names.get(str(thread), "not Python's")
        found[name] = found.get(name, 0.0) + cpu_s - before.get(thread, 0.0)
    return found, load


def _wrapped(command: list[str]) -> list[str]:
    """``python -m aecnn_deploy …`` through this module."""
    return [*command[:2], "benchmarks.peer_profile", *command[3:]]


def _threads_cpu_s(server: RunningPeer) -> dict[int, float]:
    found = {}
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return found


def _bare_ms(bundle: Path, variant: str, plan: Plan) -> dict[str, float]:
    """CPU milliseconds an image of the models alone, in batches of the largest size, on the servers' cores."""
    opened = open_bundle(bundle)
    files = {SPLIT: opened.variant(variant).tails["onnxruntime"], IMAGE: opened.manifest.full}
    found, mine = {}, os.sched_getaffinity(0)
    os.sched_setaffinity(0, plan.server_cores)
    for sent, name in files.items():
        with OnnxRuntimeRunner(opened.file(name), threads=len(plan.server_cores)) as runner:
            batch = np.zeros((plan.max_batch, *runner.input_shape), runner.input_dtype)
            took = []
            for _ in range(12):
                before_s = time.process_time()
                runner.infer(batch)
                took.append((time.process_time() - before_s) / plan.max_batch * 1e3)
        found[sent] = sorted(took)[len(took) // 2]
    os.sched_setaffinity(0, mine)
    return found


def _by_thread(sent: str, threads: dict[str, float], load: Load, bare_ms: float) -> list[str]:
    images = max(1, load.completed)
    lines = [
        f"**{sent}**: {load.images_per_s:.1f} images/s, {sum(threads.values()) / images * 1e3:.2f} ms of CPU an image; "
        f"the model alone takes {bare_ms:.2f} ms in batches of the largest size",
        "",
        "| thread | CPU, ms an image |",
        "| --- | --- |",
    ]
    ranked = sorted(threads.items(), key=lambda each: -each[1])
    return [*lines, *(f"| {name} | {cpu_s / images * 1e3:.3f} |" for name, cpu_s in ranked if cpu_s), ""]


def _by_function(folder: Path, sent: str) -> list[str]:
    """The event loop's functions by what they take themselves, as cProfile sees it (which slows them)."""
    stats = pstats.Stats(str(folder / "loop.pstats"))
    rows = sorted(stats.stats.items(), key=lambda each: -each[1][2])[:_FUNCTIONS]  # type: ignore[attr-defined]
    total_s = stats.total_tt  # type: ignore[attr-defined]
    lines = [
        f"The event loop's own CPU by function, {sent}:",
        "",
        "| function | share | calls |",
        "| --- | --- | --- |",
    ]
    for (file, line, function), (_, calls, own_s, _, _) in rows:
        place = f"{Path(file).parent.name}/{Path(file).name}:{line} " if file != "~" else ""
        lines.append(f"| `{place}{function}` | {own_s / total_s:.1%} | {calls} |")
    return [*lines, ""]


def main() -> None:
    """``serve-edge`` with the words of this command line."""
    from aecnn_deploy.cli.main import main as command_line

    folder, names = Path(os.environ[_FOLDER]), {}

    def look() -> None:
        while True:
            names.update({thread.native_id: thread.name for thread in threading.enumerate()})
            time.sleep(_LOOK_S)

    threading.Thread(target=look, name="this profile", daemon=True).start()
    profiler = cProfile.Profile(time.thread_time)  # waiting is no time
    signal.signal(signal.SIGUSR1, lambda *_: profiler.enable())
    sys.argv[0] = "aecnn-deploy"
    try:
        command_line()
    finally:
        profiler.disable()
        (folder / "threads.json").write_text(json.dumps(names))
        profiler.dump_stats(folder / "loop.pstats")


if __name__ == "__main__":
    main()
