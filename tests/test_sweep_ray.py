"""Sweeps on a real Ray cluster of two nodes, both on this machine."""

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from aecnn_deploy.errors import SettingsError, TrainingError
from aecnn_deploy.training.progress import SilentProgress
from aecnn_deploy.training.sweep import SweepTask, run_sweep
from aecnn_deploy.training.sweep_ray import probe
from tests.sweep_tasks import write

ray = pytest.importorskip("ray")

# A signal does not reach a test that waits in Ray's own code: there a thread ends the process.
pytestmark = pytest.mark.timeout(150, method="thread")

ROOT = Path(__file__).resolve().parents[1]


def never(task_id: str) -> bool:
    return False


def refuse(task_id: str) -> None:
    raise AssertionError(f"{task_id} was executed")


class Told(SilentProgress):
    """Keeps what a caller is told of each task."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, note: str = "") -> None:
        self.notes.append(note)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes of one core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))  # what the nodes' workers import from
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            nodes.add_node(**node)
            nodes.wait_for_nodes()
            yield nodes.address
        finally:
            nodes.shutdown()


@pytest.mark.ray
def test_both_nodes_work_and_a_failed_task_is_told_and_tried_again_alone(cluster: str, tmp_path: Path) -> None:
    told = Told()
    tasks = [
        *map(SweepTask, ("meets-1", "meets-2", "killed", "flaky", "wrong", "other")),
        SweepTask("after", needs=("killed",)),
        SweepTask("never", needs=("wrong",)),
    ]
    outcome = run_sweep(
        tasks, partial(write, tmp_path), is_done=never, ray_address=cluster, shared=tmp_path, progress=told
    )
    assert outcome.done == ("meets-1", "meets-2", "killed", "flaky", "other", "after")
    assert outcome.failed["wrong"].startswith("ZeroDivisionError: always wrong (sweep_tasks.py, line ")
    assert outcome.failed["never"] == "needs wrong, which failed"
    assert "flaky failed: flaky fails the first time; will be tried again alone" in told.notes
    assert any(note.startswith("killed failed: on the Ray cluster: WorkerCrashedError: ") for note in told.notes)

    rows = {task_id: (tmp_path / task_id).read_text().split() for task_id in outcome.done}
    nodes = {task_id: row[4] for task_id, row in rows.items()}
    assert nodes["meets-1"] != nodes["meets-2"]
    assert "here" not in nodes.values()
    for alone in ("killed", "flaky"):
        begin_s, end_s = map(float, rows[alone][1:3])
        others = [tuple(map(float, row[1:3])) for task_id, row in rows.items() if task_id != alone]
        assert all(end < begin_s or end_s < begin for begin, end in others)
    assert not list(tmp_path.glob(".shared-*"))
    assert not ray.is_initialized()


@pytest.mark.ray
def test_a_node_that_does_not_see_the_runs_folder_is_named(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same path is another folder for every process: what two machines without a shared disk see.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"Ray node \S+ \(.*\) does not share /proc/self/cwd: .* does not appear"):
        run_sweep(
            [SweepTask("a")],
            refuse,
            is_done=never,
            ray_address=cluster,
            shared=Path("/proc/self/cwd"),
            progress=SilentProgress(),
        )
    assert not list(tmp_path.iterdir())
    assert not ray.is_initialized()


def test_a_node_that_cannot_write_to_the_runs_folder_says_so(tmp_path: Path) -> None:
    marker = tmp_path / ".shared-1"
    marker.write_text(marker.name)
    (tmp_path / ".shared-1.node").mkdir()
    assert "it cannot write there: Is a directory" in probe(str(marker), "node")


@pytest.mark.parametrize("address", ["nowhere", "ray://head:10001", "head:", ":6379", "head:66000"])
def test_an_address_of_no_known_form_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="none of auto, local and host:port"):
        run_sweep([SweepTask("a")], refuse, is_done=never, ray_address=address, progress=SilentProgress())


def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound but not listening: nobody else gets the port, and nobody answers
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for given in (address, "auto"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(TrainingError, match=f"no Ray cluster answers at {address}"):
                run_sweep([SweepTask("a")], refuse, is_done=never, ray_address=given, progress=SilentProgress())
