"""The Dockerfiles: what they copy and install exists, what they start parses, their health check tells the truth."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import aecnn_deploy
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.wire import GoodbyeReceived, ResultReceived
from tests.bundles import SLOW, Edge, make_bundle, serving
from tests.certificates import Authority
from tests.deploy_files import DEPLOY, DOCKERFILES, ROOT, Stage, image, option, stages_of
from tests.edge_client import Client, planes_of, wait_until_in_flight
from tests.test_docs import parse

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
FINAL = ("cpu", "gpu", "device")
HEALTHCHECK = DEPLOY / "docker" / "healthcheck.py"


def stages() -> list[Stage]:
    return [stage for path in DOCKERFILES for stage in stages_of(path)]


def locked(name: str) -> dict[str, tuple[Version, str]]:
    """Package -> (release, what follows it: markers and hashes) of a lock; on Linux with CPython 3.13."""
    found = {}
    environment = {"sys_platform": "linux", "python_full_version": "3.13.7", "python_version": "3.13"}
    for entry in re.split(r"\n(?=[a-z0-9])", (DEPLOY / "docker" / "locks" / name).read_text()):
        match = re.match(r"([a-z0-9-]+)==(\S+)(.*)", entry, re.DOTALL)
        if match:
            requirement = Requirement(entry.partition("\\")[0].strip())
            if requirement.marker is None or requirement.marker.evaluate(environment):
                found[match[1]] = (Version(match[2]), match[3])
    return found


class TestDockerfiles:
    @pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
    def test_hadolint_finds_nothing(self, path: Path) -> None:
        program = Path(sys.executable).with_name("hadolint")
        done = subprocess.run([program, "--no-color", path], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "")

    @pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
    def test_a_rule_is_only_left_out_where_a_comment_says_why(self, path: Path) -> None:
        assert not list(ROOT.glob(".hadolint*"))
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if "hadolint" in line:
                assert re.fullmatch(r"# hadolint ignore=DL\d+", line), line
                assert lines[number - 1].startswith("# "), line

    def test_every_base_is_a_release_and_not_whatever_is_newest(self) -> None:
        names = {stage.name for stage in stages()}
        bases = {stage.base for stage in stages()} - names
        assert len(bases) >= 4
        for base in bases:
            assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+[-.\w]*", base), base

    def test_everything_that_is_copied_is_there_and_reaches_the_builder(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        assert [line for line in ignored if not line.startswith(("#", "!"))] == ["*", "**/__pycache__", "**/*.pyc"]
        let_in = [line[1:] for line in ignored if line.startswith("!")]
        copied = []
        for path in DOCKERFILES:
            if path.name != "bundle.Dockerfile":  # its context is a bundle
                copied += [value for stage in stages_of(path) for value in stage.all("COPY")]
        sources = [word for value in copied if "--from" not in value for word in value.split()[:-1]]
        assert len(sources) > 15
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == place or source.startswith(place + "/") for place in let_in), source
        for place in let_in:
            assert (ROOT / place).exists(), place

    @pytest.mark.parametrize("path", [path for path in DOCKERFILES if path.name != "bundle.Dockerfile"])
    def test_the_wheel_is_built_from_every_folder_of_a_package(self, path: Path) -> None:
        (wheel,) = [stage for stage in stages_of(path) if stage.name == "wheel"]
        copied = {word for value in wheel.all("COPY") for word in value.split()[:-1]}
        folders = set(PYPROJECT["tool"]["setuptools"]["package-dir"].values())
        assert folders | {"pyproject.toml", "README.md", "LICENSE"} <= copied

    def test_what_is_bound_or_copied_from_a_stage_comes_from_one_above(self) -> None:
        for path in DOCKERFILES:
            above: list[str] = []
            for stage in stages_of(path):
                named = re.findall(r"(?:--from|,from)=([\w-]+)", " ".join(value for _, value in stage.steps))
                assert set(named) <= set(above), path.name
                above.append(stage.name)

    def test_the_first_lines_build_the_targets_that_exist(self) -> None:
        for path in DOCKERFILES:
            for name in re.findall(r"--target (\w+)", path.read_text()):
                assert name in {stage.name for stage in stages_of(path)}
        assert stages_of(DEPLOY / "docker" / "edge.Dockerfile")[-1].name == "cpu"  # what no --target builds

    @pytest.mark.parametrize("name", FINAL)
    def test_its_label_is_this_release(self, name: str) -> None:
        assert f"VERSION={aecnn_deploy.__version__}" in image(name).all("ARG")
        assert 'org.opencontainers.image.licenses="Apache-2.0"' in image(name).all("LABEL")[0]


class TestPackages:
    INSTALLED = (("cpu-packages", "edge"), ("gpu-packages", "edge-gpu"), ("packages", "device"))

    @pytest.mark.parametrize(("stage", "lock"), INSTALLED)
    def test_the_lock_has_all_that_its_extras_ask_for(self, stage: str, lock: str) -> None:
        run = " ".join(image(stage).all("RUN"))
        assert f"/locks/{lock}.txt" in run
        assert run.index("--require-hashes") < run.index("aecnn_deploy-*.whl")
        (extras,) = re.findall(r"aecnn_deploy-\*\.whl\)\[([\w,-]+)\]", run)
        assert set(extras.split(",")) <= EXTRAS.keys()
        releases = locked(f"{lock}.txt")
        wanted = [*PYPROJECT["project"]["dependencies"], *(text for e in extras.split(",") for text in EXTRAS[e])]
        for requirement in map(Requirement, wanted):
            release = releases.get(canonicalize_name(requirement.name))
            assert release, f"{lock}.txt lacks {requirement}; run tools/lock_images.sh"
            assert release[0] in requirement.specifier, f"{lock}.txt: {requirement}; run tools/lock_images.sh"

    def test_the_wheel_is_built_with_what_pyproject_asks_for(self) -> None:
        releases = locked("build.txt")
        for requirement in map(Requirement, PYPROJECT["build-system"]["requires"]):
            assert releases[requirement.name][0] in requirement.specifier

    @pytest.mark.parametrize("path", sorted((DEPLOY / "docker" / "locks").iterdir()), ids=lambda path: path.name)
    def test_every_locked_release_has_its_hashes(self, path: Path) -> None:
        releases = locked(path.name)
        assert releases
        assert [name for name, (_, rest) in releases.items() if "--hash=sha256:" not in rest] == []

    def test_nothing_is_compiled_on_a_raspberry_pi(self) -> None:
        assert "--only-binary :all:" in image("packages").all("RUN")[0]
        assert {"torch", "pycuda", "tensorrt"}.isdisjoint(locked("device.txt"))


class TestImages:
    @pytest.mark.parametrize("name", FINAL)
    def test_what_it_starts_is_a_command_of_ours_without_a_shell(self, name: str) -> None:
        stage = image(name)
        assert stage.words("ENTRYPOINT") == ["aecnn-deploy"]
        command = stage.words("CMD")
        if command[-1] != "--help":
            parse(" ".join(command))
        assert command[0] in ("serve-edge", "run-device")
        assert stage.all("STOPSIGNAL") == ["SIGTERM"]

    @pytest.mark.parametrize("name", FINAL)
    def test_it_runs_as_a_number_that_is_not_root_s(self, name: str) -> None:
        (user,) = image(name).all("USER")
        uid = user.partition(":")[0]
        assert int(uid) >= 10000
        (made,) = [run for run in image(name).all("RUN") if "useradd" in run]
        assert f"--uid {uid} " in made
        assert f"install -d -o {uid} -g {uid}" in made
        for folder in image(name).words("VOLUME"):
            assert folder in made

    @pytest.mark.parametrize("name", ["cpu", "gpu"])
    def test_the_port_is_the_one_that_is_exposed_and_asked_for_health(self, name: str) -> None:
        stage = image(name)
        port = option(stage.words("CMD"), "--port")
        assert stage.all("EXPOSE") == [port]
        assert stage.environment["AECNN_HEALTH_URL"] == f"http://127.0.0.1:{port}/healthz"
        (check,) = stage.all("HEALTHCHECK")
        assert f'["python", "/usr/local/lib/aecnn/{HEALTHCHECK.name}"]' in check
        assert f"COPY deploy/docker/{HEALTHCHECK.name} /usr/local/lib/aecnn/{HEALTHCHECK.name}" in [
            f"COPY {value}" for value in stage.all("COPY")
        ]

    @pytest.mark.parametrize("name", FINAL)
    def test_caches_are_written_to_a_volume(self, name: str) -> None:
        assert image(name).environment["XDG_CACHE_HOME"] in image(name).words("VOLUME")


def health(**variables: str) -> tuple[int, str]:
    """Exit status and words of the health check with these variables and nothing else that could help it."""
    done = subprocess.run(
        [sys.executable, "-I", HEALTHCHECK], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("deploy") / "bundle"
    make_bundle(path, variants=SLOW)
    return open_bundle(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def guarded(bundle: Bundle, site: Authority) -> Iterator[Edge]:
    """An edge with TLS, which wants a certificate of its clients."""
    pair = site.issue("edge", hosts=("edge.example",))
    options = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--client-ca", str(site.ca))
    with serving(bundle.path, "--preload", "none", *options) as edge:
        yield edge


class TestHealthcheck:
    def test_an_edge_with_tls_is_asked_without_verifying_its_name(self, guarded: Edge, site: Authority) -> None:
        own = site.issue("health")
        url = f"https://127.0.0.1:{guarded.port}/healthz"
        assert health(AECNN_HEALTH_URL=url, AECNN_HEALTH_CERT=str(own.cert), AECNN_HEALTH_KEY=str(own.key)) == (0, "")

    def test_an_edge_that_lets_nobody_in_without_a_certificate_is_not_well_without_one(self, guarded: Edge) -> None:
        status, said = health(AECNN_HEALTH_URL=f"https://127.0.0.1:{guarded.port}/healthz")
        assert (status, said.count("\n")) == (1, 1)

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("http://127.0.0.1:9/healthz", "Connection refused"),
            ("ftp://127.0.0.1/healthz", "neither http:// nor https://"),
            ("http://127.0.0.1:no/healthz", "nonnumeric port"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, url: str, why: str) -> None:
        status, said = health(AECNN_HEALTH_URL=url)
        assert (status, said.count("\n")) == (1, 1)
        assert why in said

    def test_an_answer_that_is_not_200_is_not_well(self, bundle: Bundle) -> None:
        with serving(bundle.path, "--preload", "none") as edge:
            assert health(AECNN_HEALTH_URL=f"{edge.http}/healthz") == (0, "")
            status, said = health(AECNN_HEALTH_URL=f"{edge.http}/nothing")
        assert status == 1
        assert "404" in said


def test_an_image_s_own_command_serves_and_drains_on_sigterm(bundle: Bundle, tmp_path: Path) -> None:
    """ENTRYPOINT and CMD as they stand, with the image's variables, another port, and a bundle nobody may write to."""
    stage = image("cpu")
    place = tmp_path / "bundle"
    shutil.copytree(bundle.path, place)
    for path in (*place.rglob("*"), place):
        path.chmod(0o555 if path.is_dir() else 0o444)
    words = [*stage.words("ENTRYPOINT"), *stage.words("CMD")]
    words = [str(place) if word == "/bundle" else "0" if word == option(words, "--port") else word for word in words]
    words = ["127.0.0.1" if word == "0.0.0.0" else word for word in words]
    path = stage.environment["PATH"].replace("/usr/local/lib/aecnn/bin", str(Path(sys.executable).parent))
    variables = stage.environment | {
        "PATH": path.replace("$PATH", os.environ["PATH"]),
        "HOME": str(tmp_path / "nowhere"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    process = subprocess.Popen(
        [*words, "--json", "--threads", "1"], env=variables, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        edge = _ready(process)
        assert health(AECNN_HEALTH_URL=f"{edge.http}/healthz") == (0, "")
        spec = bundle.manifest.variants[0]
        with Client(edge, bundle) as client:
            client.event()
            request_id = client.ask(spec, 0, planes_of(spec))
            wait_until_in_flight(edge, 1)
            process.send_signal(signal.SIGTERM)
            assert isinstance(client.event(), GoodbyeReceived)
            answer = client.event()
            assert isinstance(answer, ResultReceived)
            assert answer.request_id == request_id
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, errors
    assert all(line.startswith(b"{") for line in errors.splitlines())  # --log-format json
    assert not (tmp_path / "nowhere").exists()
    assert health(AECNN_HEALTH_URL=f"{edge.http}/healthz")[0] == 1


def _ready(process: "subprocess.Popen[bytes]") -> Edge:
    """The edge of ``process``, which says on its first line where it listens."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return Edge(process, msgspec.json.decode(line))  # type: ignore[arg-type]
