"""``bundle verify --deep``: what an export measured holds on the next machine, and a file that changed is found out."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aecnn_deploy.bundle.manifest import MANIFEST, bundle_id, canonical
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import BundleError
from aecnn_deploy.runtimes.samples import read_samples, verify_bundle
from tests.bundles import LABELS, SIZE, command, make_bundle, one_line
from tests.sampled_bundles import with_samples


def resealed(bundle: Path, **changes: Any) -> None:
    """The bundle's manifest with other samples, and an id that fits."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    document["samples"] |= changes
    document["bundle_id"] = bundle_id(document)
    (bundle / MANIFEST).write_bytes(canonical(document))


def test_every_file_is_run_and_its_figures_are_told(tmp_path: Path) -> None:
    bundle = with_samples(tmp_path)
    done = command("bundle", "verify", str(bundle), "--deep", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    models = [name for name in open_bundle(bundle).manifest.files if name.endswith(".onnx")]
    assert sorted(row["file"] for row in document["files"]) == sorted(models)
    assert document["ok"] is True
    for row in document["files"]:
        verified = row["verified"]
        assert (row["verdict"], verified["frames"], verified["reference"]) == ("ok", 5, "torch fp32")
        assert verified["largest_difference"] <= verified["tolerance"]
        assert verified["cosine"] == pytest.approx(1)
        assert verified["seconds"] > 0
        assert (verified["top1_agreement"] is None) == row["file"].startswith("heads/")
    table = command("bundle", "verify", str(bundle), "--deep").stdout.decode().splitlines()
    assert max(map(len, table)) <= 80
    assert table[-1] == f"{len(models)} files ok, 0 failed, 0 not run here"


def test_an_archive_is_verified_as_a_folder_is(tmp_path: Path) -> None:
    bundle = open_bundle(with_samples(tmp_path))
    with BundleWriter(tmp_path / "again.tar.zst") as writer:
        for name in bundle.manifest.files:
            writer.copy(bundle.file(name), name)
        again = writer.commit_changed(bundle.manifest, variants=bundle.manifest.variants)
    assert again == bundle.manifest
    assert {check.verdict for check in verify_bundle(open_bundle(tmp_path / "again.tar.zst"))} == {"ok"}


@pytest.mark.parametrize("changed", ["tiny-l1-v2-u8", "full"])
def test_a_file_that_gives_something_else_fails_alone_and_by_name(tmp_path: Path, changed: str) -> None:
    bundle = with_samples(tmp_path, change={changed: 10.0})
    done = command("bundle", "verify", str(bundle), "--deep", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    failed = [row for row in document["files"] if row["verdict"] == "failed"]
    assert [row["file"] for row in failed] == [f"tails/{changed}.onnx" if changed != "full" else "full.onnx"]
    assert "largest difference of logits is" in failed[0]["reason"]
    assert document["ok"] is False


def test_a_head_of_another_variant_does_not_fit(tmp_path: Path) -> None:
    """Same planes, other weights: only running it can tell."""
    bundle = with_samples(tmp_path)
    make_bundle(tmp_path / "other", seed=1)
    head = "heads/tiny-l1-v2-u8.onnx"
    shutil.copy(tmp_path / "other" / head, bundle / head)
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(bundle)
    document = json.loads((bundle / MANIFEST).read_bytes())
    content = (bundle / head).read_bytes()
    document["files"][head] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    document["bundle_id"] = bundle_id(document)
    (bundle / MANIFEST).write_bytes(canonical(document))
    verdicts = {check.file: check.verdict for check in verify_bundle(open_bundle(bundle))}
    assert verdicts.pop(head) == "failed"
    assert set(verdicts.values()) == {"ok"}


def test_a_bundle_without_samples_says_how_to_get_them(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    done = command("bundle", "verify", str(tmp_path / "bundle"), "--deep")
    assert done.returncode == 1
    assert "keeps no samples to run; export it again, without --no-samples" in one_line(done.stderr)


def test_samples_of_another_kind_are_refused(tmp_path: Path) -> None:
    bundle = with_samples(tmp_path)
    good = read_samples(open_bundle(bundle))
    assert good.frames.shape == (5, SIZE, SIZE, 3)
    assert good.full.shape == (5, len(LABELS))
    for changes, why in (
        ({"count": 4}, "expected 4 frames"),
        ({"full": "samples/tiny-l1-v2-u8.planes.npy"}, r"full|holds uint8"),
        ({"full": "samples/frames.png"}, "holds no array"),
        ({"frames": "samples/full.logits.npy"}, "holds no picture"),
    ):
        resealed(bundle, **({"count": 5, "full": "samples/full.logits.npy", "frames": "samples/frames.png"} | changes))
        with pytest.raises(BundleError, match=why):
            read_samples(open_bundle(bundle))
    resealed(bundle, full="samples/absent.npy")
    with pytest.raises(BundleError, match=r"uses 'samples/absent\.npy', which its file list lacks"):
        open_bundle(bundle)
    resealed(bundle, full="samples/full.logits.npy", planes={})
    with pytest.raises(BundleError, match="has samples, but none for variant 'tiny-l1-v2-u8'"):
        open_bundle(bundle)


def test_frames_are_kept_without_loss(tmp_path: Path) -> None:
    bundle = open_bundle(with_samples(tmp_path))
    frames = np.random.default_rng(5).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(read_samples(bundle).frames, frames)
    assert bundle.manifest.samples is not None
    with Image.open(bundle.file(bundle.manifest.samples.frames)) as picture:
        assert picture.size == (SIZE, 5 * SIZE)
