"""What all tests share: where the photographs are, and how hard hypothesis works."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

# One thread for torch, here and in the processes that tests start: with two, torch 2.14.1 corrupts its heap in the
# backward pass of convolutions on tensors as small as some of these tests take.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]

# A shared machine stalls for longer than any deadline that would find a slow test.
hypothesis.settings.register_profile("aecnn", deadline=None, print_blob=True)
hypothesis.settings.load_profile("aecnn")


# A job that a shell starts in the background ignores Ctrl-C, and so would every process that these tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _photographs() -> Path | None:
    """$AECNN_DATA/caltech101, a relative $AECNN_DATA being seen from the repository; None: there is no such folder."""
    data = os.environ.get("AECNN_DATA")
    folder = ROOT / data / "caltech101" if data else None
    return folder if folder is not None and folder.is_dir() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip each test that is marked "data", by name, where the photographs are missing."""
    if _photographs() is None:
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=f"{item.name} needs the photographs of $AECNN_DATA/caltech101"))


@pytest.fixture(scope="session")
def caltech101() -> Path:
    """The folder of categories of photographs; only for tests that are marked "data"."""
    folder = _photographs()
    assert folder is not None, "mark the test with pytest.mark.data"
    return folder
