"""Open a bundle: nothing of it is used before it is checked."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aecnn_deploy.bundle.archive import is_archive, unpack
from aecnn_deploy.bundle.manifest import (
    FORMAT,
    FP32,
    INT8,
    MANIFEST,
    ONNXRUNTIME,
    Manifest,
    VariantSpec,
    bundle_id,
    canonical,
    is_inside,
)
from aecnn_deploy.errors import BundleDamagedError, BundleError, BundleFormatError, NotABundleError

_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path  # what the user named
    root: Path  # the folder that holds manifest.json
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.bundle_id

    def file(self, name: str) -> Path:
        """Path of one of the manifest's files. Raises BundleError: the manifest has no such file."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no file {name!r}")
        return self.root / name

    def variant(self, name: str | None) -> VariantSpec:
        """The variant ``name``, or the first one for None. Raises BundleError: there is none of that name."""
        if name is None:
            return self.manifest.variants[0]
        try:
            return self.manifest.variant(name)
        except KeyError:
            known = ", ".join(spec.id for spec in self.manifest.variants)
            raise BundleError(f"{self.path} has no variant {name!r}; it has {known}") from None


def open_bundle(path: Path | str) -> Bundle:
    """The bundle at ``path`` (a folder or a .tar.zst of one), every file checked against its SHA-256.

    Raises NotABundleError, BundleFormatError, BundleDamagedError; BundleError: it cannot be read.
    """
    path = Path(path)
    try:
        if not is_archive(path):
            return _open(path, path.resolve())  # a link to it may point elsewhere tomorrow
        root = unpack(path)
        try:
            return _open(path, root)
        except BundleError:  # of the archive, or only of its copy in the cache
            return _open(path, unpack(path, fresh=True))
    except OSError as exc:
        raise BundleError(f"cannot read {path}: {exc.strerror or exc}") from None


def _open(path: Path, root: Path) -> Bundle:
    manifest = read_manifest(path, root)
    for name in sorted(manifest.files):
        check_file(path, root, manifest, name)
    return Bundle(path, root, manifest)


def read_manifest(path: Path, root: Path) -> Manifest:
    """Parse and check ``manifest.json`` of the bundle that the user calls ``path``."""
    document, raw = _read_document(path, root)
    form = document["format"]
    if type(form) is not int:
        raise NotABundleError(path, f"{MANIFEST} has a 'format' that is no whole number")
    if form != FORMAT:
        raise BundleFormatError(path, form, FORMAT)
    try:
        expected, same = bundle_id(document), canonical(document) == raw
    except (ValueError, RecursionError):  # JSON that Python reads and does not write
        raise BundleDamagedError(path, MANIFEST, "plain JSON", "values that JSON has no bytes for") from None
    got = document.get("bundle_id")
    if got != expected or not same:
        raise BundleDamagedError(path, MANIFEST, f"bundle id {expected[:12]}…", f"{str(got)[:12]!r}… or changed bytes")
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as exc:
        raise NotABundleError(path, f"{MANIFEST} is not valid: {exc}") from None
    _check_files(path, manifest)
    _check_variants(path, manifest)
    return manifest


def _read_document(path: Path, root: Path) -> tuple[dict[str, Any], bytes]:
    source = root / MANIFEST
    if not root.exists():
        raise NotABundleError(path, "there is no such file or folder")
    if not source.is_file():
        raise NotABundleError(path, f"it has no {MANIFEST}")
    if source.stat().st_size > _MAX_MANIFEST_BYTES:
        raise NotABundleError(path, f"{MANIFEST} is over {_MAX_MANIFEST_BYTES} bytes")
    raw = source.read_bytes()
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise NotABundleError(path, f"{MANIFEST} is not JSON ({exc}); the file may be damaged") from None
    if not isinstance(document, dict) or "format" not in document:
        raise NotABundleError(path, f"{MANIFEST} has no key 'format'")
    return document, raw


def _check_files(path: Path, manifest: Manifest) -> None:
    """Refuse names that lead out of the bundle, and names that the file list lacks."""
    for name in manifest.files:
        if not is_inside(name):
            raise NotABundleError(path, f"{MANIFEST} names the file {name!r}, which lies outside the bundle")
    used = {manifest.full}
    for spec in manifest.variants:
        used |= {
            spec.head,
            *spec.heads.values(),
            *spec.tails.values(),
            *(engine.file for engine in spec.engines.values()),
        }
        if spec.coding and spec.coding.dictionary:
            used.add(spec.coding.dictionary)
    if samples := manifest.samples:
        used |= {samples.frames, samples.full, *samples.planes.values(), *samples.logits.values()}
        used |= set(samples.int8.values())
    for name in sorted(used - manifest.files.keys()):
        raise NotABundleError(path, f"{MANIFEST} uses {name!r}, which its file list lacks")


def _check_variants(path: Path, manifest: Manifest) -> None:
    if not manifest.variants:
        raise NotABundleError(path, f"{MANIFEST} lists no variant")
    for spec in manifest.variants:
        if not 1 <= spec.bits <= 8 or min(spec.planes) < 1:
            raise NotABundleError(path, f"variant {spec.id!r} has bits {spec.bits} and planes {spec.planes}")
        if (samples := manifest.samples) and not (spec.id in samples.planes and spec.id in samples.logits):
            raise NotABundleError(path, f"{MANIFEST} has samples, but none for variant {spec.id!r}")
        if spec.heads and (spec.head not in spec.heads.values() or spec.heads.keys() - {FP32, INT8}):
            raise NotABundleError(path, f"variant {spec.id!r} has the head {spec.head!r} and the heads {spec.heads}")
        if ONNXRUNTIME not in spec.tails:
            raise NotABundleError(path, f"variant {spec.id!r} has no tail for {ONNXRUNTIME}")
    if len({spec.id for spec in manifest.variants}) != len(manifest.variants):
        raise NotABundleError(path, f"{MANIFEST} lists a variant twice")


def check_file(path: Path, root: Path, manifest: Manifest, name: str) -> None:
    """Compare one file with its manifest entry. Raises BundleDamagedError."""
    entry, target = manifest.files[name], root / name
    if not target.is_file():
        raise BundleDamagedError(path, name, f"a file of {entry.bytes} bytes", "nothing")
    size = target.stat().st_size
    if size != entry.bytes:
        raise BundleDamagedError(path, name, f"{entry.bytes} bytes", f"{size} bytes")
    with target.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != entry.sha256:
        raise BundleDamagedError(path, name, f"SHA-256 {entry.sha256[:12]}…", f"{digest[:12]}…")
