"""The systemd units: what they say is valid, hardened, and starts this program; readiness reaches the manager."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from aecnn_deploy.errors import SettingsError, UnitError
from aecnn_deploy.systemd.notify import READY, notify
from aecnn_deploy.systemd.unit import KINDS, ServicePlan, hidden_from_services, plan_service, write_service
from tests.bundles import COMMAND, command, environment, make_bundle, one_line
from tests.test_docs import parse

ANALYZE = shutil.which("systemd-analyze")
MOST_EXPOSURE = 2.0  # of 10, as systemd-analyze counts; 1.8 when this was written

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze, which judges units, is not installed")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program in a place that a service sees, as far as the plan can tell."""
    path = tmp_path / "bin" / "aecnn-deploy"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def unit_of(kind: str) -> str:
    return (files("aecnn_deploy.systemd") / f"aecnn-{kind}.service").read_text()


def analyze(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *words], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
@pytest.mark.parametrize("kind", KINDS)
class TestWithSystemd:
    def test_a_unit_is_valid(self, kind: str, tmp_path: Path, program: Path) -> None:
        written = tmp_path / f"aecnn-{kind}.service"
        written.write_text(plan_service(kind, program=program).unit)
        done = analyze("verify", "--man=no", written)
        said = [line for line in (done.stdout + done.stderr).splitlines() if written.name in line]
        assert (done.returncode, said) == (0, [])

    def test_a_unit_exposes_little(self, kind: str, tmp_path: Path, program: Path) -> None:
        written = tmp_path / f"aecnn-{kind}.service"
        written.write_text(plan_service(kind, program=program).unit)
        done = analyze("security", "--offline=yes", "--no-pager", written)
        if "offline" in done.stderr:
            pytest.skip("this systemd-analyze judges no files: it is older than 250")
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
        assert found, done.stderr
        assert float(found[1]) <= MOST_EXPOSURE


@pytest.mark.parametrize("kind", KINDS)
class TestUnit:
    def test_what_it_starts_is_a_command_with_those_options(self, kind: str, program: Path) -> None:
        unit = plan_service(kind, program=program).unit
        (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        assert line.startswith(f"{program} ")
        settings = (files("aecnn_deploy.systemd") / f"{kind}.env.example").read_text()
        given = dict(re.findall(r"^(AECNN_\w+)=(.*)$", settings, re.MULTILINE))
        assert set(re.findall(r"AECNN_\w+", line)) == set(given)
        line = re.sub(r"\$\{?(AECNN_\w+)\}?", lambda name: given[name[1]], line)
        parse(line.removeprefix(f"{program} "))

    def test_the_stop_time_is_above_the_drain_s(self, kind: str) -> None:
        (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit_of(kind), re.MULTILINE)
        assert int(stop_s) >= 20  # --drain-s 10, then connections and threads

    def test_wrong_use_is_not_tried_again(self, kind: str) -> None:
        assert "RestartPreventExitStatus=2\n" in unit_of(kind)
        assert "Restart=on-failure\n" in unit_of(kind)

    def test_it_is_written_with_settings_that_stay(self, kind: str, tmp_path: Path, program: Path) -> None:
        plan = _free(plan_service(kind, tmp_path / "card", program))
        assert write_service(plan) == [plan.unit_path, plan.settings_path]
        assert plan.unit_path == tmp_path / f"card/etc/systemd/system/aecnn-{kind}.service"
        plan.settings_path.write_text("AECNN_BUNDLE=mine\n")
        assert write_service(plan) == [plan.unit_path]
        assert plan.settings_path.read_text() == "AECNN_BUNDLE=mine\n"

    def test_the_command_prints_it_and_writes_nothing(self, kind: str, tmp_path: Path) -> None:
        done = command("install-unit", kind, "--print", "--root", str(tmp_path / "card"))
        assert done.returncode == 0, done.stderr
        assert f"\nExecStart={_own_program()} " in done.stdout.decode()
        assert not (tmp_path / "card").exists()


class TestRefusals:
    def test_an_unknown_kind_is_wrong_use(self) -> None:
        with pytest.raises(SettingsError, match="choose one of device, edge"):
            plan_service("both")

    @pytest.mark.parametrize("hidden", ["home", "root", "run/user", "tmp"])
    def test_a_program_in_a_home_is_refused_with_where_to_put_it(
        self, hidden: str, tmp_path: Path, program: Path
    ) -> None:
        why = hidden_from_services(Path("/") / hidden / "pi" / "venv" / "bin" / "aecnn-deploy")
        assert hidden_from_services(Path("/usr/local/lib/aecnn/bin/aecnn-deploy")) is None
        plan = replace(plan_service("device", tmp_path / "card", program), obstacle=why)
        with pytest.raises(UnitError, match=rf"lies in /{hidden}, .*hidden from services; install .* elsewhere"):
            write_service(plan)
        assert not (tmp_path / "card").exists()

    def test_a_program_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnitError, match="there is no"):
            plan_service("device", program=tmp_path / "aecnn-deploy")

    def test_a_place_that_cannot_be_written_is_one_line(self, tmp_path: Path, program: Path) -> None:
        (tmp_path / "card").write_text("a file")
        plan = _free(plan_service("device", tmp_path / "card", program))
        with pytest.raises(UnitError, match=r"cannot write .*; run it with sudo"):
            write_service(plan)

    def test_a_percent_sign_and_a_space_reach_systemd_as_they_are(self, tmp_path: Path) -> None:
        odd = tmp_path / "100% mine" / "aecnn-deploy"
        odd.parent.mkdir()
        odd.write_text("")
        assert f'ExecStart="{tmp_path}/100%% mine/aecnn-deploy" run-device' in plan_service("device", program=odd).unit

    def test_the_command_says_why_in_one_line(self) -> None:
        done = command("install-unit", "gateway")
        assert done.returncode == 2
        assert one_line(done.stderr) == "error: no unit for 'gateway'; choose one of device, edge"


class TestNotify:
    @pytest.fixture(params=["path", "abstract"])
    def manager(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[socket.socket]:
        """What a service manager listens on; the environment names it."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = str(tmp_path / "notify") if request.param == "path" else f"@aecnn-{os.getpid()}"
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(60.0)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        with listener:
            yield listener

    def test_the_manager_hears_all_states_in_one_message(self, manager: socket.socket) -> None:
        assert notify(READY, "STATUS=fine")
        assert manager.recv(1000) == b"READY=1\nSTATUS=fine"

    def test_an_edge_is_ready_when_it_serves(self, manager: socket.socket, tmp_path: Path) -> None:
        manifest = make_bundle(tmp_path / "bundle")
        words = ["serve-edge", str(tmp_path / "bundle"), "--port", "0", "--no-build", "--threads", "1"]
        process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True, env=environment())
        try:
            said = manager.recv(1000).decode()
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=60)
        assert said == f"READY=1\nSTATUS=serving 2 variants of bundle {manifest.bundle_id[:12]}", errors
        assert process.returncode == 0

    @pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify"])
    def test_no_manager_is_no_error(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert not notify(READY)


def _own_program() -> Path:
    return Path(sys.executable).with_name("aecnn-deploy").absolute()


def _free(plan: ServicePlan) -> ServicePlan:
    """The plan as it is where the program lies in a place that services see."""
    return replace(plan, obstacle=None)


class TestInstallPage:
    TEXT = (Path(__file__).parents[1] / "docs" / "install-raspberry-pi.md").read_text()

    def test_its_commands_parse_also_after_sudo(self) -> None:
        lines = re.findall(r"^\$ .*?\b(?<![-/])aecnn-deploy (\S[^#\n]*)$", self.TEXT, re.MULTILINE)
        assert {line.split()[0] for line in lines} >= {"doctor", "calibrate", "run-device", "install-unit"}
        for line in lines:
            parse(line)

    def test_it_names_every_setting_and_place_of_the_units(self) -> None:
        for kind in KINDS:
            settings = (files("aecnn_deploy.systemd") / f"{kind}.env.example").read_text()
            for name in re.findall(r"^(AECNN_\w+)=", settings, re.MULTILINE):
                assert f"`{name}`" in self.TEXT, name
        assert hidden_from_services(Path("/usr/local/lib/aecnn")) is None
        assert "venv /usr/local/lib/aecnn\n" in self.TEXT

    def test_every_finding_that_it_names_is_one_of_doctor_s(self) -> None:
        folder = Path(__file__).parents[1] / "runtimes" / "diagnosis"
        code = "".join(path.read_text() for path in folder.glob("*.py"))
        rows = re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\|$", self.TEXT.partition("## When something")[2], re.MULTILINE)
        named = {word for row in rows for word in re.findall(r"(?:problem|warning) ([a-z ]+?)(?:`|:)", row)}
        assert len(named) > 8
        assert {name for name in named if f'"{name}"' not in code} == set()
