"""What a process frees is kept: the system is not asked for the same pages in every step."""

import subprocess
import sys

import pytest

from tests.bundles import environment

STEPS = """
import resource, sys
import torch
from aecnn_deploy.training.freed_memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    x = torch.full((64 << 20,), 1, dtype=torch.uint8)
    assert int((x + 1)[-1]) == 2
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how], check=True, capture_output=True, env=environment(), timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's way of giving memory back")
def test_a_step_faults_no_page_that_an_earlier_one_had() -> None:
    assert _page_faults("keep") < _page_faults("give back") / 20
