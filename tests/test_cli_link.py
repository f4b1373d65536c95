"""``serve-edge``, ``run-device`` and ``bundle`` as their users meet them: processes, exit statuses, one-line errors."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.bundle.manifest import MANIFEST, bundle_id, canonical
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import coder_names, delta_names
from aecnn_deploy.runtimes.frames import read_frame
from tests.bundles import (
    COMMAND,
    SLOW,
    Edge,
    command,
    environment,
    make_bundle,
    make_photos,
    one_line,
    run_directly,
    serving,
)
from tests.in_process import command_here

FILES = (
    MANIFEST,
    "full.onnx",
    "heads/tiny-l1-v2-u8.onnx",
    "heads/tiny-l1-v4-u4.onnx",
    "tails/tiny-l1-v2-u8.onnx",
    "tails/tiny-l1-v4-u4.onnx",
)
IMAGE_KEYS = {
    "source",
    "status",
    "error",
    "path",
    "variant",
    "coder",
    "index",
    "label",
    "score",
    "wire_bytes",
    "device_ms",
    "link_ms",
    "edge_ms",
    "total_ms",
}
NOWHERE = "ws://127.0.0.1:1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("link")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    make_bundle(folder / "bundle")
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def photos(folder: Path) -> list[Path]:
    return make_photos(folder / "photos", 5)


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path) as running:
        yield running


def test_a_folder_is_classified_and_the_document_has_every_key(edge: Edge, bundle: Bundle, photos: list[Path]) -> None:
    done = command("run-device", str(bundle.path), "--edge", edge.url, "--source", str(photos[0].parent), "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    document = json.loads(done.stdout)
    assert document["bundle_id"] == bundle.id
    assert [image["source"] for image in document["images"]] == [str(photo) for photo in photos]
    for photo, image in zip(photos, document["images"], strict=True):
        logits = run_directly(bundle, read_frame(photo, bundle.manifest.input), "tiny-l1-v2-u8")
        assert image.keys() >= IMAGE_KEYS
        assert (image["status"], image["error"], image["path"]) == ("ok", None, "split")
        assert image["index"] == int(np.argmax(logits))
        assert image["label"] == bundle.manifest.labels[image["index"]]
        assert image["coder"] in (*coder_names(), *delta_names())
    summary = document["summary"]
    assert (summary["ok"], summary["failed"]) == (5, 0)
    assert summary["wire_bytes_mean"] == pytest.approx(np.mean([i["wire_bytes"] for i in document["images"]]), abs=0.1)
    assert summary["total_ms_p50"] <= summary["total_ms_p99"]


def test_without_json_there_is_a_line_for_each_image_in_80_columns(
    edge: Edge, bundle: Bundle, photos: list[Path]
) -> None:
    done = command("run-device", str(bundle.path), "--edge", edge.url, "--source", str(photos[0].parent))
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(lines) == len(photos) + 2
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["image", "label", "score", "bytes", "device", "link", "edge"]
    assert all(photo.name in line for photo, line in zip(photos, lines[1:], strict=False))
    assert lines[-1].startswith("5 ok, 0 failed; mean ")


def test_a_variant_can_be_chosen_and_an_image_come_by_stdin(edge: Edge, bundle: Bundle, photos: list[Path]) -> None:
    done = command(
        *("run-device", str(bundle.path), "--edge", edge.url.replace("ws:", "http:"), "--source", "-", "--json"),
        *("--variant", "tiny-l1-v4-u4", "--zstd-level", "19"),
        stdin=photos[1].read_bytes(),
    )
    (image,) = json.loads(done.stdout)["images"]
    assert done.returncode == 0
    assert (image["source"], image["variant"], image["status"]) == ("-", "tiny-l1-v4-u4", "ok")


def test_an_image_that_does_not_decode_fails_and_the_run_goes_on(
    edge: Edge, bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(photos[0].read_bytes())
    (tmp_path / "b.jpg").write_bytes(b"no image")
    (tmp_path / "c.jpg").write_bytes(photos[1].read_bytes())
    arguments = ("run-device", str(bundle.path), "--edge", edge.url, "--source", str(tmp_path))
    done = command(*arguments, "--json")
    images = json.loads(done.stdout)["images"]
    assert done.returncode == 1
    assert [image["status"] for image in images] == ["ok", "failed", "ok"]
    assert "b.jpg" in images[1]["error"]
    assert images[1].keys() >= IMAGE_KEYS
    done = command(*arguments)
    assert done.returncode == 1
    assert "failed: " in done.stdout.decode().splitlines()[2]
    assert done.stdout.decode().splitlines()[-1].startswith("2 ok, 1 failed")


def test_no_torch_and_no_server_library_is_imported_on_a_device(edge: Edge, bundle: Bundle, photos: list[Path]) -> None:
    blocker = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

BLOCKED = {"torch", "torchvision", "timm", "starlette", "uvicorn", "prometheus_client", "onnx", "tensorrt_rtx"}
sys.meta_path.insert(0, Blocker())
from aecnn_deploy.cli.main import run
status = run(sys.argv[1:])
assert not BLOCKED & sys.modules.keys()
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", blocker, "run-device", str(bundle.path), "--edge", edge.url, "--source", str(photos[0])],
        capture_output=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert done.stdout.decode().splitlines()[-1].startswith("1 ok, 0 failed")


def test_device_and_edge_with_different_bundles_part_by_name(edge: Edge, photos: list[Path], tmp_path: Path) -> None:
    make_bundle(tmp_path / "other", seed=7)
    done = command("run-device", str(tmp_path / "other"), "--edge", edge.url, "--source", str(photos[0].parent))
    assert (done.returncode, done.stdout) == (1, b"")
    assert "bundle-mismatch" in one_line(done.stderr)


def test_a_port_in_use_is_told(edge: Edge, bundle: Bundle) -> None:
    done = command("serve-edge", str(bundle.path), "--port", str(edge.port))
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"127.0.0.1:{edge.port}: the port is in use" in one_line(done.stderr)


def test_a_host_that_is_not_here_is_told(bundle: Bundle) -> None:
    done = command("serve-edge", str(bundle.path), "--host", "192.0.2.1", "--port", "0")
    assert done.returncode == 1
    assert "192.0.2.1" in one_line(done.stderr)


def test_an_unreachable_edge_is_told(bundle: Bundle, photos: list[Path]) -> None:
    done = command_here("run-device", str(bundle.path), "--edge", NOWHERE, "--source", str(photos[0]), "--json")
    assert (done.returncode, done.stdout) == (1, b"")
    assert "cannot reach the edge" in one_line(done.stderr)


def test_a_port_that_speaks_something_else_is_one_line(bundle: Bundle, photos: list[Path]) -> None:
    def babble() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"\0\xffgarbage\r\n" * 50)
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=babble)
        thread.start()
        url = f"ws://127.0.0.1:{server.getsockname()[1]}"
        done = command("run-device", str(bundle.path), "--edge", url, "--source", str(photos[0]))
        thread.join()
    assert done.returncode == 1
    assert "speaks no WebSocket" in one_line(done.stderr)


@pytest.mark.parametrize("source", ["absent", "empty", "-"])
def test_a_source_without_images_is_told(edge: Edge, bundle: Bundle, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    named = source if source == "-" else str(tmp_path / source)
    done = command("run-device", str(bundle.path), "--edge", edge.url, "--source", named)
    assert (done.returncode, done.stdout) == (1, b"")
    assert one_line(done.stderr).startswith("error: ")


@pytest.mark.parametrize(
    "options",
    [
        ("--edge", "localhost:8765"),
        ("--edge", NOWHERE, "--threads", "-1"),
        ("--edge", NOWHERE, "--zstd-level", "99"),
        ("--edge", NOWHERE, "--timeout-s", "0"),
        ("--edge", NOWHERE, "--limit", "0"),
    ],
)
def test_wrong_use_of_run_device_exits_2(bundle: Bundle, photos: list[Path], options: tuple[str, ...]) -> None:
    done = command_here("run-device", str(bundle.path), "--source", str(photos[0]), *options)
    assert (done.returncode, done.stdout) == (2, b"")
    assert one_line(done.stderr).startswith("error: ")


@pytest.mark.parametrize("options", [("--runner", "openvino"), ("--port", "70000"), ("--max-in-flight", "0")])
def test_wrong_use_of_serve_edge_exits_2(bundle: Bundle, options: tuple[str, ...]) -> None:
    done = command_here("serve-edge", str(bundle.path), *options)
    assert (done.returncode, done.stdout) == (2, b"")
    assert one_line(done.stderr).startswith("error: ")


def test_a_runner_that_cannot_run_here_is_told(bundle: Bundle) -> None:
    done = command_here("serve-edge", str(bundle.path), "--port", "0", "--runner", "tensorrt", "--no-build")
    assert (done.returncode, done.stdout) == (1, b"")
    assert "tensorrt" in one_line(done.stderr)


def changed(bundle: Bundle, to: Path, file: str) -> None:
    for name in FILES:
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((bundle.root / name).read_bytes())
    content = bytearray((to / file).read_bytes())
    content[len(content) // 2] ^= 1
    (to / file).write_bytes(content)


def test_the_list_of_files_is_the_bundles_whole_list(bundle: Bundle) -> None:
    assert sorted(FILES) == sorted([MANIFEST, *bundle.manifest.files])


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_in_any_file_stops_every_command(
    bundle: Bundle, photos: list[Path], tmp_path: Path, file: str
) -> None:
    changed(bundle, tmp_path / "bad", file)
    for arguments in (
        ("serve-edge", str(tmp_path / "bad"), "--port", "0"),
        ("run-device", str(tmp_path / "bad"), "--edge", NOWHERE, "--source", str(photos[0])),
    ):
        done = command_here(*arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        assert file in one_line(done.stderr)


@pytest.mark.parametrize("name", ["serve-edge", "run-device", "bundle"])
def test_a_bundle_of_a_newer_format_and_a_folder_that_is_none_are_told(
    bundle: Bundle, photos: list[Path], tmp_path: Path, name: str
) -> None:
    document: dict[str, Any] = json.loads((bundle.root / MANIFEST).read_bytes())
    document["format"] = 99
    document["bundle_id"] = bundle_id(document)
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / MANIFEST).write_bytes(canonical(document))
    (tmp_path / "none").mkdir()
    options = {
        "serve-edge": ("--port", "0"),
        "run-device": ("--edge", NOWHERE, "--source", str(photos[0])),
        "bundle": (),
    }[name]
    for folder, what in (("newer", "bundle format 99"), ("none", "is not a bundle")):
        command_line = ("bundle", "show") if name == "bundle" else (name,)
        done = command_here(*command_line, str(tmp_path / folder), *options)
        assert (done.returncode, done.stdout) == (1, b"")
        assert what in one_line(done.stderr)


def test_ctrl_c_in_a_run_prints_what_was_done_and_exits_130(folder: Path, photos: list[Path]) -> None:
    make_bundle(folder / "slow", variants=SLOW)
    with serving(folder / "slow") as edge:
        device = subprocess.Popen(
            [*COMMAND, "run-device", str(folder / "slow"), "--edge", edge.url, "--source", str(photos[0].parent)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert device.stdout is not None
        device.stdout.readline()
        device.stdout.readline()
        device.send_signal(signal.SIGINT)
        out, errors = device.communicate(timeout=20)
        assert device.returncode == 130
        assert out.splitlines()[-1].endswith("; interrupted")
        assert errors == ""
        assert edge.stop()[0] == 0


def test_the_edge_is_drained_by_sigint_with_a_device_in_flight(
    folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    make_bundle(tmp_path / "slow", variants=SLOW)
    with serving(tmp_path / "slow") as edge:
        device = subprocess.Popen(
            [
                *COMMAND,
                "run-device",
                str(tmp_path / "slow"),
                "--edge",
                edge.url,
                "--source",
                str(photos[0].parent),
                "--json",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        wait_until_busy(edge)
        status, errors = edge.stop()
        out, _ = device.communicate(timeout=20)
    statuses = [image["status"] for image in json.loads(out)["images"]]
    assert statuses[0] == "ok"  # it was in flight
    assert "failed" in statuses
    assert device.returncode == 1
    assert (status, "Traceback" in errors) == (0, False)


def wait_until_busy(edge: Edge) -> None:
    import urllib.request

    end = time.monotonic() + 20
    while b"\naecnn_in_flight 0.0" in urllib.request.urlopen(edge.http + "/metrics").read():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_hostile_peers_leave_one_line_each_in_the_log(bundle: Bundle) -> None:
    with serving(bundle.path) as edge:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", edge.port)) as bad:
                bad.sendall(os.urandom(200) + b"\r\n\r\n")
                bad.settimeout(5)
                while bad.recv(1000):
                    pass
        status, errors = edge.stop()
    assert status == 0
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 3


def test_bundle_show_tells_what_the_manifest_says(bundle: Bundle) -> None:
    done = command("bundle", "show", str(bundle.path), "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert document["bundle_id"] == bundle.id
    assert document["labels"] == list(bundle.manifest.labels)
    assert (
        document["variants"][0].items()
        >= {
            "id": "tiny-l1-v2-u8",
            "split": 1,
            "ratio": 2,
            "bits": 8,
            "planes": [4, 16, 16],
            "head": "heads/tiny-l1-v2-u8.onnx",
            "head_macs": 1000,
            "full_macs": 9000,
            "tails": {"onnxruntime": "tails/tiny-l1-v2-u8.onnx"},
            "accuracy": None,
            "agreement": 0.5,
        }.items()
    )
    text = command("bundle", "show", str(bundle.path)).stdout.decode()
    assert bundle.id in text
    assert max(map(len, text.splitlines())) <= 80


def test_bundle_verify_says_that_a_whole_bundle_is_whole(bundle: Bundle, tmp_path: Path) -> None:
    done = command("bundle", "verify", str(bundle.path), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout).items() >= {"bundle_id": bundle.id, "ok": True, "files": len(FILES) - 1}.items()
    changed(bundle, tmp_path / "bad", "full.onnx")
    done = command("bundle", "verify", str(tmp_path / "bad"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert "full.onnx" in one_line(done.stderr)


@pytest.mark.parametrize("name", [("serve-edge",), ("run-device",), ("bundle", "show"), ("bundle", "verify")])
def test_help_has_an_example(name: tuple[str, ...]) -> None:
    done = command_here(*name, "--help")
    assert done.returncode == 0
    assert f"Example: aecnn-deploy {' '.join(name)}" in " ".join(done.stdout.decode().split())
