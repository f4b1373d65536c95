"""Trained bundles that come with the package: a start without a training. ``zoo/README.md`` says what each one is."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from aecnn_deploy.errors import BundleError

PREFIX = "zoo:"  # "zoo:NAME" stands for a bundle's path on the command line
_SUFFIX = ".tar.zst"


def zoo_bundles() -> Mapping[str, Path]:
    """The file of each bundle of the zoo, by name, in the order of names: what ``open_bundle`` takes."""
    # A wheel is unpacked when it is installed: what it carries is a file on disk.
    found = sorted(Path(str(entry)) for entry in files(__name__).iterdir() if entry.name.endswith(_SUFFIX))
    return MappingProxyType({file.name.removesuffix(_SUFFIX): file for file in found})


def zoo_bundle(name: str) -> Path:
    """The file of the bundle ``name``, with or without "zoo:" before it. Raises BundleError: there is none."""
    bundles, short = zoo_bundles(), name.removeprefix(PREFIX)
    if short not in bundles:
        known = ", ".join(PREFIX + each for each in bundles) or "none: the installation is not whole"
        raise BundleError(f"the zoo has no bundle {short!r}; known are {known}")
    return bundles[short]
