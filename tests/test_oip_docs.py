"""docs/open-inference.md: a stranger's paste works, and its tables name what the code has."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.runtimes.oip_failures import STATUS
from aecnn_deploy.runtimes.oip_limits import OipLimits
from aecnn_deploy.zoo import zoo_bundle
from tests.bundles import Edge, environment, make_photos, serving

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "open-inference.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CURL = next(block for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) if block.startswith("curl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paste")
    make_photos(folder, 1)[0].rename(folder / "photo.jpg")
    return folder


@pytest.fixture(scope="module")
def edge(folder: Path) -> Iterator[Edge]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # the archive is unpacked here
        with serving(zoo_bundle("caltech101-lite0")) as running:
            yield running


def here(text: str, edge: Edge) -> str:
    assert "localhost:8765" in text
    return text.replace("localhost:8765", f"127.0.0.1:{edge.port}")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_curl_lines_work(edge: Edge, folder: Path) -> None:
    lines = here(CURL, edge).replace("curl ", "curl -sS -w '\\n' ")
    done = subprocess.run(
        ["bash", "-euc", lines], cwd=folder, capture_output=True, text=True, timeout=60, check=True, env=environment()
    )
    ready, metadata, answer = (json.loads(line) for line in done.stdout.splitlines())
    assert ready["ready"]
    assert metadata["inputs"][0]["name"] == "frames"
    assert answer["outputs"][0]["shape"] == [1, 101]


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_programs_work(edge: Edge, folder: Path, number: int) -> None:
    labels = open_bundle(zoo_bundle("caltech101-lite0")).manifest.labels
    variables = environment() | {"XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", here(PROGRAMS[number], edge)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=variables,
    )
    assert done.returncode == 0, done.stderr
    assert any(label in done.stdout for label in labels), done.stdout


def test_there_is_a_program_for_the_unsplit_model_and_one_for_a_tail() -> None:
    assert ["full" in program for program in PROGRAMS] == [True, False]


def test_the_tables_name_every_status_and_the_limits() -> None:
    table = TEXT[TEXT.index("## Errors") : TEXT.index("## Limits")]
    for status in STATUS.values():
        assert f"| {status} |" in table
    assert f"| rows of a request | {OipLimits().max_rows}," in TEXT
    assert (OipLimits().max_json_bytes, OipLimits().max_body_bytes) == (1 << 20, 16 << 20)
