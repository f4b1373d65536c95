"""What every result file says of where its figures come from."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "aecnn-deploy",
    "msgspec",
    "numpy",
    "onnxruntime",
    "pillow",
    "starlette",
    "torch",
    "uvicorn",
    "websockets",
    "zstandard",
)


def describe_machine() -> dict[str, Any]:
    """Machine, versions and commit, as keys of a result document."""
    return {
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **package_versions(_LIBRARIES)},
        "commit": _commit(),
    }


def write_result(path: Path, document: dict[str, Any]) -> None:
    """Write a result document beside its place and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def _machine() -> dict[str, Any]:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
