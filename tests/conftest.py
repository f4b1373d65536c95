"""What all tests share: where the photographs are, how hard hypothesis works, and what is not done again and again."""

import functools
import gc
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# One thread for torch, here and in the processes that tests start: with two, torch 2.14.1 corrupts its heap in the
# backward pass of convolutions on tensors as small as some of these tests take.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
# What takes longest begins first, minutes before short ones: at the end it would be one process's alone.
LONGEST = (
    "test_arm64",
    "test_serve_ray",
    "test_supervised",
    "test_frozen_stages",
    "test_train_cli",
    "test_demo",
    "test_int8_bundle",
    "test_int8_tail",
    "test_packaging",
    "test_int8_heads",
    "test_export",
    "test_export_options",
    "test_training",
    "test_cli_link",
    "test_pipeline",
    "test_device",
    "test_models",
    "test_edge_life",
    "test_sweep_ray",
    "test_sweep",
    "test_split_designs",
    "test_edge_batching",
    "test_edge_benchmarks",
    "test_interrupted_export",
    "test_reconnect",
    "test_guard",
    "test_reorder",
    "test_plane_stream",
    "test_edge_engines",
    "test_bundle_engines",
)

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
    """Order modules; skip each test that is marked "data", by name, where the photographs are missing."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
    if _photographs() is None:
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=f"{item.name} needs the photographs of $AECNN_DATA/caltech101"))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what imports left: it would walk through all of it, a quarter of a second a time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Keep torch's table of ONNX translations, which each export reads anew from onnxscript's sources: half its time.

    Whatever is in it stays what torch puts there; a torch that has no such table is left alone.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")  # from the first export on
    registry = getattr(registration, "ONNXRegistry", None)
    if registry is not None and isinstance(vars(registry).get("from_torchlib"), classmethod):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


class _Told:
    """Names each failure when it happens: a run that is ended from outside never comes to pytest's own summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            why = str(getattr(report.longrepr, "reprcrash", "") or "").splitlines()
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            terminal.write_line(f"\nfailed after {report.duration:.0f} s: {report.nodeid}: {' '.join(why[:2])}")


def pytest_configure(config: pytest.Config) -> None:
    """Tell of failures at once, in the process that writes to the terminal."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Told(config))


@pytest.fixture(scope="session")
def caltech101() -> Path:
    """The folder of categories of photographs; only for tests that are marked "data"."""
    folder = _photographs()
    assert folder is not None, "mark the test with pytest.mark.data"
    return folder
