"""Cameras: whether there are any that this user may open. For information: photographs need none."""

import importlib.util
import os
from collections.abc import Iterator

from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, warning
from aecnn_deploy.runtimes.diagnosis.subject import Subject

_SHOWN = 4


def check_camera(subject: Subject) -> Iterator[Finding]:
    """The video devices, and the library that reads them."""
    devices = subject.host.matching("/dev", "video[0-9]*")
    if not devices:
        yield ok("camera", "no /dev/video*: sources are files and streams")
        return
    names = [subject.host.name_of(device) for device in devices]
    text = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    closed = [device for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if len(closed) == len(devices):
        yield warning(
            "camera",
            f"{text}: this user may open none of them",
            'sudo usermod -aG video "$USER", then log in again; a service: SupplementaryGroups=video',
        )
        return
    missing = importlib.util.find_spec("av") is None
    yield ok("camera", text + ("; PyAV, which reads cameras and videos, is not installed" if missing else ""))
