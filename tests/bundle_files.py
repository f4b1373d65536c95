"""A tiny bundle of any bytes, and forged ones: what the tests of bundles share."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import HealthCheck, settings

from aecnn_deploy.bundle.manifest import (
    MANIFEST,
    EngineSpec,
    InputSpec,
    Manifest,
    VariantSpec,
    bundle_id,
    canonical,
)
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.bundle.writer import BundleWriter

ID = "tiny-l1-v2-u8"
ENGINE = EngineSpec(f"tails/{ID}.engine", "tensorrt-rtx", "1.7.1", ("sm75",), "fp16", (1, 1, 8))
VARIANT = VariantSpec(
    id=ID,
    split=1,
    split_name="stem",
    ratio=2,
    bits=8,
    planes=(4, 16, 16),
    head=f"heads/{ID}.onnx",
    head_macs=1000,
    full_macs=9000,
    tails={"onnxruntime": f"tails/{ID}.onnx"},
    engines={"tensorrt-rtx-sm75": ENGINE},
    agreement=0.5,
)
FILES = {
    "full.onnx": b"full" * 300,
    VARIANT.head: b"head" * 40,
    VARIANT.tails["onnxruntime"]: bytes(range(256)),
    ENGINE.file: b"",
}
COMMIT: dict[str, Any] = {
    "backbone": "tiny",
    "labels": ("ant", "Bär, der", "猫"),
    "input_spec": InputSpec(64, 64, 72, "bicubic", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    "full": "full.onnx",
    "variants": (VARIANT,),
    "measurements": {"agreement": {"images": 300, "top1": 0.5}},
    "tools": {"torch": "2.9"},
}

slow_examples = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(out: Path, files: dict[str, bytes] = FILES, *, replace: bool = False, **changed: Any) -> Manifest:
    with BundleWriter(out, replace=replace) as writer:
        for name, content in files.items():
            writer.path(name).write_bytes(content)
        return writer.commit(**COMMIT | changed)


def forge(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A bundle whose manifest was changed by somebody who knows how its id is computed."""
    write(out)
    document = json.loads((out / MANIFEST).read_bytes())
    change(document)
    document["bundle_id"] = bundle_id(document)
    (out / MANIFEST).write_bytes(canonical(document))


def write_archive(out: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    out.write_bytes(zstandard.compress(raw.getvalue()))


def content_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.file(name).read_bytes() for name in bundle.manifest.files}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
