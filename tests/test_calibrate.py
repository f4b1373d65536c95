"""Calibrated coding: the prediction that suits the planes, a dictionary where it pays, a bundle that carries both."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.calibration.plane_coding import PlaneCoding, calibrate_coding
from aecnn_deploy.codec import PlaneDecoder, PlaneEncoder
from aecnn_deploy.errors import BundleError, CodecError
from aecnn_deploy.runtimes.device_client import DeviceSettings, run_device
from aecnn_deploy.runtimes.plane_memory import plane_dictionary, useful_coders
from tests.bundles import command, make_bundle, make_photos, one_line, serving
from tests.planes import DICTIONARY, waves


def rows_alike(count: int, change: float = 0.3) -> np.ndarray:
    """Images whose rows are nearly the ones above them."""
    rng = np.random.default_rng(2)
    first = rng.integers(0, 256, (count, 3, 1, 20), np.uint8)
    return first + np.cumsum(rng.random((count, 3, 20, 20)) < change, axis=2, dtype=np.uint8)


def test_the_prediction_is_the_one_that_suits_the_planes() -> None:
    up, left = rows_alike(6), np.ascontiguousarray(rows_alike(6).transpose(0, 1, 3, 2))
    assert (calibrate_coding(up, 8).predictor, calibrate_coding(left, 8).predictor) == ("up", "left")
    slopes = np.stack([waves(2, 28, 8, seed=seed, noise=0.002) for seed in range(6)])
    assert calibrate_coding(slopes, 8).predictor == "paeth"
    rng = np.random.default_rng(3)
    down, across = rng.integers(0, 9, (6, 2, 20, 1)), rng.integers(0, 9, (6, 2, 1, 20))
    falling = 120 + np.cumsum(down, axis=2) - np.cumsum(across, axis=3)
    rough = (falling + rng.integers(0, 2, falling.shape)).astype(np.uint8)
    assert calibrate_coding(rough, 8).predictor == "median"


def test_a_dictionary_is_kept_where_it_pays_on_images_that_it_was_not_trained_on() -> None:
    rng = np.random.default_rng(5)
    small = np.stack([waves(1, 14, 8, seed=int(rng.integers(0, 1000)), noise=0.02) for _ in range(120)])
    coding = calibrate_coding(small, 8)
    assert coding.dictionary is not None
    assert coding.sizes["zstd-dict"] <= 0.98 * min(size for name, size in coding.sizes.items() if name != "zstd-dict")
    assert coding.dictionary.predictor == coding.predictor
    fresh = waves(1, 14, 8, seed=2000, noise=0.02)
    encoder = PlaneEncoder(fresh.shape, 8, coder="zstd-dict", dictionary=coding.dictionary)
    encoded = encoder.encode(fresh)
    decoder = PlaneDecoder(fresh.shape, 8, dictionary=coding.dictionary)
    np.testing.assert_array_equal(decoder.decode(encoded.coder_id, encoded.payload), fresh)
    assert calibrate_coding(small, 8) == coding  # the same planes, the same bundle


def test_no_dictionary_is_made_of_few_images_nor_of_noise() -> None:
    noise = np.random.default_rng(1).integers(0, 16, (60, 4, 14, 14), np.uint8)
    assert calibrate_coding(noise, 4).dictionary is None
    few: PlaneCoding = calibrate_coding(np.stack([waves(1, 14, 8, seed=seed) for seed in range(23)]), 8)
    assert (few.dictionary, few.images) == (None, 23)
    assert "zstd-dict" not in few.sizes


def test_what_cannot_be_calibrated_is_refused() -> None:
    for bad in (np.zeros((0, 1, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8), np.zeros((2, 1, 4, 4), np.float32)):
        with pytest.raises(CodecError, match="at least one image"):
            calibrate_coding(bad, 8)
    with pytest.raises(CodecError, match="the value 9, over the limit of 7"):
        calibrate_coding(np.full((2, 1, 4, 4), 9, np.uint8), 3)


def test_the_command_writes_a_bundle_that_both_halves_run(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    photos = make_photos(tmp_path / "photos", 30)
    words = ("calibrate", "coders", str(tmp_path / "bundle"), "--images", str(tmp_path / "photos"))
    done = command(*words, "--out", str(tmp_path / "new.tar.zst"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    old, new = open_bundle(tmp_path / "bundle"), open_bundle(tmp_path / "new.tar.zst")
    assert document["bundle_id"] == new.id != old.id
    for before, after, row in zip(old.manifest.variants, new.manifest.variants, document["variants"], strict=True):
        assert after.coding is not None
        assert (row["variant"], row["predictor"], row["images"]) == (before.id, after.coding.predictor, 30)
        assert new.file(after.head).read_bytes() == old.file(before.head).read_bytes()
        assert after.accuracy == before.accuracy
        names = useful_coders(after, ("zstd", "left-zstd", "up-zstd", "median-zstd", "jpegls", "paeth-zstd"))
        assert set(names) == {"zstd", f"{after.coding.predictor}-zstd", "jpegls"}
    assert new.manifest.measurements["coding"].keys() == {spec.id for spec in new.manifest.variants}
    with serving(new.path) as edge:
        report = run_device(new, DeviceSettings(edge.url), str(photos[0].parent), stdin=io.BytesIO(), limit=3)
    assert {image.status for image in report.images} == {"ok"}
    again = command(*words, "--out", str(tmp_path / "again"), "--json")
    assert json.loads(again.stdout)["bundle_id"] == new.id
    table = command(*words, "--out", str(tmp_path / "table")).stdout.decode()
    assert max(map(len, table.splitlines()[:-1])) <= 80  # the last one names a path
    assert table.count("-zstd, ") >= 2


def test_a_calibrated_dictionary_crosses_the_link(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", dictionary=True)
    bundle = open_bundle(tmp_path / "bundle")
    assert plane_dictionary(bundle, bundle.manifest.variants[0]) == DICTIONARY
    photos = make_photos(tmp_path / "photos", 3)
    with serving(bundle.path) as edge:
        found = {
            coder: run_device(bundle, DeviceSettings(edge.url, coder=coder), str(photos[0].parent), stdin=io.BytesIO())
            for coder in ("raw", "zstd-dict")
        }
    assert [image.score for image in found["zstd-dict"].images] == [image.score for image in found["raw"].images]
    assert {image.coder for image in found["zstd-dict"].images} <= {"zstd-dict", "raw"}


def test_a_bundle_whose_dictionary_is_gone_or_changed_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", dictionary=True)
    file = tmp_path / "bundle" / "dictionaries" / "all.zdict"
    file.write_bytes(DICTIONARY.content[:-1])
    with pytest.raises(BundleError, match=r"all\.zdict"):
        open_bundle(tmp_path / "bundle")
    file.unlink()
    with pytest.raises(BundleError, match=r"all\.zdict"):
        open_bundle(tmp_path / "bundle")


def test_nothing_is_replaced_unasked_and_no_half_bundle_is_left(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    words = ("calibrate", "coders", str(tmp_path / "bundle"), "--images", str(tmp_path / "photos"))
    for out, why in (("bundle", "exists; choose another --out"), ("new", "no photograph of")):
        done = command(*words, "--out", str(tmp_path / out))
        assert (done.returncode, done.stdout) == (1, b"")
        assert why in one_line(done.stderr.splitlines(keepends=True)[-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "photos"]
