"""Machines for doctor's tests, made of files, and what its checks find of them."""

from collections.abc import Iterable
from pathlib import Path

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.runtimes.diagnosis.checks import CHECKS, run_check
from aecnn_deploy.runtimes.diagnosis.finding import Finding
from aecnn_deploy.runtimes.diagnosis.host import Host
from aecnn_deploy.runtimes.diagnosis.reach import check_edge
from aecnn_deploy.runtimes.diagnosis.subject import DiagnosisSettings, Subject

A72 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
A76 = A72.replace("0xd08", "0xd0b").replace("cpuid", "atomics fphp asimdhp cpuid asimddp")
PI4 = {
    "proc/cpuinfo": A72,
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/meminfo": "MemTotal: 3884452 kB\nMemAvailable: 3100000 kB\nSwapFree: 102396 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "cpufreq-dt\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1800000\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
    "sys/class/thermal/thermal_zone0/temp": "47225\n",
    "run/systemd/timesync/synchronized": "",
}


def machine(folder: Path, files: dict[str, str], **changes: str | None) -> Host:
    """A host of ``files`` below ``folder``, a Raspberry Pi with four cores; ``changes`` by the end of a file's name."""
    for name, text in files.items():
        end = name.rpartition("/")[2]
        value = changes.get(end, text)
        if value is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(value)
    return Host(folder, "aarch64", 64, 4, 4, {"PATH": str(folder / "bin"), "XDG_CACHE_HOME": str(folder)})


def subject(host: Host | None = None, bundle: Path | None = None, edge: str | None = None) -> Subject:
    settings = DiagnosisSettings(str(bundle) if bundle else None, edge, host=host or Host())
    return Subject(settings, open_bundle)


def findings(about: Subject) -> dict[str, Finding]:
    """What all checks find of a machine and a bundle, by check; ONNX Runtime is not started."""
    found = [finding for check in CHECKS if check.__name__ != "check_run" for finding in run_check(check, about)]
    return {finding.check: finding for finding in found}


def levels(found: Iterable[Finding]) -> dict[str, str]:
    return {finding.check: str(finding.level) for finding in found}


def reach(edge: str, bundle: Path | None = None, timeout_s: float = 20.0) -> dict[str, Finding]:
    """What is found on the way to ``edge``."""
    settings = DiagnosisSettings(str(bundle) if bundle else None, edge, timeout_s=timeout_s)
    return {finding.check: finding for finding in run_check(check_edge, Subject(settings, open_bundle))}
