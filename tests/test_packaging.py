"""The wheel: what is in it, and what of it works with which extras installed and nothing else."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import aecnn_deploy
from aecnn_deploy.optional import EXTRAS
from tests.bundles import make_bundle, make_photos, serving

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]

# package -> the folder it is in
FOLDERS = {
    "aecnn_deploy": "aecnn_deploy",
    "aecnn_deploy.calibration": "calibration",
    "aecnn_deploy.exporters": "exporters",
    "aecnn_deploy.runtimes": "runtimes",
    "aecnn_deploy.zoo": "zoo",
}
DATA = {
    "aecnn_deploy/py.typed",
    "aecnn_deploy/models/caltech101_imagenet.json",
    "aecnn_deploy/offloading/agent/grl-2x14.onnx",
    "aecnn_deploy/offloading/droo/set_policy_1.npz",
    "aecnn_deploy/offloading/droo/set_policy_2.npz",
    "aecnn_deploy/offloading/droo/set_policy_3.npz",
    "aecnn_deploy/reports/page.css",
    "aecnn_deploy/planning/paper_table1.json",
    "aecnn_deploy/offloading/scenarios/16x512.toml",
    "aecnn_deploy/offloading/scenarios/2x7.toml",
    "aecnn_deploy/offloading/scenarios/3x20.toml",
    "aecnn_deploy/offloading/scenarios/4x30.toml",
    "aecnn_deploy/offloading/scenarios/certain-2x14.toml",
    "aecnn_deploy/offloading/scenarios/failing-3x20.toml",
    "aecnn_deploy/offloading/scenarios/mobile-2x14.toml",
    "aecnn_deploy/offloading/scenarios/paper-2x14.toml",
    "aecnn_deploy/runtimes/diagnosis/probe.onnx",
    "aecnn_deploy/systemd/aecnn-device.service",
    "aecnn_deploy/systemd/aecnn-edge.service",
    "aecnn_deploy/systemd/device.env.example",
    "aecnn_deploy/systemd/edge.env.example",
    "aecnn_deploy/runtimes/status_page.html",
    "aecnn_deploy/zoo/caltech101-lite0.tar.zst",
}

# What a module may lack, by the longest prefix of its name; all others must import with the core dependencies alone.
MAY_NEED = {
    "aecnn_deploy.cli.demo_train": {"torch"},  # what demo --train imports when it has checked its extra
    "aecnn_deploy.exporters": {"onnx", "onnxruntime", "onnxscript", "torch"},
    "aecnn_deploy.models": {"torch"},
    "aecnn_deploy.offloading.agent.chances": {"torch"},
    "aecnn_deploy.offloading.baselines.flat_actor": {"torch"},
    "aecnn_deploy.offloading.agent.network": {"torch"},
    "aecnn_deploy.offloading.agent.onnx_file": {"torch"},
    "aecnn_deploy.offloading.agent.run": {"torch"},
    "aecnn_deploy.offloading.agent.trainer": {"torch"},
    "aecnn_deploy.offloading.baselines.ppo_training": {"gymnasium", "stable_baselines3", "torch"},
    "aecnn_deploy.offloading.droo.torch_": {"torch"},
    "aecnn_deploy.offloading.mec.env": {"gymnasium"},
    "aecnn_deploy.training": {"torch"},
    "aecnn_deploy.runtimes.device_link": {"websockets"},
    "aecnn_deploy.runtimes.device_client": {"websockets"},
    "aecnn_deploy.runtimes.edge_": {"prometheus_client", "starlette", "uvicorn", "websockets"},
}


@dataclass(frozen=True)
class Wheel:
    names: frozenset[str]  # of the files
    metadata: Any  # the headers of METADATA
    entry_points: str
    folder: Path  # where it is unpacked, as an installation would be


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """The wheel of this tree, built from a copy: what an older build left in build/ would get into it."""
    base = tmp_path_factory.mktemp("wheel")
    (base / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, base / "source")
    for folder in [*FOLDERS.values(), "tests", "tools", "benchmarks"]:
        shutil.copytree(ROOT / folder, base / "source" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", base, base / "source"], check=True, timeout=240)
    (path,) = base.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(base / "installed")
        info = f"aecnn_deploy-{aecnn_deploy.__version__}.dist-info"
        return Wheel(
            frozenset(archive.namelist()),
            HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode()),
            archive.read(f"{info}/entry_points.txt").decode(),
            base / "installed",
        )


def sources() -> dict[str, Path]:
    """Each Python file of the packages, by its place in a wheel."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            found["/".join((*package.split("."), *file.relative_to(ROOT / folder).parts))] = file
    return found


def modules() -> list[str]:
    return sorted(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources())


class TestWheel:
    def test_every_package_folder_is_declared(self) -> None:
        assert SETUPTOOLS["package-dir"] == FOLDERS
        assert set(SETUPTOOLS["packages"]) == {name.rpartition("/")[0].replace("/", ".") for name in sources()}

    def test_every_package_folder_has_an_init(self) -> None:
        # Without one, a folder works in the wheel and fails in an editable installation.
        for file in sources().values():
            assert (file.parent / "__init__.py").is_file(), file.parent

    def test_it_holds_exactly_the_packages_and_their_data(self, wheel: Wheel) -> None:
        content = {name for name in wheel.names if ".dist-info/" not in name}
        assert content == sources().keys() | DATA

    def test_it_installs_one_top_level_name(self, wheel: Wheel) -> None:
        tops = {name.partition("/")[0] for name in wheel.names}
        assert tops == {"aecnn_deploy", f"aecnn_deploy-{aecnn_deploy.__version__}.dist-info"}

    def test_its_metadata_say_what_it_is(self, wheel: Wheel) -> None:
        assert wheel.metadata["Name"] == "aecnn-deploy"
        assert wheel.metadata["Version"] == aecnn_deploy.__version__ == PYPROJECT["project"]["version"]
        assert wheel.metadata["License-Expression"] == "Apache-2.0"
        assert wheel.metadata["Requires-Python"] == ">=3.11"
        assert set(wheel.metadata.get_all("Provides-Extra")) == PYPROJECT["project"]["optional-dependencies"].keys()
        assert any(name.endswith("licenses/LICENSE") for name in wheel.names)
        assert "aecnn-deploy = aecnn_deploy.cli.main:main" in wheel.entry_points

    def test_the_console_script_is_installed_and_works(self) -> None:
        done = subprocess.run(
            [Path(sys.executable).with_name("aecnn-deploy"), "--version"], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, f"aecnn-deploy {aecnn_deploy.__version__}\n")


class TestExtras:
    def test_every_optional_module_is_named_with_an_extra_that_installs_it(self) -> None:
        own_name = {
            "grpc": "grpcio",
            "jpeg_ls": "pyjpegls",
            "opentelemetry": "opentelemetry-sdk",
            "skimage": "scikit-image",
            "sklearn": "scikit-learn",
        }
        for module, extra in EXTRAS.items():
            listed = PYPROJECT["project"]["optional-dependencies"][extra]
            names = {canonicalize_name(Requirement(text).name) for text in listed}
            assert canonicalize_name(own_name.get(module, module)) in {
                *names,
                *(n.removesuffix("-model") for n in names),
            }

    def test_no_extra_of_a_device_installs_torch(self, wheel: Wheel) -> None:
        assert "torch" not in distributions(wheel, ("device",))
        assert "torch" not in distributions(wheel, ("edge",))
        assert "torch" in distributions(wheel, ("train",))

    def test_imported_distributions_are_declared(self, wheel: Wheel) -> None:
        """What is imported is our own requirement, not by luck one of a requirement's."""
        direct = {canonicalize_name(Requirement(text).name) for text in wheel.metadata.get_all("Requires-Dist")}
        provided = importlib.metadata.packages_distributions()
        imported = re.compile(r"^\s*(?:import|from) (\w+)|require\(\"(\w+)", re.MULTILINE)
        for file in sources().values():
            for match in imported.findall(file.read_text()):
                name = match[0] or match[1]
                if name in sys.stdlib_module_names or name == "aecnn_deploy" or name not in provided:
                    continue
                names = {canonicalize_name(distribution) for distribution in provided[name]}
                assert names & direct or any(n.startswith(d) for n in names for d in direct), f"{file}: {name}"


def distributions(wheel: Wheel, extras: tuple[str, ...]) -> set[str]:
    """What ``pip install aecnn-deploy[extras]`` takes from what is installed here: all that is needed, and theirs."""
    found: set[str] = set()
    queue = [(wheel.metadata.get_all("Requires-Dist"), set(extras))]
    done = set()
    while queue:
        lines, wanted = queue.pop()
        for line in lines or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                continue
            name = canonicalize_name(requirement.name)
            key = (name, frozenset(requirement.extras))
            if key in done:
                continue
            done.add(key)
            found.add(name)
            if name == "aecnn-deploy":
                queue.append((wheel.metadata.get_all("Requires-Dist"), requirement.extras))
                continue
            queue.append((importlib.metadata.requires(name), requirement.extras))
    return found


# Runs in a process of its own: only the standard library, the wheel and what ALLOWED names can be imported.
_LIMITED = """
import importlib.metadata, json, os, re, sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else self.finder.find_spec(name, path, target)

allowed = set(json.loads(os.environ["ALLOWED"]))
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
missing = {
    name for name, names in importlib.metadata.packages_distributions().items()
    if not allowed & {normal(each) for each in names} and name not in sys.stdlib_module_names and name != "aecnn_deploy"
}
for name in [name for name in sys.modules if name.partition(".")[0] in missing]:
    del sys.modules[name]
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import aecnn_deploy
assert aecnn_deploy.__file__.startswith(os.environ["PYTHONPATH"]), aecnn_deploy.__file__
"""

_IMPORT_ALL = """
import importlib
found = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
        found[name] = None
    except ImportError as exc:
        found[name] = getattr(exc, "module", None) or (exc.name or "?").partition(".")[0]
print(json.dumps(found))
"""

# Each command asked for its help, in one process.
_HELP = """
import contextlib, io
from aecnn_deploy.cli.main import run
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run([command, "--help"]) == 0, command
    assert out.getvalue().startswith(f"Usage: aecnn-deploy {command} "), out.getvalue()
"""

_COMMAND = """
from aecnn_deploy.cli.main import main
main()
"""


def limited(
    wheel: Wheel, extras: tuple[str, ...], code: str, arguments: Iterable[object]
) -> "subprocess.CompletedProcess[str]":
    """Run ``code`` on the unpacked wheel, with only the core dependencies and ``extras`` importable."""
    allowed = json.dumps(sorted(distributions(wheel, extras)))
    return subprocess.run(
        [sys.executable, "-c", _LIMITED + code, *map(str, arguments)],
        env=os.environ | {"ALLOWED": allowed, "PYTHONPATH": str(wheel.folder), "NO_COLOR": "1"},
        cwd=wheel.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


ENVIRONMENTS = [(), ("device",), ("edge",), ("train",)]


class TestWithoutTheRest:
    @pytest.mark.parametrize("extras", ENVIRONMENTS, ids=lambda extras: "+".join(("core", *extras)))
    def test_every_module_imports_or_lacks_what_its_extra_brings(self, wheel: Wheel, extras: tuple[str, ...]) -> None:
        done = limited(wheel, extras, _IMPORT_ALL, [json.dumps(modules())])
        assert done.returncode == 0, done.stderr
        installed = distributions(wheel, extras)
        provided = importlib.metadata.packages_distributions()
        for module, lacks in json.loads(done.stdout).items():
            if lacks is None:
                continue
            prefix = max((prefix for prefix in MAY_NEED if module.startswith(prefix)), key=len, default="")
            assert lacks in MAY_NEED.get(prefix, set()), f"{module} does not import: it needs {lacks}"
            assert lacks in EXTRAS
            assert not installed & {canonicalize_name(name) for name in provided[lacks]}, f"{module}: {lacks}"

    @pytest.mark.parametrize("extras", ENVIRONMENTS, ids=lambda extras: "+".join(("core", *extras)))
    def test_every_command_can_say_what_it_does(self, wheel: Wheel, extras: tuple[str, ...]) -> None:
        done = limited(wheel, extras, _COMMAND, ["--help"])
        assert done.returncode == 0, done.stderr
        commands = re.findall(r"^  ([a-z-]+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)
        assert {"train", "export", "serve-edge", "run-device", "bundle"} <= set(commands)
        done = limited(wheel, extras, _HELP, commands if extras == ("device",) else ["run-device"])
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        ("extras", "command", "missing"),
        [
            (("device",), "train {none} --data {photos} --out {none}", "train"),
            (("device",), "evaluate {none} --data {photos}", "train"),
            (("device",), "export {none} --out {none}", "train"),
            (("device",), "serve-edge {bundle} --port 0", "edge"),
            ((), "run-device {bundle} --edge ws://127.0.0.1:9 --source {photos}", "device"),
            ((), "serve-edge {bundle} --port 0", "edge"),
            (("device",), "demo --out {none}", "demo"),
            (("train",), "demo --out {none}", "demo"),
            (("edge",), "demo --out {none}", "demo"),
            (("device",), "demo --images {photos} --out {none}", "edge"),
            (("edge",), "demo --train --images {photos} --out {none}", "train"),
        ],
    )
    def test_a_missing_extra_is_named_in_one_line(
        self, wheel: Wheel, tmp_path: Path, extras: tuple[str, ...], command: str, missing: str
    ) -> None:
        make_bundle(tmp_path / "bundle")
        make_photos(tmp_path / "photos", count=1)
        places = {name: tmp_path / name for name in ("bundle", "photos", "none")}
        done = limited(wheel, extras, _COMMAND, [part.format(**places) for part in command.split()])
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        assert f"pip install 'aecnn-deploy[{missing}]'" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not places["none"].exists()

    def test_a_device_with_the_device_extra_alone_classifies_photographs(self, wheel: Wheel, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle")
        make_photos(tmp_path / "photos", count=3)
        with serving(tmp_path / "bundle") as edge:
            arguments = [
                "run-device",
                tmp_path / "bundle",
                "--edge",
                edge.url,
                "--source",
                tmp_path / "photos",
                "--json",
            ]
            done = limited(wheel, ("device",), _COMMAND, arguments)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["summary"]["ok"] == 3

    def test_the_demo_on_own_photographs_needs_the_edge_extra_alone(
        self, wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        make_photos(tmp_path / "photos", count=2)
        arguments = ["demo", "--images", tmp_path / "photos", "--out", tmp_path / "out", "--json"]
        done = limited(wheel, ("edge",), _COMMAND, arguments)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert Path(document["bundle"]).is_relative_to(wheel.folder)
        assert [photo["name"] for photo in document["photographs"]] == ["photo0.jpg", "photo1.jpg"]

    def test_a_bundle_is_shown_with_the_core_alone(self, wheel: Wheel, tmp_path: Path) -> None:
        manifest = make_bundle(tmp_path / "bundle")
        done = limited(wheel, (), _COMMAND, ["bundle", "show", tmp_path / "bundle", "--json"])
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bundle_id"] == manifest.bundle_id


class TestStartUp:
    @pytest.mark.parametrize("arguments", [["--help"], ["run-device", "--help"], ["train", "--help"], ["--version"]])
    def test_help_loads_no_heavy_library(self, arguments: list[str]) -> None:
        heavy = ["numpy", "onnx", "onnxruntime", "PIL", "starlette", "timm", "torch", "torchvision", "uvicorn"]
        code = f"""
import sys
from aecnn_deploy.cli.main import run
status = run({arguments!r})
sys.exit(status or " ".join(name for name in {heavy!r} if name in sys.modules) or 0)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.strip()) == (0, "")
