"""Cores and their speed: what this process may use, the frequency governor, heat and the power supply."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import PurePosixPath

from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, problem, warning
from aecnn_deploy.runtimes.diagnosis.host import Host, whole_number
from aecnn_deploy.runtimes.diagnosis.subject import Subject

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
_CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"
_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
# Their "powersave" follows the load; with other drivers it is the lowest frequency, always.
_FREE_DRIVERS = ("intel_pstate", "amd-pstate", "amd-pstate-epp")
_HOT_C = 80.0  # a Raspberry Pi begins to slow down here
_VCGENCMD_S = 5.0

# Bits of the Raspberry Pi firmware's "throttled": what is now, and 16 higher what was since the start.
_UNDER_VOLTAGE, _CAPPED, _THROTTLING, _SOFT_LIMIT = 0x1, 0x2, 0x4, 0x8
_SUPPLY = "use the board's own power supply (5 V 3 A for a Raspberry Pi 4, 5 V 5 A for a 5) and a short, thick cable"
_COOLING = "cool the board: a heat sink or a fan, free air around it"


def check_threads(subject: Subject) -> Iterator[Finding]:
    """The cores that this process may use, against those that there are."""
    host = subject.host
    quota = cpu_quota(host)
    usable = min(host.allowed_cores, host.cores if quota is None else max(1, int(quota)))
    said = [f"{name}={host.environment[name]}" for name in _THREAD_VARIABLES if name in host.environment]
    text = f"{usable} of {host.cores} cores"
    if said:
        text += f"; {', '.join(said)} (for NumPy; ONNX Runtime follows --threads)"
    if usable == host.cores:
        yield ok("threads", text)
        return
    why = "by CPU affinity" if quota is None or host.allowed_cores <= quota else f"by a cgroup quota of {quota:g} cores"
    yield warning(
        "threads",
        f"{text}, {why}",
        f"give run-device and serve-edge --threads {usable}, or lift the limit (CPUQuota=, CPUAffinity=, --cpus)",
    )


def cpu_quota(host: Host) -> float | None:
    """Cores' worth of time that this process's control groups allow; None: no limit."""
    found = []
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        path = PurePosixPath(name or "/")
        for level in (path, *path.parents):
            inner = str(level).strip("/")
            if not controllers:
                quota, period = [*(host.text(f"/sys/fs/cgroup/{inner}/cpu.max") or "max 1").split(), "1"][:2]
            elif "cpu" in controllers.split(","):
                folder = f"/sys/fs/cgroup/{controllers}/{inner}"
                quota = host.text(f"{folder}/cpu.cfs_quota_us") or "max"
                period = host.text(f"{folder}/cpu.cfs_period_us") or "1"
            else:
                continue
            most_us, period_us = whole_number(quota), whole_number(period)
            if most_us is not None and most_us > 0 and period_us is not None and period_us > 0:
                found.append(most_us / period_us)
    return min(found, default=None)


def check_governor(subject: Subject) -> Iterator[Finding]:
    """Whether the frequency governor lets the cores run at their speed."""
    host = subject.host
    governor = host.text(f"{_CPUFREQ}/scaling_governor")
    if governor is None:
        return  # a virtual machine, or a kernel without frequency scaling
    current, most = (host.number(f"{_CPUFREQ}/{name}") for name in ("scaling_cur_freq", "scaling_max_freq"))
    text = governor
    if current and most:
        text += f", {current / 1000:.0f} of {most / 1000:.0f} MHz now"
    if governor == "powersave" and host.text(f"{_CPUFREQ}/scaling_driver") not in _FREE_DRIVERS:
        remedy = "echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield warning("governor", f"{text}: the cores stay at their lowest frequency", remedy)
    else:
        yield ok("governor", text)


def check_power(subject: Subject) -> Iterator[Finding]:
    """Under-voltage and throttling, as a Raspberry Pi's firmware or its voltage sensor tells."""
    flags = throttled_flags(subject.host)
    if flags is not None:
        yield judge_throttled(flags)
        return
    for folder in subject.host.matching("/sys/class/hwmon", "hwmon*"):
        name = subject.host.name_of(folder)
        if subject.host.text(f"{name}/name") == "rpi_volt":
            low = subject.host.number(f"{name}/in0_lcrit_alarm")
            yield problem("power", "under-voltage", _SUPPLY) if low else ok("power", "the voltage is high enough")


def throttled_flags(host: Host) -> int | None:
    """The firmware's flags, from sysfs or ``vcgencmd``; None: this machine has neither."""
    flags = host.number(_THROTTLED, 16)
    program = shutil.which("vcgencmd", path=host.environment.get("PATH"))
    if flags is not None or program is None:
        return flags
    try:
        said = subprocess.run(
            [program, "get_throttled"], capture_output=True, timeout=_VCGENCMD_S, check=False, stdin=subprocess.DEVNULL
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.fullmatch(r"throttled=(0x[0-9a-fA-F]+)", said.strip())
    return int(match[1], 16) if match else None


def judge_throttled(flags: int) -> Finding:
    """The finding for the firmware's flags."""
    now, before = flags & 0xF, flags >> 16 & 0xF
    if now & _UNDER_VOLTAGE:
        return problem("power", f"under-voltage now ({flags:#x}): the cores are slowed, files may be damaged", _SUPPLY)
    if now & (_CAPPED | _THROTTLING | _SOFT_LIMIT):
        return warning("power", f"throttled now ({flags:#x}): the cores are slowed", _COOLING)
    if before & _UNDER_VOLTAGE:
        return warning("power", f"under-voltage since the start ({flags:#x})", _SUPPLY)
    if before:
        return warning("power", f"throttled since the start ({flags:#x})", _COOLING)
    return ok("power", "neither under-voltage nor throttling since the start")


def check_temperature(subject: Subject) -> Iterator[Finding]:
    """The hottest zone that the kernel knows."""
    zones = subject.host.matching("/sys/class/thermal", "thermal_zone*/temp")
    values = [subject.host.number(subject.host.name_of(zone)) for zone in zones]
    celsius = [value / 1000 for value in values if value is not None and -100_000 < value < 300_000]
    if not celsius:
        return
    text = f"{max(celsius):.0f} °C"
    if max(celsius) >= _HOT_C:
        yield warning("temperature", f"{text}, at or above {_HOT_C:.0f} °C: the cores are slowed", _COOLING)
    else:
        yield ok("temperature", text)
