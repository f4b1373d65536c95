"""``doctor``: what it finds on machines, in bundles and on the way to edges, and that nothing ends it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.diagnosis import extras
from aecnn_deploy.runtimes.diagnosis.checks import run_check
from aecnn_deploy.runtimes.diagnosis.clock import judge_clock, judge_skew
from aecnn_deploy.runtimes.diagnosis.cores import cpu_quota, judge_throttled
from aecnn_deploy.runtimes.diagnosis.finding import Finding, Level, ok
from aecnn_deploy.runtimes.diagnosis.host import Host
from aecnn_deploy.runtimes.diagnosis.onnxruntime_child import MODEL
from aecnn_deploy.runtimes.diagnosis.onnxruntime_probe import CHILD, judge_version, run_probe
from aecnn_deploy.runtimes.diagnosis.processor import read_processor
from aecnn_deploy.runtimes.diagnosis.subject import DiagnosisSettings, Subject
from tests.bundles import command, environment, make_bundle
from tests.doctor_hosts import A72, A76, PI4, findings, machine, subject
from tests.probe_model import probe_model


class TestFindings:
    @pytest.mark.parametrize("level", [Level.WARNING, Level.PROBLEM])
    def test_none_but_ok_goes_without_a_remedy(self, level: Level) -> None:
        with pytest.raises(ValueError, match="no remedy"):
            Finding("x", level, "something")

    def test_what_a_peer_or_a_file_says_is_one_printable_line(self) -> None:
        assert ok("x", "a\x1b[31mred\n\tthing " + "y" * 9999).found.startswith("a [31mred thing yyy")
        assert len(ok("x", "y" * 9999).found) <= 600


class TestProcessor:
    def test_a_raspberry_pi_4_is_named_and_lacks_the_dot_product(self, tmp_path: Path) -> None:
        found = findings(subject(machine(tmp_path, PI4)))["cpu"]
        assert found.level is Level.OK
        assert found.found.startswith("Raspberry Pi 4 Model B Rev 1.4, Cortex-A72: NEON")
        assert "no dot product" in found.found
        assert "calibrate device" in found.found

    def test_a_raspberry_pi_5_has_it(self, tmp_path: Path) -> None:
        found = findings(subject(machine(tmp_path, PI4, cpuinfo=A76)))["cpu"]
        assert "Cortex-A76: NEON (asimd), dot product (asimddp), fp16" in found.found
        assert "calibrate device" not in found.found

    def test_a_32_bit_system_on_a_64_bit_kernel_is_a_problem(self, tmp_path: Path) -> None:
        host = replace(machine(tmp_path, PI4), pointer_bits=32)
        found = findings(subject(host))["userland"]
        assert found.level is Level.PROBLEM
        assert "64-bit" in str(found.remedy)

    def test_an_x86_processor_without_avx2_is_slow(self, tmp_path: Path) -> None:
        host = replace(machine(tmp_path, {"proc/cpuinfo": "model name : Old\nflags : sse2 ssse3\n"}), machine="x86_64")
        assert findings(subject(host))["cpu"].level is Level.WARNING


class TestOnnxRuntime:
    @pytest.mark.parametrize(
        ("version", "cpu", "level"),
        [
            ("1.21.0", A72, Level.PROBLEM),
            ("1.21.0", A76, Level.OK),
            ("1.20.1", A72, Level.OK),
            ("1.32.0", A72, Level.OK),
            (None, A76, Level.PROBLEM),
        ],
    )
    def test_a_release_that_crashes_on_this_core_is_told_from_its_metadata(
        self, tmp_path: Path, version: str | None, cpu: str, level: Level
    ) -> None:
        found = judge_version(version, read_processor(machine(tmp_path, {"proc/cpuinfo": cpu})))
        assert found.level is level
        assert level is Level.OK or "pip install" in str(found.remedy)

    @pytest.mark.parametrize(
        ("code", "level", "words"),
        [
            ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", Level.PROBLEM, "SIGILL (an instruction"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Level.PROBLEM, "SIGSEGV"),
            ("raise ImportError('libonnx.so: wrong ELF class')", Level.PROBLEM, "wrong ELF class"),
            ("print('hello')", Level.PROBLEM, "gave no answer"),
            ('print(\'{"version": "1", "sum": 7}\')', Level.PROBLEM, "computes 7"),
            ("import time; time.sleep(60)", Level.WARNING, "not run within"),
        ],
    )
    def test_what_becomes_of_its_process_is_a_finding(self, code: str, level: Level, words: str) -> None:
        found = run_probe([sys.executable, "-S", "-c", code], 1.0 if "sleep" in code else 60.0)
        assert (found.level, found.check) == (level, "onnxruntime run")
        assert words in found.found

    def test_a_python_that_does_not_start_is_a_finding(self, tmp_path: Path) -> None:
        assert run_probe([str(tmp_path / "python")], 5.0).level is Level.WARNING

    def test_the_model_in_the_package_is_the_one_that_is_described(self) -> None:
        assert onnx.load(str(MODEL)) == probe_model()

    def test_onnxruntime_s_telemetry_is_off(self, tmp_path: Path) -> None:
        """With it, the wheels keep a database in the user's cache and send it away."""
        (tmp_path / "home").mkdir()
        rest = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home" / "cache")}
        done = _run(list(CHILD), **rest)
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "home").iterdir()) == []

    def test_doctor_survives_an_onnxruntime_that_crashes_when_it_is_imported(self, tmp_path: Path) -> None:
        (tmp_path / "onnxruntime").mkdir()
        (tmp_path / "onnxruntime" / "__init__.py").write_text("import os; os.kill(os.getpid(), 4)  # SIGILL")
        make_bundle(tmp_path / "bundle")
        code = "from aecnn_deploy.cli.main import main; main()"
        done = _run(
            [sys.executable, "-c", code, "doctor", str(tmp_path / "bundle"), "--json"], PYTHONPATH=str(tmp_path)
        )
        assert done.returncode == 1, done.stderr
        found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
        assert found["onnxruntime run"]["level"] == "problem"
        assert "SIGILL" in found["onnxruntime run"]["found"]
        assert found["bundle"]["level"] == "ok"  # and all that comes after it was examined


class TestCores:
    def test_what_affinity_leaves_is_told_with_the_option_to_give(self, tmp_path: Path) -> None:
        host = replace(machine(tmp_path, PI4), allowed_cores=2, environment={"OMP_NUM_THREADS": "3"})
        found = findings(subject(host))["threads"]
        assert found.level is Level.WARNING
        assert "2 of 4 cores; OMP_NUM_THREADS=3" in found.found
        assert "--threads 2" in str(found.remedy)

    @pytest.mark.parametrize(
        ("files", "quota"),
        [
            ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
            ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
            (
                {
                    "proc/self/cgroup": "3:cpu,cpuacct:/a\n",
                    "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000",
                    "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                },
                0.5,
            ),
            ({"proc/self/cgroup": "weird\n\0::::\n", "sys/fs/cgroup/cpu.max": "x y z\n"}, None),
        ],
    )
    def test_a_cgroup_quota_is_found(self, tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
        assert cpu_quota(machine(tmp_path, files)) == quota

    @pytest.mark.parametrize(("driver", "level"), [("cpufreq-dt", Level.WARNING), ("intel_pstate", Level.OK)])
    def test_powersave_is_slow_where_it_means_the_lowest_frequency(
        self, tmp_path: Path, driver: str, level: Level
    ) -> None:
        host = machine(tmp_path, PI4, scaling_governor="powersave", scaling_driver=driver)
        assert findings(subject(host))["governor"].level is level

    @pytest.mark.parametrize(
        ("flags", "level", "words"),
        [
            (0x0, Level.OK, "neither"),
            (0x50005, Level.PROBLEM, "under-voltage now"),
            (0x4, Level.WARNING, "throttled now"),
            (0x80008, Level.WARNING, "throttled now"),
            (0x50000, Level.WARNING, "under-voltage since the start"),
            (0x40000, Level.WARNING, "throttled since the start"),
        ],
    )
    def test_the_firmware_s_flags_are_told_in_words(self, flags: int, level: Level, words: str) -> None:
        found = judge_throttled(flags)
        assert found.level is level
        assert words in found.found

    def test_they_come_from_sysfs_or_vcgencmd_or_the_voltage_sensor(self, tmp_path: Path) -> None:
        host = machine(tmp_path / "sysfs", PI4, get_throttled="50005")
        assert findings(subject(host))["power"].level is Level.PROBLEM
        host = machine(tmp_path / "program", PI4, get_throttled=None)
        assert "power" not in findings(subject(host))
        (tmp_path / "program" / "bin").mkdir()
        program = tmp_path / "program" / "bin" / "vcgencmd"
        program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50000\n')
        program.chmod(0o755)
        assert "under-voltage since" in findings(subject(host))["power"].found
        program.write_text("#!/bin/sh\necho VCHI initialization failed >&2; exit 255\n")
        assert "power" not in findings(subject(host))
        sensor = {"sys/class/hwmon/hwmon1/name": "rpi_volt", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"}
        assert findings(subject(machine(tmp_path / "sensor", sensor)))["power"].level is Level.PROBLEM

    def test_a_hot_board_is_slow(self, tmp_path: Path) -> None:
        assert findings(subject(machine(tmp_path, PI4, temp="84000")))["temperature"].level is Level.WARNING


class TestStorage:
    @pytest.mark.parametrize(
        ("available", "swap", "level"),
        [(3_000_000, 0, Level.OK), (100_000, 200_000, Level.WARNING), (50_000, 1000, Level.PROBLEM)],
    )
    def test_memory_is_held_against_what_the_bundle_needs(
        self, tmp_path: Path, available: int, swap: int, level: Level
    ) -> None:
        make_bundle(tmp_path / "bundle")
        host = machine(tmp_path / "pi", PI4, meminfo=f"MemAvailable: {available} kB\nSwapFree: {swap} kB\n")
        found = findings(subject(host, tmp_path / "bundle"))["memory"]
        assert found.level is level
        assert "estimate" in found.found

    def test_a_control_group_s_limit_is_less_than_the_machine_s(self, tmp_path: Path) -> None:
        group = {
            "proc/self/cgroup": "0::/unit\n",
            "sys/fs/cgroup/unit/memory.max": "60000000",
            "sys/fs/cgroup/unit/memory.current": "59000000",
        }
        found = findings(subject(machine(tmp_path, PI4 | group)))["memory"]
        assert found.level is Level.PROBLEM
        assert found.found.startswith("0 MiB available")

    def test_a_cache_that_cannot_be_written_is_a_problem(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        host = replace(machine(tmp_path, PI4), environment={"XDG_CACHE_HOME": str(tmp_path / "file")})
        found = findings(subject(host))["cache"]
        assert found.level is Level.PROBLEM
        assert "XDG_CACHE_HOME" in str(found.remedy)


class TestClock:
    def test_a_clock_before_the_installation_is_a_problem(self) -> None:
        now_s = time.time()
        assert judge_clock(now_s - 40 * 86400, now_s, True).level is Level.PROBLEM
        assert judge_clock(now_s, now_s - 5, True).level is Level.OK
        assert judge_clock(now_s, now_s - 5, False).level is Level.WARNING
        assert judge_clock(now_s, now_s - 5, None).level is Level.OK

    def test_a_clock_that_differs_from_the_edge_s_is_told_with_its_side(self) -> None:
        assert judge_skew(2.0).level is Level.OK
        assert "120 s ahead of the edge" in judge_skew(120.0).found
        assert "3,600 s behind the edge" in judge_skew(-3600.0).found


class TestCamera:
    def test_a_camera_that_this_user_may_not_open_is_told(self, tmp_path: Path) -> None:
        host = machine(tmp_path, PI4 | {"dev/null": ""})
        (tmp_path / "dev/video0").symlink_to("unplugged")  # root may open all that there is
        assert "usermod -aG video" in str(findings(subject(host))["camera"].remedy)

    def test_cameras_are_named(self, tmp_path: Path) -> None:
        host = machine(tmp_path, PI4 | {f"dev/video{number}": "" for number in range(10, 16)})
        assert findings(subject(host))["camera"].found.startswith("/dev/video10, /dev/video11, ")


class TestSurvival:
    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\0garbage\x1b[2J: : :\n" * 50, b"9" * 6000, b"-1\n"])
    def test_files_of_any_content_lead_to_findings_and_never_to_a_mistake(self, tmp_path: Path, content: bytes) -> None:
        files = PI4 | {"proc/self/cgroup": "", "sys/class/hwmon/hwmon0/name": "", "sys/fs/cgroup/cpu.max": ""}
        host = machine(tmp_path, files)
        for name in files:
            (tmp_path / name).write_bytes(content)
        assert not [each for each in findings(subject(host)).values() if "the check itself failed" in each.found]

    def test_a_machine_without_any_file_is_examined(self, tmp_path: Path) -> None:
        host = Host(tmp_path, "riscv64", environment={"XDG_CACHE_HOME": str(tmp_path)})
        found = findings(subject(host))
        assert not [each for each in found.values() if "the check itself failed" in each.found]
        assert found["cpu"].level is Level.WARNING

    def test_folders_in_the_place_of_files_do_no_harm(self, tmp_path: Path) -> None:
        for name in PI4:
            (tmp_path / name).mkdir(parents=True)
        host = Host(tmp_path, "aarch64", environment={"XDG_CACHE_HOME": str(tmp_path)})
        assert not [each for each in findings(subject(host)).values() if "the check itself failed" in each.found]

    def test_an_error_in_a_check_is_a_finding_after_what_it_had_found(self) -> None:
        def check_broken(_: Subject) -> Iterator[Finding]:
            yield ok("broken", "so far")
            raise RuntimeError("oh")

        first, second = run_check(check_broken, subject())
        assert (first.found, second.level, second.check) == ("so far", Level.WARNING, "broken")
        assert "RuntimeError: oh" in second.found

    def test_a_check_that_hangs_is_left_behind(self) -> None:
        def check_nfs(_: Subject) -> Iterator[Finding]:
            time.sleep(3.0)
            yield ok("nfs", "late")

        settings = DiagnosisSettings(check_timeout_s=0.2)
        (found,) = run_check(check_nfs, Subject(settings, open_bundle))
        assert (found.level, found.check) == (Level.WARNING, "nfs")

    @pytest.mark.parametrize("edge", ["127.0.0.1:8765", "ftp://x", "ws://", "ws://x:99999"])
    def test_an_address_that_is_none_is_wrong_use(self, edge: str) -> None:
        with pytest.raises(SettingsError, match="--edge"):
            DiagnosisSettings(edge=edge)


class TestCommand:
    def test_the_document_has_the_keys_of_before_and_the_findings(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle")
        done = command("doctor", str(tmp_path / "bundle"), "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert set(document) == {"version", "python", "machine", "cpus", "findings", "extras", "gpu_runners"}
        assert document["extras"]["device"]["missing"] == []
        assert set(document["extras"]["device"]) == {"for", "versions", "missing"}
        for finding in document["findings"]:
            assert set(finding) == {"check", "level", "found", "remedy"}
            assert finding["level"] == "ok" or finding["remedy"]
        assert "onnxruntime run" in {finding["check"] for finding in document["findings"]}

    def test_a_problem_is_exit_status_1_and_the_page_fits_80_columns(self, tmp_path: Path) -> None:
        done = command("doctor", str(tmp_path / "none"), "--edge", "ws://127.0.0.1:9")
        assert (done.returncode, done.stderr) == (1, b"")
        lines = done.stdout.decode().splitlines()
        assert lines[-1].startswith("2 problems, ")
        for line in lines:
            # One word alone may be longer: a path is not cut.
            assert len(line) <= 80 or len(line.split()) <= 4, line
        assert any(line.startswith("problem   bundle ") for line in lines)
        assert any("remedy start 'aecnn-deploy serve-edge" in line for line in lines)

    def test_a_wrong_address_is_exit_status_2(self) -> None:
        done = command("doctor", "--edge", "localhost")
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: --edge 'localhost' is no address")

    def test_every_extra_that_it_lists_is_one_of_the_package(self) -> None:
        import importlib.metadata

        provided = importlib.metadata.metadata("aecnn-deploy").get_all("Provides-Extra") or []
        assert set(extras.EXTRAS) <= set(provided)


def _run(words: list[str], **more: str) -> "subprocess.CompletedProcess[str]":
    rest = {name: value for name, value in environment().items() if name != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=rest | more)
