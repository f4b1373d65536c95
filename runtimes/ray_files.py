"""How a bundle's files come to the nodes of a Ray cluster: through Ray's object store, checked where they arrive."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.bundle.manifest import MANIFEST, ONNXRUNTIME, Manifest
from aecnn_deploy.bundle.reader import Bundle, check_file, read_manifest
from aecnn_deploy.errors import BundleDamagedError, RunnerError
from aecnn_deploy.runtimes.base import Array

_FETCH_S = 120.0  # for one file, from another machine


def model_key(bundle_id: str, variant: str | None) -> str:
    """What names a variant's tail, or the unsplit model (None), wherever models of several bundles run side by side."""
    return f"{bundle_id}/{variant or ''}"


def parts_of(key: str) -> tuple[str, str | None]:
    """The bundle's id and the variant (None: the unsplit model) of a ``model_key``."""
    bundle_id, _, variant = key.partition("/")
    return bundle_id, variant or None


def files_of(manifest: Manifest, variant: str | None, *, gpu: bool) -> list[str]:
    """The files that a node needs to run a model; ``gpu``: what engines are made of and checked with, too."""
    if variant is None:
        return [manifest.full]
    spec = manifest.variant(variant)
    names = {spec.tails[ONNXRUNTIME]}
    if gpu:
        names |= {*spec.tails.values(), *(engine.file for engine in spec.engines.values())}
        if samples := manifest.samples:
            names |= {samples.frames, samples.full, *samples.planes.values(), *samples.logits.values()}
            names |= set(samples.int8.values())
    return sorted(names)


class Shelf:
    """A Ray actor beside the edge: where files are in the object store. It ends with the edge, which tells nodes so."""

    def __init__(self) -> None:
        self._refs: dict[str, dict[str, Any]] = {}

    def put(self, bundle_id: str, files: dict[str, Any]) -> None:
        """Keep references to ``files`` of a bundle."""
        self._refs.setdefault(bundle_id, {}).update(files)

    def find(self, bundle_id: str, name: str) -> list[Any]:
        """The reference to a file, in a list, which Ray does not look into; an empty one: it is not there."""
        ref = self._refs.get(bundle_id, {}).get(name)
        return [] if ref is None else [ref]

    def drop(self, bundle_id: str) -> None:
        """Forget a bundle's files, which frees their memory."""
        self._refs.pop(bundle_id, None)

    def alive(self) -> bool:
        """That it answers at all is the answer."""
        return True


def read_file(path: Path) -> Array:
    """A file's bytes as an array, which the object store takes and gives without another copy."""
    return np.fromfile(path, np.uint8)


class NodeBundles:
    """Bundles on a node, each with the files that were asked for so far, in a folder of this process's own."""

    def __init__(self, ray: Any, shelf: Any, folder: Path) -> None:
        self._ray, self._shelf, self._folder = ray, shelf, folder

    def bundle(self, bundle_id: str, variant: str | None, *, gpu: bool) -> Bundle:
        """The bundle with the files that the model needs, each compared with its SHA-256.

        Raises RunnerError: the object store gives none. BundleError: what it gives is not what the manifest says.
        """
        root = self._folder / bundle_id
        root.mkdir(exist_ok=True)
        self._fetch(bundle_id, MANIFEST, root)
        manifest = read_manifest(root, root)
        if manifest.bundle_id != bundle_id:
            raise BundleDamagedError(root, MANIFEST, f"bundle id {bundle_id[:12]}…", f"{manifest.bundle_id[:12]}…")
        for name in files_of(manifest, variant, gpu=gpu):
            self._fetch(bundle_id, name, root)
            check_file(root, root, manifest, name)
        return Bundle(root, root, manifest)

    def _fetch(self, bundle_id: str, name: str, root: Path) -> None:
        path = root / name
        if path.exists():
            return
        errors = self._ray.exceptions
        try:
            refs = self._ray.get(self._shelf.find.remote(bundle_id, name), timeout=_FETCH_S)
            if not refs:
                raise RunnerError(f"the edge holds no {name} of bundle {bundle_id[:12]} any more; start it again")
            content = self._ray.get(refs[0], timeout=_FETCH_S)
        except (errors.RayError, errors.GetTimeoutError) as exc:
            raise RunnerError(
                f"{name} does not come through Ray's object store: {type(exc).__name__}: {first_line(exc)}; "
                "is the edge's node reachable from this one?"
            ) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            content.tofile(partial)
            partial.replace(path)
        except OSError as exc:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RunnerError(f"cannot keep {name} in {root}: {exc.strerror}; make room there") from None


def first_line(error: BaseException) -> str:
    """What an exception of Ray says, without the traces that follow."""
    return str(error).strip().partition("\n")[0][:300]
