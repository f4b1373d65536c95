"""An edge whose tails run on a Ray cluster: replicas and nodes die under load, and every request is answered."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.cli.main import run
from aecnn_deploy.errors import RunnerError, SettingsError
from aecnn_deploy.runtimes.ray_desk import ReplicaDesk
from aecnn_deploy.runtimes.ray_replica import replicas_wanted
from aecnn_deploy.runtimes.ray_settings import RaySettings, replica_range
from aecnn_deploy.runtimes.ray_wire import (
    BatchHead,
    Introduction,
    Inventory,
    LogitsHead,
    ModelInfo,
    Orders,
    prove,
    receive,
    send,
    tensor_of,
)
from tests.bundles import command, environment, make_bundle, one_line
from tests.stream_servers import unused_port, wait_for

ROOT = Path(__file__).resolve().parents[1]
SECRET = b"s" * 32
INFO = ModelInfo((2,), (3,), "uint8", "float32", "onnxruntime")

_MARK = "AECNN_RAY_TEST"
_LIMIT_S = 240.0  # of all that touches Ray: on a machine that does nothing else it takes a fifth


def run_apart(*arguments: str) -> dict[str, Any]:
    """The JSON that a module of tests prints, run by a process that is ended with all that it started.

    A process that waits in Ray's native code hears no signal but SIGKILL, so nothing of Ray runs in this one.
    """
    mark = uuid.uuid4().hex
    env = environment() | {_MARK: mark, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        _end(mark)
        output, errors = process.communicate()
        raise AssertionError(f"it did not end within {_LIMIT_S:g} s:\n{output}\n{errors}") from None
    finally:
        _end(mark)
    assert process.returncode == 0, errors[-8000:]
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def _end(mark: str) -> None:
    """SIGKILL to every process with ``mark`` in its environment: Ray's run in sessions of their own."""
    wanted = f"{_MARK}={mark}".encode()
    for _ in range(3):  # one that was being made meanwhile
        found = False
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.1)


@pytest.mark.ray
def test_no_request_is_lost_when_a_replica_dies_the_bundle_changes_and_a_node_dies(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    seen = run_apart("tests.ray_drive", str(tmp_path))
    assert seen["answered"] > 500
    assert seen["longest_s"] < 30
    assert "no replica started on the Ray cluster within 2 s: each needs 1 CPU, and 0 CPU are free" in seen["no_room"]
    assert "none of the 1 nodes of the Ray cluster has the 1 CPU and 1 GPU that a replica needs" in seen["no_gpu"]


@pytest.mark.ray
def test_load_brings_another_replica_and_the_application_of_a_killed_edge_goes_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    seen = run_apart("tests.ray_growth", str(tmp_path))
    assert seen["answered"] > 40
    assert seen["grown_s"] > 3  # it was asked for by the load: the first alone had been there for a while


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "bundle"
    make_bundle(path)
    return path


def test_a_cluster_that_does_not_answer_is_one_line(bundle: Path) -> None:
    pytest.importorskip("ray")
    port = unused_port()
    done = command("serve-edge", str(bundle), "--port", "0", "--ray", f"127.0.0.1:{port}")
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in line
    assert f"ray start --head --port {port}" in line


def test_auto_does_not_wait_for_a_cluster_that_is_gone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{unused_port()}")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = command("serve-edge", str(bundle), "--port", "0", "--ray", "auto")
    assert done.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ray", "nowhere"], "none of auto, local and host:port"),
        (["--ray", "local", "--ray-replicas", "2:1"], "replicas are 2:1"),
        (["--ray", "local", "--ray-replicas", "some"], "--ray-replicas is 'some'"),
        (["--ray", "local", "--ray-cpus", "0"], "a replica's CPUs are 0"),
        (["--ray", "local", "--ray-gpus", "1.5"], "a replica's GPUs are 1.5"),
        (["--ray", "local", "--runner", "tensorrt"], "--runner tensorrt is for this machine"),
        (["--ray", "local", "--precision", "int8"], "--precision int8 is for this machine"),
    ],
)
def test_what_makes_no_sense_is_refused(
    bundle: Path,
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What it would write to is this test's own, and gone after it.
    monkeypatch.setattr("aecnn_deploy.runtimes.log_lines.configure_logging", lambda *_: None)
    assert run(["serve-edge", str(bundle), "--port", "0", *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


class HandMade:
    """A replica without Ray: it connects and answers with zeros, or hangs up when it is given a batch."""

    def __init__(self, desk: ReplicaDesk, name: str, *, dies: bool = False) -> None:
        self.orders: list[tuple[str, ...]] = []
        self.batches = 0
        self._name, self._desk, self._dies = name, desk, dies
        self.control = self._connect(data=False)
        self._data = self._connect(data=True)
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._follow, self._work)]
        for thread in self._threads:
            thread.start()

    def tell(self, *loaded: str, leaving: bool = False) -> None:
        send(self.control, Inventory(dict.fromkeys(loaded, INFO), {}, leaving))

    def die(self) -> None:
        for connection in (self.control, self._data):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.die()
        for thread in self._threads:
            thread.join(20)
        self.control.close()
        self._data.close()

    def _connect(self, *, data: bool) -> socket.socket:
        connection = socket.create_connection((self._desk.host, self._desk.port), timeout=20)
        prove(connection, SECRET)
        send(connection, Introduction(self._name, data, "node", 1))
        connection.settimeout(None)
        return connection

    def _follow(self) -> None:
        with suppress(OSError):
            while True:
                self.orders.append(receive(self.control, Orders)[0].models)

    def _work(self) -> None:
        with suppress(OSError):
            while True:
                head, body = receive(self._data, BatchHead)
                assert tensor_of(body, "uint8", head.shape).shape == head.shape
                self.batches += 1
                if self._dies:
                    self.die()
                logits = np.zeros((head.shape[0], 3), np.float32)
                send(self._data, LogitsHead(logits.shape), logits)


Hire = Callable[..., HandMade]


@pytest.fixture
def desk() -> Iterator[ReplicaDesk]:
    desk = ReplicaDesk("127.0.0.1", SECRET)
    yield desk
    desk.close()


@pytest.fixture
def hire(desk: ReplicaDesk) -> Iterator[Hire]:
    """Makes replicas, which are gone after the test."""
    with ExitStack() as stack:

        def make(name: str, *, dies: bool = False) -> HandMade:
            return stack.enter_context(closing(HandMade(desk, name, dies=dies)))

        yield make


def ask(desk: ReplicaDesk, key: str = "a/") -> str:
    """Which replica answered a batch."""
    lent = desk.borrow(key, 20)
    send(lent.connection, BatchHead(key, (2, 2)), np.ones((2, 2), np.uint8))
    head, body = receive(lent.connection, LogitsHead)
    assert tensor_of(body, "float32", head.shape).shape == (2, 3)
    desk.give_back(lent)
    return lent.replica.name


class TestDesk:
    def test_whoever_does_not_know_the_secret_is_let_go(self, desk: ReplicaDesk) -> None:
        with socket.create_connection((desk.host, desk.port), timeout=20) as stranger:
            prove(stranger, b"x" * 32)
            assert stranger.recv(1) == b""
        assert desk.replicas == []

    def test_a_message_that_declares_too_much_ends_the_connection(self, desk: ReplicaDesk) -> None:
        with socket.create_connection((desk.host, desk.port), timeout=20) as connection:
            prove(connection, SECRET)
            connection.sendall(b"\xff" * 8)
            assert connection.recv(1) == b""

    def test_batches_go_to_replicas_that_have_the_model_in_turn(self, desk: ReplicaDesk, hire: Hire) -> None:
        one, two, other = (hire(name) for name in ("one", "two", "other"))
        one.tell("a/")
        two.tell("a/")
        other.tell("b/")
        wait_for(lambda: sum(bool(each.inventory.loaded) and bool(each.idle) for each in desk.replicas) == 3)
        assert sorted(ask(desk) for _ in range(4)) == ["one", "one", "two", "two"]
        assert ask(desk, "b/") == "other"

    def test_a_replica_that_leaves_gets_nothing_new(self, desk: ReplicaDesk, hire: Hire) -> None:
        one, two = hire("one"), hire("two")
        one.tell("a/", leaving=True)
        wait_for(lambda: any(each.inventory.leaving for each in desk.replicas))
        two.tell("a/")
        assert [ask(desk) for _ in range(3)] == ["two"] * 3

    def test_a_batch_without_a_replica_fails_after_its_limit_and_says_what_is_there(
        self, desk: ReplicaDesk, hire: Hire
    ) -> None:
        hire("one").tell("b/")
        wait_for(lambda: desk.info("b/") is not None)
        with pytest.raises(RunnerError, match=r"within 0.1 s; 1 are connected, 0 have the model"):
            desk.borrow("a/", 0.1)

    def test_a_batch_waits_for_a_replica_that_comes(self, desk: ReplicaDesk, hire: Hire) -> None:
        threading.Timer(0.1, lambda: hire("late").tell("a/")).start()
        assert ask(desk) == "late"

    def test_a_dead_replica_is_forgotten(self, desk: ReplicaDesk, hire: Hire) -> None:
        one = hire("one", dies=True)
        one.tell("a/")
        lent = desk.borrow("a/", 20)
        send(lent.connection, BatchHead("a/", (2, 2)), np.ones((2, 2), np.uint8))
        with pytest.raises(OSError, match=r"closed|reset"):
            receive(lent.connection, LogitsHead)
        desk.lost(lent)
        wait_for(lambda: not desk.replicas)
        assert desk.info("a/") is None

    def test_models_change_on_one_replica_after_the_other(self, desk: ReplicaDesk, hire: Hire) -> None:
        both = [hire(name) for name in ("one", "two")]
        wait_for(lambda: all(each.orders == [()] for each in both))
        desk.want(["a/"])
        wait_for(lambda: all(each.orders[-1] == ("a/",) for each in both))  # they serve nothing yet: both at once
        for each in both:
            each.tell("a/")
        wait_for(lambda: sum(bool(each.inventory.loaded) for each in desk.replicas) == 2)
        desk.want(["a/", "b/"])
        wait_for(lambda: any(each.orders[-1] == ("a/", "b/") for each in both))
        first, second = sorted(both, key=lambda each: len(each.orders), reverse=True)
        assert second.orders[-1] == ("a/",)
        first.tell("a/", "b/")
        wait_for(lambda: second.orders[-1] == ("a/", "b/"))


class TestSettings:
    @pytest.mark.parametrize(("text", "expected"), [("3", (3, 3)), ("1:4", (1, 4)), (" 2:2 ", (2, 2))])
    def test_a_number_of_replicas_is_fixed_and_a_pair_is_a_range(self, text: str, expected: tuple[int, int]) -> None:
        assert replica_range(text) == expected

    @pytest.mark.parametrize("change", [{"threads": -1}, {"attempts": 0}, {"start_s": 0}, {"upscale_s": -1}])
    def test_a_number_out_of_its_range_is_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match=next(iter(change))):
            RaySettings("local", **change)

    @pytest.mark.parametrize(("loads", "wanted"), [({}, 2), ({"r1": 3.0, "r2": 3.0}, 4.0), ({"r1": 0.0}, 0.0)])
    def test_autoscaling_wants_replicas_for_all_batches(self, loads: dict[str, float], wanted: float) -> None:
        config = SimpleNamespace(target_ongoing_requests=1.5)
        context = SimpleNamespace(aggregated_metrics={"batches": loads}, target_num_replicas=2, config=config)
        assert replicas_wanted(context)[0] == wanted
