"""Two edges, six devices and a controller as processes: one edge is slowed, and what the devices make of it."""

import json
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.offloading.agent.onnx_file import policy_facts, write_policy
from aecnn_deploy.offloading.agent.settings import TrainSettings
from aecnn_deploy.offloading.agent.trainer import Trainer
from aecnn_deploy.offloading.mec.profile import Option, Profile
from aecnn_deploy.offloading.mec.scenario import Devices, Radio, Scenario, Servers, Uncertainty
from aecnn_deploy.planning.live_candidates import ranking
from aecnn_deploy.zoo import zoo_bundle
from tests.bundles import COMMAND, Edge, environment, make_photos, serving

BUNDLE = "zoo:caltech101-lite0"
DEVICES, EVERY_S, DEADLINE_MS = 6, 0.3, 150.0
ROUNDS, START_S, WELL_S, SLOW_S = 2, 3.0, 2.0, 7.0
RUN_S, STOP_S = 0.05, 0.35  # of an edge that is slowed
READY_S = 60.0


@dataclass
class Device:
    """A ``run-device`` process that is given a photograph every so often, and what became of each."""

    process: "subprocess.Popen[str]"
    photos: list[Path]
    phase_s: float
    given_s: list[float] = field(default_factory=list)  # when each photograph was given
    told: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, stop: threading.Event) -> None:
        self.threads = [threading.Thread(target=self._feed, args=(stop,)), threading.Thread(target=self._read)]
        for thread in self.threads:
            thread.start()

    def _feed(self, stop: threading.Event) -> None:
        assert self.process.stdin is not None
        next_s = time.monotonic() + self.phase_s
        with suppress(BrokenPipeError):
            while not stop.wait(max(0.0, next_s - time.monotonic())):
                self.given_s.append(time.monotonic())
                self.process.stdin.write(f"{self.photos[len(self.given_s) % len(self.photos)]}\n")
                self.process.stdin.flush()
                next_s += EVERY_S
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if "summary" in told:
                self.summary = told["summary"]
            else:
                self.told.append(told)

    @property
    def is_running(self) -> bool:
        return any(image["status"] == "ok" for image in self.told)

    def between(self, since_s: float, until_s: float) -> list[dict[str, Any]]:
        """What became of the photographs that were given then: the reports are in the order of capture."""
        return [image for given_s, image in zip(self.given_s, self.told, strict=False) if since_s <= given_s < until_s]


@contextmanager
def devices(urls: list[str], controller: str, photos: list[Path]) -> Iterator[list[Device]]:
    """Six of them, each with its own beat; ended by the end of their input."""
    command = [*COMMAND, "run-device", BUNDLE, "--source", "-", "--policy", "latest", "--jsonl", "--threads", "1"]
    command += ["--deadline-ms", f"{DEADLINE_MS}", "--controller", controller, "--timeout-s", "5"]
    for url in urls:
        command += ["--edge", url]
    pipe = subprocess.PIPE
    stop = threading.Event()
    with ExitStack() as stack:
        running: list[Device] = []
        for number in range(DEVICES):
            process = subprocess.Popen(
                [*command, "--name", f"camera{number}"], stdin=pipe, stdout=pipe, text=True,
                env=environment(),
            )  # fmt: skip
            stack.enter_context(process)  # closes its pipes
            stack.callback(process.kill)
            running.append(Device(process, photos, number * EVERY_S / DEVICES))
        for device in running:
            device.start(stop)
        try:
            yield running
            stop.set()
            for device in running:
                for thread in device.threads:
                    thread.join(20)
                assert device.process.wait(20) in (0, 1)
        finally:
            stop.set()


@contextmanager
def controlling(
    policy: str, urls: list[str], port: int = 0, bundle: str = BUNDLE, more: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """A ``serve-controller`` process; what it said when it was ready, and the process."""
    command = [*COMMAND, "serve-controller", policy, "--bundle", bundle, "--port", str(port), "--json", *more]
    for url in urls:
        command += ["--edge", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield json.loads(line) | {"process": process}
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert "Traceback" not in errors, errors
        assert process.returncode == 0, errors


@contextmanager
def slowed(edge: Edge) -> Iterator[None]:
    """The edge's process gets the processor for an eighth of the time."""
    done = threading.Event()

    def throttle() -> None:
        while not done.is_set():
            edge.process.send_signal(signal.SIGSTOP)
            done.wait(STOP_S)
            edge.process.send_signal(signal.SIGCONT)
            time.sleep(RUN_S)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def learned_policy(file: Path) -> Path:
    """A policy that is trained for some seconds, on two edges of changing capacity and devices that cannot compute."""
    found = ranking(open_bundle(zoo_bundle(BUNDLE)).manifest)
    assert found is not None
    options = tuple(
        Option(name=each.variant, accuracy=each.accuracy, payload_bytes=1500, device_ms=8, edge_ms=12)
        for each in found.candidates
    )
    scenario = Scenario(
        name="live-2x6",
        profile=Profile(name="zoo", source="round numbers", local_accuracy=0.95, local_ms=1e4, options=options),
        devices=Devices(count=DEVICES, arrival=(0.3, 0.5), deadline_ms=(100, DEADLINE_MS)),
        servers=Servers(count=2, capacity=(1.0, 0.5, 0.1), stay=0.95),
        radio=Radio(shared=False),
        uncertainty=Uncertainty(estimate_error=0.1, device_jitter=0.2, edge_jitter=0.3, known_load=False),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = Trainer(scenario, TrainSettings(slots=100, worlds=8, width=16, rounds=2, updates=2, price_slots=10))
        while trainer.slot < trainer.settings.slots:
            trainer.play()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch's exporter
            write_policy(trainer.actor, policy_facts(trainer), file)
    finally:
        torch.set_num_threads(threads)
    return file


@pytest.mark.bench  # a minute and a half: ten processes, a training, and both policies twice
def test_with_a_learned_policy_more_frames_are_in_time_beside_a_slow_edge_than_with_the_static_best_choice(
    tmp_path: Path,
) -> None:
    photos = make_photos(tmp_path / "photos", 4)
    policies = {"static": "static", "learned": str(learned_policy(tmp_path / "learned.onnx"))}
    windows: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    with ExitStack() as stack:
        edges = [stack.enter_context(serving(Path(BUNDLE), "--preload", "all")) for _ in range(2)]
        urls = [edge.url for edge in edges]
        with controlling("static", urls) as ready:
            port = ready["port"]
        running = stack.enter_context(devices(urls, f"http://127.0.0.1:{port}", photos))
        end_s = time.monotonic() + READY_S
        while not all(device.is_running for device in running):  # by their own planners: no controller is there
            assert time.monotonic() < end_s
            time.sleep(0.1)
        for number in range(ROUNDS):
            for name, policy in policies.items():
                with controlling(policy, urls, port):
                    time.sleep(START_S)  # devices come back, static sees how things are when all is well
                    since_s = time.monotonic()
                    time.sleep(WELL_S)
                    with slowed(edges[number % 2]):
                        time.sleep(SLOW_S)
                        windows[name].append((since_s, time.monotonic()))
                time.sleep(1.0)
    shares = {}
    for policy, spans in windows.items():
        images = [image for device in running for span in spans for image in device.between(*span)]
        shares[policy] = sum(image["status"] == "ok" for image in images) / len(images)
        advised = sum(bool(image["advised"]) for image in images) / len(images)
        print(policy, len(images), "in time", round(shares[policy], 3), "advised", round(advised, 3))
        assert advised > 0.5
    assert shares["learned"] > shares["static"] + 0.03
