"""ONNX Runtime: whether it is installed, known to crash on this processor, and runs. Never imported in this process."""

import importlib.metadata
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, problem, warning
from aecnn_deploy.runtimes.diagnosis.processor import ARM, Processor, read_processor
from aecnn_deploy.runtimes.diagnosis.subject import Subject

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
INSTALL = "pip install 'aecnn-deploy[device]'"
EXPECTED_SUM = 2304  # of the tiny model's outputs: 36 positions x 64
CHILD = (sys.executable, "-P", "-m", "aecnn_deploy.runtimes.diagnosis.onnxruntime_child")

# Releases that die of an illegal instruction on Arm cores that lack this feature. 1.20.1, 1.22, 1.23.2, 1.31 and 1.32
# run on them.
CRASHES: Mapping[str, str] = MappingProxyType({"1.21.0": "asimddp"})


def installed_version() -> str | None:
    """The installed release, from its metadata; None: none is."""
    for name in DISTRIBUTIONS:
        try:
            return str(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_version(subject: Subject) -> Iterator[Finding]:
    """Whether a release is installed that is known to run on this processor."""
    yield judge_version(installed_version(), read_processor(subject.host))


def judge_version(version: str | None, processor: Processor) -> Finding:
    """The finding for a release on a processor."""
    if version is None:
        return problem("onnxruntime", "not installed: neither heads nor tails can be run", INSTALL)
    feature = CRASHES.get(version)
    if feature is not None and processor.architecture in ARM and not processor.has(feature):
        return problem(
            "onnxruntime",
            f"release {version} is known to die of an illegal instruction on {processor.name}, which lacks {feature}",
            "pip install --upgrade 'onnxruntime>=1.22'",
        )
    return ok("onnxruntime", f"release {version}, not known to crash on this processor")


def check_run(subject: Subject) -> Iterator[Finding]:
    """Whether it imports and computes, told by a process that may die of it."""
    if installed_version() is not None:
        yield run_probe(CHILD, subject.settings.probe_timeout_s)


def run_probe(command: Sequence[str], timeout_s: float) -> Finding:
    """The finding for one run of the tiny model by ``command``."""
    name = "onnxruntime run"
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        remedy = "close what else runs here (top), look at memory and the SD card, and try again"
        return warning(name, f"a tiny model was not run within {timeout_s:g} s", remedy)
    except OSError as exc:
        remedy = "make the environment anew: python3 -m venv, then " + INSTALL
        return warning(name, f"{command[0]} cannot be started as a process of its own: {exc.strerror}", remedy)
    if done.returncode < 0:
        return problem(name, f"it crashes here: a tiny model died of {_signal(-done.returncode)}", _REINSTALL)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        return problem(name, f"a tiny model does not run: {lines[-1]}", _REINSTALL)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        version, total = str(answer["version"]), int(answer["sum"])
    except (ValueError, KeyError, IndexError, TypeError):
        return problem(name, "a tiny model gave no answer", _REINSTALL)
    if total != EXPECTED_SUM:
        return problem(name, f"{version} computes {total} for a tiny model, not {EXPECTED_SUM}", _REINSTALL)
    return ok(name, f"{version} imports, and runs a tiny float and int8 model")


_REINSTALL = "pip install --force-reinstall --upgrade 'onnxruntime>=1.22'; if that does not help, try another release"


def _signal(number: int) -> str:
    what = {signal.SIGILL: " (an instruction that this processor lacks)", signal.SIGKILL: " (out of memory?)"}
    try:
        found = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    return found.name + what.get(found, "")
