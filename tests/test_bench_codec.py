"""``bench codec``: the numbers are those of the coders, and what cannot be coded is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from aecnn_deploy.calibration.coders import measure_coders
from aecnn_deploy.calibration.peers import has_picture_codecs, measure_peers
from aecnn_deploy.codec import PlaneEncoder, coder_names
from aecnn_deploy.errors import CodecError
from tests.bundles import command, make_bundle, make_photos, one_line
from tests.in_process import command_here
from tests.planes import waves

PEERS = ["plain zstd-3", *(["JPEG-LS file", "JPEG XL e3"] if has_picture_codecs() else [])]
WITHOUT_DICTIONARY = [name for name in coder_names() if name != "zstd-dict"]


@pytest.fixture(scope="module")
def planes() -> np.ndarray:
    """Four images of 3×8×8 values of 4 bits, one of them noise."""
    rng = np.random.default_rng(2)
    smooth = (np.add.outer(np.arange(8), np.arange(8)) // 2)[None, None] + rng.integers(0, 2, (4, 3, 8, 8))
    smooth[3] = rng.integers(0, 16, (3, 8, 8))
    return smooth.clip(0, 15).astype(np.uint8)


def documents(*arguments: str) -> list[dict[str, Any]]:
    done = command_here("bench", "codec", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def test_a_file_of_planes_is_coded_by_every_coder(planes: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "planes.npy", planes)
    rows = documents("--planes", str(tmp_path / "planes.npy"), "--bits", "4", "--limit", "3")
    ours = [row for row in rows if row["coder"] in coder_names()]
    assert [row["coder"] for row in ours] == WITHOUT_DICTIONARY
    assert [row["coder"] for row in rows[len(ours) :]] == PEERS
    for row in rows:
        assert row["images"] == 3
    for row in ours:
        encoder = PlaneEncoder((3, 8, 8), 4, coder=row["coder"])
        sizes = [len(encoder.encode(image).payload) for image in planes[:3]]
        assert row["bytes_mean"] == round(float(np.mean(sizes)), 1)
        assert (row["images"], row["planes"], row["bits"]) == (3, [3, 8, 8], 4)
        assert 0 < row["decode_ms_p50"] < 100
        assert 0 < row["encode_ms_p50"] < 100


def test_the_heads_of_a_bundle_make_planes_of_photographs(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    photos = make_photos(tmp_path / "photos", 3)
    (photos[0].parent / "broken.jpg").write_bytes(b"no picture")
    rows = documents(str(tmp_path / "bundle"), "--images", str(photos[0].parent))
    assert {row["source"] for row in rows} == {"tiny-l1-v2-u8", "tiny-l1-v4-u4"}
    assert {row["images"] for row in rows} == {3}
    assert len(rows) == 2 * len([*WITHOUT_DICTIONARY, *PEERS])
    make_bundle(tmp_path / "calibrated", dictionary=True)
    rows = documents(str(tmp_path / "calibrated"), "--images", str(photos[0].parent))
    assert [row["coder"] for row in rows] == 2 * [*coder_names(), *PEERS]
    table = command("bench", "codec", str(tmp_path / "bundle"), "--images", str(photos[0].parent)).stdout.decode()
    assert max(map(len, table.splitlines())) <= 80
    assert table.count("jpegls") == 2


def test_images_beyond_the_limit_train_a_dictionary_where_one_pays(tmp_path: Path) -> None:
    small = np.stack([waves(1, 14, 8, seed=seed * 7, noise=0.02) for seed in range(130)])
    np.save(tmp_path / "planes.npy", small)
    rows = {row["coder"]: row for row in documents("--planes", str(tmp_path / "planes.npy"), "--limit", "20")}
    assert rows["zstd-dict"]["images"] == 20
    assert rows["zstd-dict"]["bytes_mean"] < 0.98 * rows["zstd"]["bytes_mean"]
    rows = {row["coder"]: row for row in documents("--planes", str(tmp_path / "planes.npy"), "--limit", "130")}
    assert "zstd-dict" not in rows


def test_plain_zstd_is_plain_zstd(planes: np.ndarray) -> None:
    plain = measure_peers(planes)[0]
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=False)
    assert plain.bytes_mean == np.mean([len(compressor.compress(image.tobytes())) for image in planes])


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        ([], 2, "nothing to code: give a bundle with --images PHOTOGRAPHS, or --planes FILE.npy"),
        (["zoo:caltech101-lite0"], 2, "nothing to code"),
        (["zoo:caltech101-lite0", "--planes", "a.npy"], 2, "give either --planes, or a bundle with --images"),
        (["--planes", "absent.npy"], 1, "cannot read absent.npy: No such file"),
        (["--planes", "text.npy"], 1, "text.npy is no .npy file of numbers"),
        (["--planes", "float.npy"], 1, "float.npy holds float32 (1, 1, 2, 2), expected uint8 (N, C, H, W)"),
        (["--planes", "flat.npy"], 1, "flat.npy holds uint8 (4,), expected uint8 (N, C, H, W)"),
        (["--planes", "full.npy", "--bits", "4"], 1, "planes hold the value 255, over the limit of 15 for 4 bits"),
    ],
)
def test_what_cannot_be_coded_is_refused(
    arguments: list[str], status: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npy").write_text("planes")
    np.save("float.npy", np.zeros((1, 1, 2, 2), np.float32))
    np.save("flat.npy", np.zeros(4, np.uint8))
    np.save("full.npy", np.full((1, 1, 2, 2), 255, np.uint8))
    done = command_here("bench", "codec", *arguments)
    assert (done.returncode, done.stdout) == (status, b"")
    assert why in one_line(done.stderr)


def test_planes_of_another_kind_are_refused(planes: np.ndarray) -> None:
    for bad in (planes[0], planes[:0], planes.astype(np.int16)):
        with pytest.raises(CodecError, match="planes are uint8"):
            measure_coders(bad, 4)
    with pytest.raises(CodecError, match="unknown coder 'gzip'"):
        measure_coders(planes, 4, ["gzip"])


def test_a_coder_that_loses_something_is_found_out(planes: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aecnn_deploy.codec.PlaneDecoder.decode", lambda *_: planes[1])
    with pytest.raises(CodecError, match="coder zstd does not give back the planes of image 0"):
        measure_coders(planes, 4, ["zstd"])
