"""Write a bundle beside its place and rename it when it is whole: a failure leaves nothing behind."""

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from aecnn_deploy.bundle.archive import SUFFIX, pack
from aecnn_deploy.bundle.manifest import (
    FORMAT,
    MANIFEST,
    FileEntry,
    InputSpec,
    Manifest,
    SamplesSpec,
    VariantSpec,
    bundle_id,
    canonical,
    is_inside,
)
from aecnn_deploy.errors import BundleError


class BundleWriter:
    """A context manager: put files under ``root``, then ``commit``; without a commit all of it goes away.

    ``out`` that ends in .tar.zst makes an archive, any other a folder. Raises BundleError: ``out`` exists and
    ``replace`` is false, or it cannot be written.
    """

    def __init__(self, out: Path, *, replace: bool = False) -> None:
        self.out, self._replace = out, replace
        if (out.exists() or out.is_symlink()) and not replace:
            raise BundleError(f"{out} exists; choose another --out, or add --force to replace it")
        if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
            raise BundleError(f"{out} is a folder that holds no bundle: not replaced; choose another --out")
        if out.is_file() and not out.name.endswith(SUFFIX):
            raise BundleError(f"{out} is a file that is no bundle: not replaced; choose another --out")

    def __enter__(self) -> Self:
        parent = self.out.absolute().parent
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.root = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.partial-", dir=parent))
            self.root.chmod(0o755)
        except OSError as exc:
            raise BundleError(f"cannot write {self.out}: {exc.strerror}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        with suppress(OSError):  # folders that were made for a bundle which did not come
            for folder in self._made:
                folder.rmdir()

    def path(self, name: str) -> Path:
        """Where to write the bundle's file ``name``; its folder exists. Raises BundleError: it leads elsewhere."""
        if not is_inside(name) or name == MANIFEST:
            raise BundleError(f"{name!r} cannot be a file of a bundle; use a relative path other than {MANIFEST}")
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def copy(self, file: Path, name: str) -> None:
        """Put a copy of ``file`` into the bundle as ``name``. Raises BundleError: it cannot be read or written."""
        try:
            shutil.copyfile(file, self.path(name))
        except OSError as exc:
            raise BundleError(f"cannot copy {file} to {self.out}: {exc.strerror or exc}") from None

    def commit(
        self,
        *,
        backbone: str,
        labels: tuple[str, ...],
        input_spec: InputSpec,
        full: str,
        variants: tuple[VariantSpec, ...],
        measurements: dict[str, Any],
        tools: dict[str, str],
        samples: SamplesSpec | None = None,
    ) -> Manifest:
        """Write the manifest over all files under ``root`` and move the bundle into its place.

        Raises BundleError: it cannot be written, or ``measurements`` hold a number that is not finite.
        """
        files = {
            file.relative_to(self.root).as_posix(): _entry(file)
            for file in sorted(self.root.rglob("*"))
            if file.is_file()
        }
        manifest = Manifest(
            format=FORMAT,
            bundle_id="",
            backbone=backbone,
            labels=labels,
            input=input_spec,
            full=full,
            variants=variants,
            files=files,
            measurements=measurements,
            tools=tools,
            samples=samples,
        )
        document = msgspec.to_builtins(manifest)
        try:
            document["bundle_id"] = bundle_id(document)
            content = canonical(document)
        except ValueError as exc:
            raise BundleError(f"cannot write {self.out}: the manifest cannot be JSON ({exc})") from None
        try:
            (self.root / MANIFEST).write_bytes(content)
            self._move()
        except OSError as exc:
            raise BundleError(f"cannot write {self.out}: {exc.strerror}") from None
        return msgspec.structs.replace(manifest, bundle_id=document["bundle_id"])

    def commit_changed(
        self,
        old: Manifest,
        *,
        variants: tuple[VariantSpec, ...],
        measurements: dict[str, Any] | None = None,
        tools: dict[str, str] | None = None,
    ) -> Manifest:
        """Commit a bundle that is ``old`` with other variants, measurements or tools. Raises BundleError."""
        return self.commit(
            backbone=old.backbone,
            labels=old.labels,
            input_spec=old.input,
            full=old.full,
            variants=variants,
            measurements=old.measurements if measurements is None else measurements,
            tools=old.tools if tools is None else tools,
            samples=old.samples,
        )

    def _move(self) -> None:
        for file in self.root.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if self.out.name.endswith(SUFFIX):
            archive = self.root.with_name(self.root.name + SUFFIX)
            try:
                pack(self.root, archive)
                archive.replace(self.out)
            finally:
                archive.unlink(missing_ok=True)
            return
        old = self.root.with_name(self.root.name + ".old")
        if self.out.exists():
            self.out.rename(old)
        try:
            self.root.rename(self.out)
        except OSError:
            if old.exists():
                old.rename(self.out)
            raise
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def _entry(file: Path) -> FileEntry:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=file.stat().st_size)
