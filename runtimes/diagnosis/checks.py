"""All checks in the order of their findings, and how they are run: none of them can end a diagnosis."""

import os
import platform
import threading
from collections.abc import Callable, Iterable

import msgspec

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.diagnosis.bundle_fit import check_bundle, check_engines, check_heads
from aecnn_deploy.runtimes.diagnosis.camera import check_camera
from aecnn_deploy.runtimes.diagnosis.clock import check_clock
from aecnn_deploy.runtimes.diagnosis.cores import check_governor, check_power, check_temperature, check_threads
from aecnn_deploy.runtimes.diagnosis.extras import Extra, installed_extras
from aecnn_deploy.runtimes.diagnosis.finding import Finding, Level, warning
from aecnn_deploy.runtimes.diagnosis.onnxruntime_probe import check_run, check_version
from aecnn_deploy.runtimes.diagnosis.processor import check_processor, check_userland
from aecnn_deploy.runtimes.diagnosis.reach import check_edge
from aecnn_deploy.runtimes.diagnosis.storage import check_cache, check_memory
from aecnn_deploy.runtimes.diagnosis.subject import DiagnosisSettings, Subject
from aecnn_deploy.runtimes.tensorrt_probe import PRODUCTS, usable

Check = Callable[[Subject], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    check_processor,
    check_userland,
    check_version,
    check_run,
    check_threads,
    check_governor,
    check_power,
    check_temperature,
    check_memory,
    check_cache,
    check_clock,
    check_camera,
    check_bundle,
    check_heads,
    check_engines,
    check_edge,
)


class Diagnosis(msgspec.Struct, frozen=True):
    """All that was found; its keys are those of ``doctor --json``. ``gpu_runners``: None, or why it cannot run."""

    version: str
    python: str
    machine: str
    cpus: int | None
    findings: list[Finding]
    extras: dict[str, Extra]
    gpu_runners: dict[str, str | None]

    def count(self, level: Level) -> int:
        """How many findings are of this level."""
        return sum(finding.level is level for finding in self.findings)


def diagnose(settings: DiagnosisSettings, open_named: Callable[[str], Bundle]) -> Diagnosis:
    """Run every check; ``open_named`` opens (and verifies) the bundle by the name that the user gave."""
    subject = Subject(settings, open_named)
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        cpus=os.cpu_count(),
        findings=[finding for check in CHECKS for finding in run_check(check, subject)],
        extras=installed_extras(),
        gpu_runners={product: _runner_reason(product) for product in PRODUCTS},
    )


def _runner_reason(product: str) -> str | None:
    """None: engines of ``product`` can run here; else why not, whatever its libraries raise."""
    try:
        return usable(product)
    except Exception as exc:
        return f"{product} does not load: {type(exc).__name__}: {exc}"


def run_check(check: Check, subject: Subject) -> list[Finding]:
    """What ``check`` finds, whatever happens in it: an error or a hang becomes a finding of its own.

    It runs on a thread that is left behind when it takes longer than ``check_timeout_s``.
    """
    name = check.__name__.removeprefix("check_").replace("_", " ")
    found: list[Finding] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            for finding in check(subject):
                found.append(finding)
        except Exception as exc:  # whatever a strange machine does to a check, the others still have their say
            failed.append(exc)

    thread = threading.Thread(target=run, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(subject.settings.check_timeout_s)
    findings = list(found)
    if thread.is_alive():
        limit_s = subject.settings.check_timeout_s
        remedy = "what it reads may hang: a network drive, a camera, a broken disk; see 'dmesg'"
        findings.append(warning(name, f"the check did not end within {limit_s:g} s", remedy))
    elif failed:
        text = f"the check itself failed: {type(failed[0]).__name__}: {failed[0]}"
        findings.append(warning(name, text, "look at it by hand, and report this line: it is a mistake of doctor's"))
    return findings
