"""Where facts about a machine are read: ``/proc``, ``/sys`` and the environment, or a test's folder in their place."""

import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_MOST_BYTES = 1 << 20
_MOST_DIGITS = 20  # of 64 bits; Python refuses thousands of them


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def whole_number(text: str, base: int = 10) -> int | None:
    """``text`` as a whole number of at most 20 digits; None: it is none."""
    try:
        return int(text, base) if len(text) <= _MOST_DIGITS else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Host:
    """A machine as its files tell it. Nothing here raises: what cannot be read is None."""

    root: Path = Path("/")
    machine: str = field(default_factory=platform.machine)
    pointer_bits: int = 8 * struct.calcsize("P")  # of this Python: 32 on a 64-bit kernel with a 32-bit system
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_cores: int = field(default_factory=_allowed_cores)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def path(self, name: str) -> Path:
        """``name`` (absolute) below this host's root."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str | None:
        """The first MiB of a file without what surrounds it; None: there is no such file, or it cannot be read."""
        try:
            with self.path(name).open("rb") as stream:
                return stream.read(_MOST_BYTES).decode(errors="replace").strip("\0 \t\r\n")
        except (OSError, ValueError):
            return None

    def number(self, name: str, base: int = 10) -> int | None:
        """A file's whole number; None also where it holds none."""
        return whole_number(self.text(name) or "", base)

    def matching(self, folder: str, pattern: str) -> list[Path]:
        """Paths in ``folder`` by a glob pattern, sorted; none where it cannot be read."""
        try:
            return sorted(self.path(folder).glob(pattern))
        except OSError:
            return []

    def name_of(self, path: Path) -> str:
        """The absolute name, as this host's own programs see it, of a path that ``matching`` gave."""
        return "/" + path.relative_to(self.root).as_posix()
