"""What the tests of deploy/ read: Dockerfiles as stages, compose and Kubernetes files, built kustomizations."""

import functools
import io
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
KUBERNETES = DEPLOY / "kubernetes"


@dataclass
class Stage:
    """One stage of a Dockerfile: its name, its base with ARGs filled in, its instructions in order."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # (instruction, value), lines joined

    def all(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]

    def words(self, instruction: str) -> list[str]:
        """The words of the only ``instruction``, which must be in exec form."""
        (value,) = self.all(instruction)
        words = json.loads(value)
        assert isinstance(words, list), value
        return words

    @property
    def environment(self) -> dict[str, str]:
        """Each variable of ENV, as it is written."""
        return dict(re.findall(r'(\w+)="?([^"\s]*)"?', " ".join(self.all("ENV"))))


def stages_of(path: Path) -> list[Stage]:
    """The stages of the Dockerfile at ``path``."""
    parsed = DockerfileParser(fileobj=io.BytesIO(path.read_bytes())).structure
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for step in parsed:
        name, value = step["instruction"], step["value"]
        if name == "FROM":
            found = re.fullmatch(r"(?:--platform=\S+ )?(\S+)(?: AS (\S+))?", value)
            assert found, value
            base = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], found[1])
            stages.append(Stage(found[2] or "", base))
        elif stages:
            stages[-1].steps.append((name, value))
        elif name == "ARG":
            arguments.update([value.split("=", 1)])
    return stages


def image(target: str) -> Stage:
    """The stage ``target``: cpu, gpu or device."""
    (found,) = [stage for path in DOCKERFILES for stage in stages_of(path) if stage.name == target]
    return found


def filled(value: Any) -> Any:
    """``value`` of a compose file with each ``${NAME:-default}`` replaced by its default."""
    if isinstance(value, str):
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    if isinstance(value, dict):
        return {key: filled(each) for key, each in value.items()}
    return [filled(each) for each in value] if isinstance(value, list) else value


@functools.cache
def compose(name: str) -> dict[str, Any]:
    """The compose file ``name`` with its defaults filled in; not to be changed."""
    document = filled(yaml.safe_load((DEPLOY / "compose" / name).read_text()))
    assert isinstance(document, dict)
    return document


def option(words: list[str], name: str) -> str | None:
    """The value of ``name`` in a command line, in either spelling; None: it is not given."""
    for position, word in enumerate(words):
        if word == name:
            return words[position + 1]
        if word.startswith(name + "="):
            return word.removeprefix(name + "=")
    return None


@functools.cache
def no_kustomize() -> str:
    """Why no kustomization can be built here; empty: it can."""
    if shutil.which("kubectl") is None:
        return "there is no kubectl"
    done = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False)
    release = re.search(r"Kustomize Version: v(\d+)", done.stdout)
    return "" if release and int(release[1]) >= 5 else "kubectl is older than its kustomize 5"


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """What ``kubectl kustomize`` makes of ``folder``; the test is skipped where it cannot."""
    if why := no_kustomize():
        pytest.skip(f"{why}: overlays are not built")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only one of ``kind``."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found
