"""Checkpoints of one training task: safetensors and JSON, written beside and renamed, taken up again with --resume.

tasks/<id>/state.json          the stage that was reached, its epoch and step, what was measured so far
tasks/<id>/state-<n>.safetensors   the tensors of that moment
tasks/<id>/model.safetensors   the trained network, when the task is done
tasks/<id>/done.json           what the task measured: the task is done
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from aecnn_deploy.errors import TrainingError
from aecnn_deploy.models.results import write_atomically, write_json
from aecnn_deploy.models.run import dump_tensors
from aecnn_deploy.optional import require

State = dict[str, Tensor]


class Reached(msgspec.Struct, frozen=True):
    """state.json."""

    stage: str
    epoch: int  # epochs of the stage that are done
    tensors: str  # file name
    seconds: float  # wall-clock of all stages so far
    best: float | None = None
    notes: dict[str, Any] = {}
    steps: int = 0  # of the next epoch


@dataclass(slots=True)
class TaskFolder:
    """The files of one task. ``every_s``: seconds between two checkpoints at least; 0 writes one each step."""

    path: Path
    every_s: float = 30.0
    _written_s: float = field(default_factory=time.monotonic, init=False)

    @property
    def is_done(self) -> bool:
        return (self.path / "done.json").is_file()

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.monotonic() - self._written_s >= self.every_s

    def save(self, reached: Reached, tensors: State) -> None:
        """Write a checkpoint: the tensors first, then the JSON that names them, then the old tensors go."""
        write_atomically(self.path / reached.tensors, dump_tensors(tensors))
        write_json(self.path / "state.json", reached)
        self._clear(keep=reached.tensors)
        self._written_s = time.monotonic()

    def load(self) -> tuple[Reached, State] | None:
        """The checkpoint that stands, or None. Raises TrainingError: it is damaged."""
        source = self.path / "state.json"
        if not source.is_file():
            return None
        safetensors = require("safetensors.torch", why="reading a checkpoint", extra="train")
        try:
            reached = msgspec.json.decode(source.read_bytes(), type=Reached)
            return reached, safetensors.load_file(self.path / reached.tensors)
        except Exception as exc:  # msgspec, safetensors and the disk raise many kinds
            raise TrainingError(
                f"the checkpoint in {self.path} is damaged ({str(exc).partition(chr(10))[0][:120]}); remove it "
                "and go on with --resume: only this task begins anew"
            ) from None

    def finish(self, model: nn.Module | None, document: Any) -> None:
        """The task is done: write its network and what it measured, and remove the checkpoint."""
        if model is not None:
            write_atomically(self.path / "model.safetensors", dump_tensors(model.state_dict()))
        write_json(self.path / "done.json", document)
        (self.path / "state.json").unlink(missing_ok=True)
        self._clear(keep="")

    def done(self) -> dict[str, Any]:
        """What ``finish`` was given. Raises TrainingError: it is damaged or missing."""
        try:
            document: dict[str, Any] = msgspec.json.decode((self.path / "done.json").read_bytes())
        except (OSError, msgspec.DecodeError) as exc:
            raise TrainingError(
                f"{self.path}/done.json cannot be read ({exc}); remove {self.path}, use --resume"
            ) from None
        return document

    def model_state(self) -> State:
        """The trained network's tensors. Raises TrainingError: missing or damaged."""
        safetensors = require("safetensors.torch", why="reading a trained network", extra="train")
        try:
            state: State = safetensors.load_file(self.path / "model.safetensors")
        except Exception as exc:  # safetensors' own error shares no base with the others
            raise TrainingError(
                f"{self.path}/model.safetensors cannot be read: {exc}; remove {self.path}, use --resume"
            ) from None
        return state

    def _clear(self, keep: str) -> None:
        for file in self.path.glob("state-*.safetensors"):
            if file.name != keep:
                file.unlink(missing_ok=True)


@contextmanager
def sole_writer(run: Path) -> Iterator[None]:
    """As long as this lasts nobody else trains in the folder ``run``; a killed process holds it no longer.

    Raises TrainingError: another process does, or the folder cannot be read. On a file system without locks nothing is
    held.
    """
    try:
        folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise TrainingError(f"cannot read the folder {run}: {exc.strerror}; choose another --out") from None
    try:
        with suppress(OSError):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another process trains in {run}; wait until it ends, or stop it (what it has done stays), or "
                    "choose another --out"
                ) from None
        yield
    finally:
        os.close(folder)


def optimiser_state(optimiser: torch.optim.Optimizer) -> State:
    """The optimiser's tensors under flat names."""
    flat = {}
    for index, entry in optimiser.state_dict()["state"].items():
        for name, value in entry.items():
            flat[f"optimiser.{index}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
    return flat


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: State) -> None:
    """The reverse of ``optimiser_state``."""
    document = optimiser.state_dict()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, name = key.split(".", 2)
            like = parameters[int(number)]
            if value.shape == like.shape:  # a fused step wants its moments laid out in memory like the parameter
                value = torch.empty_like(like).copy_(value)
            state.setdefault(int(number), {})[name] = value
    document["state"] = state
    optimiser.load_state_dict(document)
