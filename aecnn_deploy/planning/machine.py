"""Which machine this is, as profiles name it."""

import os
import platform
import socket
from pathlib import Path

from aecnn_deploy.planning.profiles import Machine


def this_machine() -> Machine:
    """The machine that this program runs on."""
    return Machine(describe_processor(), socket.gethostname() or "unnamed")


def describe_processor() -> str:
    """This machine's architecture and processor, as far as it names them."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in named.items()}
    for key in ("model name", "Model", "CPU part"):
        model = model or fields.get(key, "")
    return f"{platform.machine()} {model or platform.processor() or 'unnamed'}, {os.cpu_count()} cores"
