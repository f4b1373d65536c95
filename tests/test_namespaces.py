"""The link between two network namespaces that benchmarks use: its rate, and that nothing of it is left behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.namespaces import Link, linked, remove_leftovers, why_not
from benchmarks.shaper_check import transfers

pytestmark = pytest.mark.netns

_OWNER = """
import time
from benchmarks.namespaces import linked
with linked() as link:
    link.shape(1e6)
    inside = link.process("edge", ["sleep", "1000"])
    print(*link.names.values(), inside.pid, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True, scope="module")
def _namespaces() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def link() -> Iterator[Link]:
    with linked() as pair:
        yield pair


def exists(name: str) -> bool:
    return Path("/run/netns", name).exists()


def runs(pid: int) -> bool:
    """Whether it lives; one that is dead may wait for init to take note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_transfer_has_the_rate_that_is_said_and_follows_its_change(link: Link) -> None:
    with transfers(link) as connection:
        for rate_bps in (20e6, 2e6, 20e6):  # on one connection
            link.shape(rate_bps)
            assert connection.rate_bps(rate_bps, 0.6) == pytest.approx(rate_bps, rel=0.05)


def test_the_first_bytes_of_a_message_are_not_let_through_at_line_speed(link: Link) -> None:
    with transfers(link) as connection:
        link.shape(1e6)
        connection.message_ms(700)
        assert sorted(connection.message_ms(700) for _ in range(9))[4] > 0.75 * 700 * 8e3 / 1e6


def test_after_a_drop_of_the_rate_messages_take_what_they_take_there(link: Link) -> None:
    with transfers(link) as connection:
        link.shape(10e6)
        for _ in range(20):  # idle frames of that rate's size wait by now
            connection.message_ms(700)
        link.shape(0.5e6)
        connection.message_ms(3000)  # what the bucket still held
        assert sorted(connection.message_ms(700) for _ in range(9))[2] > 0.75 * 700 * 8e3 / 0.5e6


def test_without_a_rate_it_is_as_fast_as_the_machine(link: Link) -> None:
    with transfers(link) as connection:
        link.shape(1e6)
        slow_ms = connection.message_ms(20_000)
        link.shape(None)
        assert min(connection.message_ms(20_000) for _ in range(9)) < slow_ms / 10


def test_an_exception_leaves_no_namespace_and_no_process() -> None:
    seen: list[Link] = []
    inside: list[subprocess.Popen[str]] = []

    def break_off() -> None:
        with linked() as link:
            link.shape(1e6)
            seen.append(link)
            assert all(map(exists, link.names.values()))
            inside.append(link.process("device", ["sleep", "1000"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert not any(map(exists, seen[0].names.values()))
    assert inside[0].wait(10) == -signal.SIGKILL


def test_what_a_killed_run_left_is_removed_by_the_next_one() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert owner.stdout is not None
    with owner.stdout:
        *names, pid = owner.stdout.readline().split()
        assert len(names) == 2
        assert remove_leftovers() == []  # its owner lives
        owner.kill()
        owner.wait()
    assert all(map(exists, names))
    assert sorted(remove_leftovers()) == sorted(names)
    assert not any(map(exists, names))
    end_s = time.monotonic() + 10
    while runs(int(pid)):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_the_reason_for_skipping_is_said_where_one_is_not_root() -> None:
    script = "import os; from benchmarks.namespaces import why_not; os.setuid(65534); print(why_not())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout == "network namespaces and tc need root\n"
