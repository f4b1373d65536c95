"""A bundle as a Triton model repository: written beside its place and renamed, beside what else stands there."""

import errno
import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aecnn_deploy.bundle.manifest import MANIFEST
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import ExportError
from aecnn_deploy.exporters.triton_config import BUNDLE_KEY, CONFIG, LABELS, VERSION, config_text, labels_text
from aecnn_deploy.exporters.triton_models import TritonModel, choose_models
from aecnn_deploy.exporters.triton_settings import DEFAULTS, TritonSettings

_MAX_CONFIG_BYTES = 1 << 20  # of a config.pbtxt that is asked whose it is


@dataclass(frozen=True, slots=True)
class Repository:
    """What was written."""

    path: Path
    bundle_id: str
    models: tuple[TritonModel, ...]
    replaced: tuple[str, ...]  # of these, those that stood there before
    left: tuple[str, ...]  # models of this or another bundle that stand there and were not written now


def write_repository(
    bundle: Bundle,
    out: Path,
    settings: TritonSettings = DEFAULTS,
    *,
    variants: Collection[str] | None = None,
    replace: bool = False,
) -> Repository:
    """Write the tails of ``variants`` (None: all) and the unsplit model into the model repository ``out``.

    ``out`` is made, or empty, or with ``replace`` a folder in which models that came from a bundle are replaced; no
    other model is touched. Whatever fails leaves ``out`` as it was. Raises SettingsError, BundleError, ExportError,
    MissingExtraError.
    """
    models = choose_models(bundle, settings, variants)
    with RepositoryWriter(out, [model.served_name for model in models], replace=replace) as writer:
        for model in models:
            try:
                _write_model(writer.root / model.served_name, model, settings, bundle)
            except OSError as exc:
                raise ExportError(f"cannot write {out}: {exc.strerror or exc}") from None
        replaced = writer.commit()
    names = {model.served_name for model in models}
    left = sorted(folder.name for folder in writer.out.iterdir() if is_ours(folder) and folder.name not in names)
    return Repository(out, bundle.id, models, replaced, tuple(left))


def check_destination(out: Path, *, replace: bool) -> None:
    """Whether a repository may be written to ``out``. Raises ExportError."""
    if (out / MANIFEST).is_file():
        raise ExportError(f"{out} is a bundle: no model is put into it; choose another folder for the repository")
    if out.is_dir():
        try:
            holds = next(out.iterdir(), None)
        except OSError as exc:
            raise ExportError(f"cannot read {out}: {exc.strerror or exc}") from None
        if holds is not None and not replace:
            raise ExportError(
                f"{out} is not empty; choose another folder, or add --force to put the models beside what is there"
            )
    elif out.exists() or out.is_symlink():
        raise ExportError(f"{out} is no folder: not replaced; choose another one for the repository")


def is_ours(folder: Path) -> bool:
    """Whether the model in ``folder`` was written from a bundle."""
    config = folder / CONFIG
    try:
        if folder.is_symlink() or config.stat().st_size > _MAX_CONFIG_BYTES:
            return False
        return f'key: "{BUNDLE_KEY}"' in config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _write_model(folder: Path, model: TritonModel, settings: TritonSettings, bundle: Bundle) -> None:
    (folder / VERSION).mkdir(parents=True)
    for name, source in model.files.items():
        shutil.copyfile(source, folder / VERSION / name)
    (folder / CONFIG).write_text(config_text(model, settings, bundle.id), encoding="utf-8")
    (folder / LABELS).write_text(labels_text(bundle.manifest.labels), encoding="utf-8")


class RepositoryWriter:
    """A context manager: put models under ``root``, then ``commit``; without a commit all of it goes away.

    ``root`` lies beside ``out`` and not in it: Triton takes every folder of a repository for a model, hidden ones too.
    Raises ExportError: ``out`` must not be written, or cannot be.
    """

    def __init__(self, out: Path, names: list[str], *, replace: bool) -> None:
        check_destination(out, replace=replace)
        self.out, self._names = out.resolve(), names  # a link to it may point elsewhere tomorrow
        for name in names:
            folder = self.out / name
            if (folder.exists() or folder.is_symlink()) and not is_ours(folder):
                raise ExportError(
                    f"{folder} was not written from a bundle: not replaced; move it away, or choose another folder"
                )

    def __enter__(self) -> Self:
        parent = self.out.parent
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._temporary = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.partial-", dir=parent))
            self.root, self._old = self._temporary / "new", self._temporary / "old"
            for folder in (self.root, self._old):
                folder.mkdir()
        except OSError as exc:
            raise ExportError(f"cannot write {self.out}: {exc.strerror or exc}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        with suppress(OSError):  # folders that were made for a repository which did not come
            for folder in self._made:
                folder.rmdir()

    def commit(self) -> tuple[str, ...]:
        """Move all models into their place; the names of those that stood there. Raises ExportError: none was moved."""
        try:
            _flush(self.root)
            if self.out.exists():
                return self._swap()
            self.root.rename(self.out)
            return ()
        except OSError as exc:
            mount = exc.errno in (errno.EXDEV, errno.EBUSY)
            remedy = "it is a mount of its own: name a folder inside it" if mount else "nothing there was changed"
            raise ExportError(f"cannot move the models to {self.out}: {exc.strerror or exc}; {remedy}") from None

    def _swap(self) -> tuple[str, ...]:
        """Model by model; an error puts back what was moved."""
        try:
            for name in self._names:
                target = self.out / name
                if target.exists():
                    target.rename(self._old / name)
                (self.root / name).rename(target)
        except BaseException:
            self._put_back()
            raise
        return tuple(name for name in self._names if (self._old / name).exists())

    def _put_back(self) -> None:
        """Undo what the folders show to be done: an interrupt may have come between any two steps."""
        for name in self._names:
            target, new, old = self.out / name, self.root / name, self._old / name
            if not new.exists() and target.exists():
                target.rename(new)
            if old.exists():
                old.rename(target)


def _flush(root: Path) -> None:
    for file in root.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
