"""Where a server of ours spends its time under the comparison's load: by thread, and on its event loop by function."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.peer_clients import Work
from benchmarks.peer_rounds import Plan


def profile(plan: Plan, works: Mapping[str, Work], bundle: Path, variant: str) -> str:
    return ""
