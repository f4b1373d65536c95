"""What the tests' sweeps execute, at the top of a module so that other processes find it."""

import os
import signal
import sys
import time
from pathlib import Path

from aecnn_deploy.errors import TrainingError


def write(folder: Path, task_id: str) -> None:
    """Notes this process, the time and torch's threads; fails the way that the task's name says."""
    begin_s = time.monotonic()
    (folder / "tries").mkdir(exist_ok=True)
    tried = len(list((folder / "tries").glob(f"{task_id}.*")))
    place = folder / "tries" / f"{task_id}.{tried}"
    place.write_text(f"{os.getpid()}")
    first = not tried
    if task_id.startswith("flaky") and first:
        raise TrainingError(f"{task_id} fails the first time")
    if task_id.startswith("wrong"):
        raise ZeroDivisionError("always wrong")
    if task_id.startswith("killed") and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if task_id.startswith("exits"):
        sys.exit(3)
    if task_id.startswith("endless"):
        time.sleep(600)
    if task_id.startswith("meets"):
        until_s = begin_s + 60
        while len(list((folder / "tries").glob("meets*"))) < 2:
            if time.monotonic() > until_s:
                raise TrainingError(f"{task_id} was alone for a minute")
            time.sleep(0.02)
    import torch  # the process that starts a sweep does without

    (folder / task_id).write_text(f"{os.getpid()} {begin_s} {time.monotonic()} {torch.get_num_threads()} {node()}")


def node() -> str:
    """The Ray node that this runs on; "here" without Ray."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else "here"
