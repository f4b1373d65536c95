"""The clock: a Raspberry Pi without a battery starts in the past, and TLS refuses every certificate there."""

import ctypes
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aecnn_deploy
from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, problem, warning
from aecnn_deploy.runtimes.diagnosis.subject import Subject

SYNCHRONISE = "sudo timedatectl set-ntp true, then wait until 'timedatectl' says: System clock synchronized: yes"
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)
_SKEW_S = 10.0  # HTTP's Date is of whole seconds, and a busy edge answers late
_TOLERANCE_S = 60.0


class _Timex(ctypes.Structure):
    """The beginning of the kernel's struct timex; the rest is room for it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def check_clock(subject: Subject) -> Iterator[Finding]:
    """Whether the clock can be right, and whether something keeps it right."""
    synchronised = True if subject.host.path("/run/systemd/timesync/synchronized").exists() else kernel_synchronised()
    yield judge_clock(time.time(), Path(aecnn_deploy.__file__).stat().st_mtime, synchronised)


def kernel_synchronised() -> bool | None:
    """Whether the kernel's clock follows a time server; None: it does not tell."""
    try:
        timex = _Timex()
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else not timex.status & _UNSYNCHRONISED


def judge_clock(now_s: float, installed_s: float, synchronised: bool | None) -> Finding:
    """The finding for the time ``now_s`` on a machine where this package was written at ``installed_s``."""
    now = _say(now_s)
    if now_s < installed_s - _TOLERANCE_S:
        return problem(
            "clock",
            f"it says {now}, but this package was installed at {_say(installed_s)}: TLS refuses every certificate",
            SYNCHRONISE,
        )
    if synchronised is False:
        return warning("clock", f"{now}, not synchronised with a time server", SYNCHRONISE)
    return ok("clock", f"{now}, {'synchronised' if synchronised else 'whether it is synchronised is not known'}")


def judge_skew(ahead_s: float) -> Finding:
    """The finding for a clock that is ``ahead_s`` ahead of the edge's (negative: behind)."""
    if abs(ahead_s) <= _SKEW_S:
        return ok("edge clock", f"within {_SKEW_S:g} s of this machine's")
    way = "ahead of" if ahead_s > 0 else "behind"
    return warning("edge clock", f"this machine is {abs(ahead_s):,.0f} s {way} the edge", f"on both: {SYNCHRONISE}")


def _say(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"
