"""A training as a folder: what is trained, a checkpoint that it goes on from, its curve, and the policy at the end.

run/
  settings.json    the scenario with its profile, the settings, the package's version
  checkpoint.pt    after each episode; gone when the training is done
  curves.jsonl     one point an episode
  policy.onnx      when it is done
"""

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from aecnn_deploy import __version__
from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.agent.onnx_file import policy_facts, write_policy
from aecnn_deploy.offloading.agent.settings import TrainSettings
from aecnn_deploy.offloading.agent.trainer import Trainer
from aecnn_deploy.offloading.mec.scenario import Scenario

SETTINGS, CHECKPOINT, CURVES, POLICY = "settings.json", "checkpoint.pt", "curves.jsonl", "policy.onnx"


def train_policy(
    scenario: Scenario,
    settings: TrainSettings,
    out: Path,
    *,
    resume: bool = False,
    on_slot: Callable[[Trainer], None] | None = None,
) -> Path:
    """Train into the folder ``out``; the policy file. Raises PolicyError: there is a run there, or another one's."""
    settings = settings.for_slots(settings.slots)
    document = _document(scenario, settings)
    trainer = Trainer(scenario, settings)
    taken_s = _begin(trainer, document, out, resume=resume)
    start_s = time.monotonic() - taken_s
    while trainer.slot < settings.slots:
        trainer.play()
        if on_slot is not None:
            on_slot(trainer)
        if trainer.slot % settings.episode == 0:
            _save(trainer, time.monotonic() - start_s, out)
    path = out / POLICY
    write_policy(trainer.actor, policy_facts(trainer), path)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return path


def _document(scenario: Scenario, settings: TrainSettings) -> dict[str, Any]:
    return {
        "version": __version__,
        "method": settings.method,
        "scenario": json.loads(msgspec.json.encode(scenario)),
        "settings": json.loads(json.dumps(settings.document())),
    }


def _begin(trainer: Trainer, document: dict[str, Any], out: Path, *, resume: bool) -> float:
    """Make the folder, or go on with it; the seconds that were trained before."""
    if (out / POLICY).exists():
        raise PolicyError(f"{out} holds a trained policy, {POLICY}; choose another folder, or remove it first")
    if not (out / SETTINGS).exists():
        if out.exists() and any(out.iterdir()):
            raise PolicyError(f"{out} is not empty and no training of a policy; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        _write(out / SETTINGS, json.dumps(document, indent=2).encode())
        return 0.0
    if not resume:
        raise PolicyError(f"{out} holds a training that has not ended; go on with --resume, or remove it first")
    then = json.loads((out / SETTINGS).read_bytes())
    others = [key for key in ("method", "scenario", "settings") if then.get(key) != document[key]]
    if others:
        raise PolicyError(
            f"{out} holds the training of another {' and '.join(others)}; give those that {SETTINGS} there states, "
            "or choose another folder"
        )
    checkpoint = out / CHECKPOINT
    if not checkpoint.exists():
        return 0.0
    try:
        state = torch.load(checkpoint, weights_only=True)
        trainer.restore(state["trainer"])
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as exc:
        raise PolicyError(
            f"{checkpoint} is damaged ({type(exc).__name__}); remove it, and --resume begins this training anew"
        ) from exc
    _forget_after(out / CURVES, trainer.slot)
    return float(state["seconds"])


def _save(trainer: Trainer, seconds: float, out: Path) -> None:
    """A point of the curve and a checkpoint."""
    episode = trainer.settings.episode
    recent = trainer.scores[-episode:]
    point = {
        "slot": trainer.slot,
        "loss": round(trainer.loss, 5),
        "train_score": round(sum(recent) / len(recent), 5),
        "eval_score": round(trainer.validate(), 5),
        "eval_success": None,
        "seconds": round(seconds, 1),
        "seed": trainer.settings.seed,
    }
    with (out / CURVES).open("a") as file:
        file.write(json.dumps(point) + "\n")
    beside = out / (CHECKPOINT + ".part")
    torch.save({"trainer": trainer.state(), "seconds": seconds}, beside)
    beside.replace(out / CHECKPOINT)


def _forget_after(curves: Path, slot: int) -> None:
    """Take off what the curve says of slots that are trained again."""
    if curves.exists():
        lines = [line for line in curves.read_text().splitlines() if line and json.loads(line)["slot"] <= slot]
        _write(curves, "".join(line + "\n" for line in lines).encode())


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    beside.replace(path)
