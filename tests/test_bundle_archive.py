"""Bundles as one file: hostile archives are refused, and the cache of unpacked ones is never trusted."""

import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aecnn_deploy.bundle.manifest import (
    MANIFEST,
    Manifest,
)
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import BundleDamagedError, BundleError, NotABundleError
from tests.bundle_files import FILES, content_of, slow_examples, tree, write, write_archive


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of unpacked archives, here an own one for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Manifest]:
    """An archive as it is written, and what stands in it: examples damage copies."""
    out = tmp_path_factory.mktemp("written") / "bundle.tar.zst"
    manifest = write(out)
    return out.read_bytes(), manifest


class TestArchive:
    @pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "a\\b", "a\nb"])
    def test_a_member_that_leads_out_is_refused(self, tmp_path: Path, cache: Path, name: str) -> None:
        write_archive(tmp_path / "bundle.tar.zst", [(tarfile.TarInfo(name), b"x")])
        with pytest.raises(NotABundleError, match="lies outside the bundle"):
            open_bundle(tmp_path / "bundle.tar.zst")
        assert not list(tmp_path.rglob("*escaped*"))
        assert not tree(cache)

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    )
    def test_a_member_that_is_no_plain_file_is_refused(self, tmp_path: Path, cache: Path, kind: bytes) -> None:
        info = tarfile.TarInfo("heads/x.onnx")
        info.type, info.linkname = kind, "full.onnx"
        write_archive(tmp_path / "bundle.tar.zst", [(tarfile.TarInfo("full.onnx"), b"x"), (info, b"")])
        with pytest.raises(NotABundleError, match=r"'heads/x\.onnx' is no plain file"):
            open_bundle(tmp_path / "bundle.tar.zst")
        assert not tree(cache)

    def test_a_file_below_a_link_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "target").mkdir()
        info = tarfile.TarInfo("heads")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "target")
        write_archive(tmp_path / "bundle.tar.zst", [(info, b""), (tarfile.TarInfo("heads/x"), b"x")])
        with pytest.raises(NotABundleError, match="no plain file"):
            open_bundle(tmp_path / "bundle.tar.zst")
        assert not tree(tmp_path / "target")

    def test_a_declared_size_over_the_limit_is_refused_before_it_is_unpacked(self, tmp_path: Path, cache: Path) -> None:
        info = tarfile.TarInfo("full.onnx")
        info.size = 9 << 30
        (tmp_path / "bundle.tar.zst").write_bytes(zstandard.compress(info.tobuf() + b"\0" * 10240))
        with pytest.raises(NotABundleError, match="unpacks to over 8589934592 bytes"):
            open_bundle(tmp_path / "bundle.tar.zst")
        assert not tree(cache)

    def test_too_many_members_are_refused(self, tmp_path: Path, cache: Path) -> None:
        folders = [(tarfile.TarInfo(f"d{number}"), b"") for number in range(10_001)]
        for info, _ in folders:
            info.type = tarfile.DIRTYPE
        write_archive(tmp_path / "bundle.tar.zst", folders)
        with pytest.raises(NotABundleError, match="10000 files"):
            open_bundle(tmp_path / "bundle.tar.zst")
        assert not tree(cache)

    def test_a_header_of_gigabytes_is_refused_before_it_fills_the_memory(self, tmp_path: Path) -> None:
        info = tarfile.TarInfo("././@PaxHeader")
        info.type, info.size = tarfile.XHDTYPE, 4 << 30
        compressor = zstandard.ZstdCompressor().compressobj()
        with (tmp_path / "bundle.tar.zst").open("wb") as out:
            out.write(compressor.compress(info.tobuf()))
            for _ in range(64):
                out.write(compressor.compress(bytes(1 << 20)))
            out.write(compressor.flush())
        with pytest.raises(NotABundleError, match="a header of over 1048576 bytes"):
            open_bundle(tmp_path / "bundle.tar.zst")

    def test_a_member_twice_is_refused(self, tmp_path: Path) -> None:
        twice = [(tarfile.TarInfo("full.onnx"), b"x"), (tarfile.TarInfo("full.onnx"), b"y")]
        write_archive(tmp_path / "bundle.tar.zst", twice)
        with pytest.raises(BundleError, match="File exists"):
            open_bundle(tmp_path / "bundle.tar.zst")

    @slow_examples
    @given(at=st.integers(0, 10**9), flip=st.integers(1, 255))
    @example(at=4, flip=4)
    @example(at=5, flip=8)
    def test_a_changed_byte_never_changes_what_is_read(
        self, tmp_path: Path, written: tuple[bytes, Manifest], at: int, flip: int
    ) -> None:
        out, manifest = tmp_path / "bundle.tar.zst", written[1]
        raw = bytearray(written[0])
        raw[at % len(raw)] ^= flip
        out.write_bytes(raw)
        self._refused_or_the_same(out, manifest)

    @slow_examples
    @given(at=st.integers(0, 10**9), put=st.binary(min_size=1, max_size=4))
    def test_a_changed_byte_of_the_tar_never_changes_what_is_read(
        self, tmp_path: Path, written: tuple[bytes, Manifest], at: int, put: bytes
    ) -> None:
        out, manifest = tmp_path / "bundle.tar.zst", written[1]
        raw = bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(written[0]))
        at %= len(raw)
        raw[at : at + len(put)] = put
        out.write_bytes(zstandard.compress(bytes(raw)))
        self._refused_or_the_same(out, manifest)

    @settings(slow_examples, max_examples=60)
    @given(size=st.integers(0, 10**9))
    def test_a_cut_archive_never_changes_what_is_read(
        self, tmp_path: Path, written: tuple[bytes, Manifest], size: int
    ) -> None:
        out, (raw, manifest) = tmp_path / "bundle.tar.zst", written
        out.write_bytes(raw[: size % len(raw)])
        self._refused_or_the_same(out, manifest)

    @staticmethod
    def _refused_or_the_same(out: Path, manifest: Manifest) -> None:
        """Some bytes of an archive mean nothing (a window size, a file's owner): the content decides."""
        try:
            bundle = open_bundle(out)
        except BundleError as exc:
            assert "\n" not in str(exc)  # noqa: PT017  (a bundle that opens is right, too)
        else:
            assert bundle.manifest == manifest
            assert content_of(bundle) == FILES

    def test_a_changed_file_inside_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle")
        files = tree(tmp_path / "bundle") | {"full.onnx": b"fulL" * 300}
        write_archive(
            tmp_path / "bundle.tar.zst", [(tarfile.TarInfo(name), content) for name, content in files.items()]
        )
        with pytest.raises(BundleDamagedError, match=r"full\.onnx is damaged"):
            open_bundle(tmp_path / "bundle.tar.zst")


class TestCache:
    def test_an_archive_is_unpacked_once(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle.tar.zst")
        first = open_bundle(tmp_path / "bundle.tar.zst")
        made = first.file("full.onnx").stat().st_ino
        second = open_bundle(tmp_path / "bundle.tar.zst")
        assert second.root == first.root
        assert second.file("full.onnx").stat().st_ino == made

    def test_a_changed_archive_of_the_same_name_is_unpacked_again(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle.tar.zst")
        first = open_bundle(tmp_path / "bundle.tar.zst")
        write(tmp_path / "bundle.tar.zst", replace=True, backbone="other")
        second = open_bundle(tmp_path / "bundle.tar.zst")
        assert (first.manifest.backbone, second.manifest.backbone) == ("tiny", "other")
        assert first.root != second.root

    @pytest.mark.parametrize("name", ["full.onnx", MANIFEST])
    @pytest.mark.parametrize("kind", ["changed", "missing"])
    def test_a_damaged_copy_in_the_cache_is_mended_from_the_archive(self, tmp_path: Path, name: str, kind: str) -> None:
        write(tmp_path / "bundle.tar.zst")
        cached = open_bundle(tmp_path / "bundle.tar.zst").root / name
        if kind == "changed":
            cached.write_bytes(cached.read_bytes().replace(b"u", b"U"))
        else:
            cached.unlink()
        assert content_of(open_bundle(tmp_path / "bundle.tar.zst")) == FILES

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "bundle.tar.zst")
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(BundleError, match="set XDG_CACHE_HOME"):
            open_bundle(tmp_path / "bundle.tar.zst")
