"""Bundles on disk: what is written is read back, and whatever was changed, lost or forged since is refused."""

import io
import json
import os
import shutil
import string
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from aecnn_deploy.bundle.manifest import (
    FORMAT,
    MANIFEST,
    bundle_id,
    is_inside,
)
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import BundleDamagedError, BundleError, BundleFormatError, NotABundleError
from tests.bundle_files import (
    COMMIT,
    FILES,
    ID,
    VARIANT,
    content_of,
    forge,
    slow_examples,
    tree,
    write,
    write_archive,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of unpacked archives, here an own one for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["bundle", "bundle.tar.zst", "deep/er/bundle", "odd name ü.tar.zst"])
    def test_what_is_written_is_read_back(self, tmp_path: Path, name: str) -> None:
        manifest = write(tmp_path / name)
        bundle = open_bundle(tmp_path / name)
        assert bundle.manifest == manifest
        assert content_of(bundle) == FILES
        assert bundle.id == manifest.bundle_id
        assert bundle.variant(None) == bundle.variant(ID) == VARIANT
        assert bundle.manifest.labels == COMMIT["labels"]

    def test_a_path_may_be_text(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle")
        assert open_bundle(str(tmp_path / "bundle")).path == tmp_path / "bundle"

    def test_a_folder_and_its_archive_are_the_same_bundle(self, tmp_path: Path) -> None:
        assert write(tmp_path / "bundle").bundle_id == write(tmp_path / "bundle.tar.zst").bundle_id

    def test_the_same_files_give_the_same_id_and_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write(tmp_path / name)
            write(tmp_path / f"{name}.tar.zst")
        assert tree(tmp_path / "a") == tree(tmp_path / "b")
        assert (tmp_path / "a.tar.zst").read_bytes() == (tmp_path / "b.tar.zst").read_bytes()

    @pytest.mark.parametrize(
        "changed",
        [
            {"files": FILES | {"full.onnx": b"fuller"}},
            {"files": FILES | {"more.txt": b""}},
            {"backbone": "tiny2"},
            {"labels": ("ant", "Bär, der", "猫 ")},
            {"input_spec": msgspec.structs.replace(COMMIT["input_spec"], resize_short=73)},
            {"variants": (msgspec.structs.replace(VARIANT, agreement=None),)},
            {"variants": (msgspec.structs.replace(VARIANT, engines={}),)},
            {"measurements": {}},
            {"tools": {"torch": "2.9.1"}},
        ],
        ids=lambda changed: "-".join(changed),
    )
    def test_the_id_differs_when_anything_differs(self, tmp_path: Path, changed: dict[str, Any]) -> None:
        assert write(tmp_path / "a").bundle_id != write(tmp_path / "b", **changed).bundle_id

    def test_the_id_is_the_hash_of_the_manifest_without_it(self, tmp_path: Path) -> None:
        manifest = write(tmp_path / "bundle")
        document = json.loads((tmp_path / "bundle" / MANIFEST).read_text())
        assert document["bundle_id"] == bundle_id(document) == manifest.bundle_id
        assert len(manifest.bundle_id) == 64
        assert set(document["files"]) == set(FILES)

    def test_a_plain_tar_of_the_folder_is_an_archive(self, tmp_path: Path) -> None:
        manifest = write(tmp_path / "bundle")
        raw = io.BytesIO()
        with tarfile.open(
            fileobj=raw, mode="w"
        ) as tar:  # what "tar -C bundle -c ." writes, owners and folders included
            tar.add(tmp_path / "bundle", ".")
        (tmp_path / "own.tar.zst").write_bytes(zstandard.compress(raw.getvalue()))
        bundle = open_bundle(tmp_path / "own.tar.zst")
        assert bundle.manifest == manifest
        assert content_of(bundle) == FILES

    def test_hard_linked_files_survive_the_archive(self, tmp_path: Path) -> None:
        with BundleWriter(tmp_path / "bundle.tar.zst") as writer:
            for name in FILES:
                writer.path(name).write_bytes(FILES[name])
            os.link(writer.path("full.onnx"), writer.path("same.onnx"))
            writer.commit(**COMMIT)
        assert content_of(open_bundle(tmp_path / "bundle.tar.zst"))["same.onnx"] == FILES["full.onnx"]

    def test_unknown_variants_and_files_are_named(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle")
        bundle = open_bundle(tmp_path / "bundle")
        with pytest.raises(BundleError, match=f"no variant 'other'; it has {ID}"):
            bundle.variant("other")
        with pytest.raises(BundleError, match=r"no file 'manifest\.json'"):
            bundle.file(MANIFEST)


class TestDamage:
    @pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
    def test_a_changed_byte_in_a_file_names_the_file(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / "bundle")
        for at in (0, len(FILES[name]) // 2, -1):
            changed = bytearray(FILES[name])
            changed[at] ^= 1
            (tmp_path / "bundle" / name).write_bytes(changed)
            with pytest.raises(BundleDamagedError) as caught:
                open_bundle(tmp_path / "bundle")
            assert caught.value.file == name
            assert caught.value.path == tmp_path / "bundle"

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("kind", ["missing", "longer", "folder", "dangling link", "pipe"])
    def test_a_file_that_is_not_what_it_was_is_named(self, tmp_path: Path, name: str, kind: str) -> None:
        write(tmp_path / "bundle")
        target = tmp_path / "bundle" / name
        if kind == "longer":
            target.write_bytes(FILES[name] + b"\0")
        else:
            target.unlink()
        if kind == "folder":
            target.mkdir()
        elif kind == "dangling link":
            target.symlink_to(tmp_path / "nowhere")
        elif kind == "pipe":
            os.mkfifo(target)
        with pytest.raises(BundleDamagedError) as caught:
            open_bundle(tmp_path / "bundle")
        assert caught.value.file == name

    @pytest.mark.parametrize(
        "kind", [string.digits, " \n", string.ascii_letters, '{}[]":,', "äü猫".encode().decode("latin-1")]
    )
    def test_each_kind_of_character_in_the_manifest_is_guarded(self, tmp_path: Path, kind: str) -> None:
        write(tmp_path / "bundle")
        source = tmp_path / "bundle" / MANIFEST
        raw = source.read_bytes()
        places = [at for at, byte in enumerate(raw) if chr(byte) in kind]
        assert len(places) >= 5
        for at in places[:: max(1, len(places) // 40)]:
            for byte in {ord("0"), ord("7"), ord(" "), ord("\t"), ord("x"), ord('"'), raw[at] ^ 1, raw[at] ^ 32} - {
                raw[at]
            }:
                source.write_bytes(raw[:at] + bytes([byte]) + raw[at + 1 :])
                with pytest.raises(BundleError):
                    open_bundle(tmp_path / "bundle")

    @slow_examples
    @given(data=st.data())
    def test_any_edit_of_the_manifest_is_refused(self, tmp_path: Path, data: st.DataObject) -> None:
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        write(tmp_path / "bundle")
        source = tmp_path / "bundle" / MANIFEST
        raw = source.read_bytes()
        at = data.draw(st.integers(0, len(raw)))
        cut = data.draw(st.integers(0, 3))
        put = data.draw(st.binary(max_size=3))
        changed = raw[:at] + put + raw[at + cut :]
        assume(changed != raw)
        source.write_bytes(changed)
        with pytest.raises(BundleError):
            open_bundle(tmp_path / "bundle")

    def test_a_second_value_for_a_key_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle")
        source = tmp_path / "bundle" / MANIFEST
        source.write_bytes(source.read_bytes().replace(b"{\n", b'{\n "backbone": "other",\n', 1))
        with pytest.raises(BundleDamagedError, match=r"manifest\.json is damaged"):
            open_bundle(tmp_path / "bundle")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe{}",
            b"[]",
            b"{}",
            b"null",
            b'{"format": ' + b"[" * 100_000,
            b'{"format": 1, "bundle_id": "\\ud800"}',
            b'{"format": 1, "x": 1e999}',
            b'{"format": 1, "x": NaN}',
            b'{"format": 1, "x": ' + b"[" * 400 + b"]" * 400 + b"}",
            b'{"format": true}',
            b'{"format": "two\\nlines"}',
            b'{"format": ' + b"9" * 5000 + b"}",
        ],
        ids=range(14),
    )
    def test_json_that_is_no_manifest_is_one_clear_line(self, tmp_path: Path, content: bytes) -> None:
        write(tmp_path / "bundle")
        (tmp_path / "bundle" / MANIFEST).write_bytes(content)
        with pytest.raises(BundleError) as caught:
            open_bundle(tmp_path / "bundle")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500 + len(str(tmp_path))

    def test_a_giant_manifest_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle")
        os.truncate(tmp_path / "bundle" / MANIFEST, 1 << 40)  # sparse: reading it would take a terabyte
        with pytest.raises(NotABundleError, match="over 16777216 bytes"):
            open_bundle(tmp_path / "bundle")


class TestForgedManifest:
    """Manifests whose id is right: what a careless exporter or an attacker could write."""

    @pytest.mark.parametrize("form", [FORMAT + 1, 999, 0, -1])
    def test_another_format_is_named_with_both_numbers(self, tmp_path: Path, form: int) -> None:
        forge(tmp_path / "bundle", lambda document: document.update(format=form, news={"a": 1}))
        with pytest.raises(BundleFormatError, match=f"format {form}, this version reads format {FORMAT}") as caught:
            open_bundle(tmp_path / "bundle")
        assert (caught.value.got, caught.value.known) == (form, FORMAT)

    @pytest.mark.parametrize(
        "name",
        ["../secret", "/etc/passwd", "a/../../b", "a//b", "./a", "a/.", "a/", "..", ".", "", "a\\b", "a\nb", "a\0b"],
    )
    def test_a_name_that_leads_out_is_refused_before_a_file_is_touched(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "secret").write_bytes(b"x")
        forge(tmp_path / "bundle", lambda document: document["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
        with pytest.raises(NotABundleError, match="outside the bundle") as caught:
            open_bundle(tmp_path / "bundle")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["a", "a/b.onnx", "heads/x-l1-v2-u8.onnx", "..a/b..", "ü/猫"])
    def test_ordinary_names_are_inside(self, name: str) -> None:
        assert is_inside(name)

    @pytest.mark.parametrize(
        ("why", "change"),
        [
            ("uses 'none.onnx'", lambda document: document.update(full="none.onnx")),
            ("uses 'none.onnx'", lambda document: document["variants"][0].update(head="none.onnx")),
            ("uses '../x'", lambda document: document["variants"][0]["tails"].update(other="../x")),
            ("uses 'e'", lambda document: document["variants"][0]["engines"]["tensorrt-rtx-sm75"].update(file="e")),
            ("no tail for onnxruntime", lambda document: document["variants"][0].update(tails={})),
            ("lists no variant", lambda document: document.update(variants=[])),
            ("lists a variant twice", lambda document: document["variants"].append(document["variants"][0])),
            ("bits 9", lambda document: document["variants"][0].update(bits=9)),
            ("bits 0", lambda document: document["variants"][0].update(bits=0)),
            ("planes", lambda document: document["variants"][0].update(planes=[4, 0, 16])),
            ("is not valid", lambda document: document["variants"][0].update(planes=[4, 16])),
            ("is not valid", lambda document: document.update(labels="ant")),
            ("is not valid", lambda document: document.pop("files")),
            ("is not valid", lambda document: document.update(files=[])),
        ],
    )
    def test_a_manifest_that_contradicts_itself_says_where(
        self, tmp_path: Path, why: str, change: Callable[[dict[str, Any]], None]
    ) -> None:
        forge(tmp_path / "bundle", change)
        with pytest.raises(NotABundleError, match=why):
            open_bundle(tmp_path / "bundle")

    def test_unknown_keys_are_left_alone(self, tmp_path: Path) -> None:
        forge(tmp_path / "bundle", lambda document: document.update(note="later versions may add keys"))
        assert content_of(open_bundle(tmp_path / "bundle")) == FILES


class TestNoBundle:
    @pytest.mark.parametrize("name", ["nothing", "nothing.tar.zst", "empty", "file.txt", "x" * 300])
    def test_what_is_no_bundle_says_so(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file.txt").write_text("hello")
        with pytest.raises(BundleError) as caught:
            open_bundle(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"no zstd", zstandard.compress(b""), zstandard.compress(b"no tar" * 999)])
    def test_an_archive_of_something_else_is_refused(self, tmp_path: Path, cache: Path, content: bytes) -> None:
        (tmp_path / "bundle.tar.zst").write_bytes(content)
        for _ in range(2):  # the second time the cache has been made
            with pytest.raises(NotABundleError):
                open_bundle(tmp_path / "bundle.tar.zst")
        assert not tree(cache)

    def test_an_archive_without_a_manifest_is_refused_each_time(self, tmp_path: Path, cache: Path) -> None:
        write_archive(tmp_path / "bundle.tar.zst", [(tarfile.TarInfo("bundle/" + MANIFEST), b"{}")])
        for _ in range(2):
            with pytest.raises(NotABundleError, match=r"no manifest\.json at its top"):
                open_bundle(tmp_path / "bundle.tar.zst")
        assert not tree(cache)


class TestWriter:
    @pytest.mark.parametrize("name", ["bundle", "bundle.tar.zst"])
    def test_an_existing_out_is_refused_and_left_untouched(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name)
        before = tree(tmp_path)
        with pytest.raises(BundleError, match="exists; choose another --out, or add --force"):
            write(tmp_path / name, backbone="other")
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("replace", [False, True])
    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_what_is_no_bundle_is_never_replaced(self, tmp_path: Path, kind: str, replace: bool) -> None:
        out = tmp_path / "thesis"
        if kind == "folder":
            out.mkdir()
            (out / "chapter1.tex").write_text("years of work")
        else:
            out.write_text("years of work")
        before = tree(tmp_path)
        with pytest.raises(BundleError, match=r"choose another --out"):
            write(out, replace=replace)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("name", ["bundle", "bundle.tar.zst"])
    def test_replace_replaces_a_bundle_and_leaves_nothing_beside_it(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name)
        write(tmp_path / name, replace=True, backbone="other")
        assert open_bundle(tmp_path / name).manifest.backbone == "other"
        assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == [name]

    @pytest.mark.parametrize("name", ["bundle", "bundle.tar.zst", "new/folders/bundle"])
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_nothing_behind(self, tmp_path: Path, name: str, error: type[BaseException]) -> None:
        with pytest.raises(error), BundleWriter(tmp_path / name) as writer:  # noqa: PT012  (it is the block that fails)
            writer.path("full.onnx").write_bytes(b"half")
            raise error
        assert list(tmp_path.iterdir()) == []

    def test_a_block_without_a_commit_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with BundleWriter(tmp_path / "bundle") as writer:
            writer.path("full.onnx").write_bytes(b"half")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["bundle", "bundle.tar.zst"])
    def test_a_failure_leaves_the_bundle_that_was_to_be_replaced(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name)
        before = tree(tmp_path)
        with pytest.raises(BundleError, match="cannot be JSON"):
            write(tmp_path / name, replace=True, measurements={"loss": float("nan")})
        assert tree(tmp_path) == before

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BundleError, match=r"cannot write .*file/bundle"):
            write(tmp_path / "file" / "bundle")

    def test_an_archive_name_that_is_a_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bundle.tar.zst").mkdir()
        with pytest.raises(BundleError, match="cannot write"):
            write(tmp_path / "bundle.tar.zst", replace=True)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle.tar.zst"]

    @pytest.mark.parametrize("name", ["../x", "/x", "", MANIFEST])
    def test_a_file_cannot_be_written_outside(self, tmp_path: Path, name: str) -> None:
        with BundleWriter(tmp_path / "bundle") as writer, pytest.raises(BundleError, match="cannot be a file"):
            writer.path(name)

    def test_the_bundle_may_be_read_by_others(self, tmp_path: Path) -> None:
        write(tmp_path / "bundle")
        assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755
