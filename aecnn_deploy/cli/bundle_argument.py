"""The argument that names a bundle, for every command that takes one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aecnn_deploy.zoo import PREFIX, zoo_bundle

if TYPE_CHECKING:
    from aecnn_deploy.bundle.reader import Bundle

BundleArgument = Annotated[Path, typer.Argument(help="The bundle: a folder, a .tar.zst of one, or zoo:NAME.")]


def open_named(bundle: Path) -> "Bundle":
    """Open what the user named: a path, or zoo:NAME. Raises BundleError."""
    from aecnn_deploy.bundle.reader import open_bundle

    name = str(bundle)
    return open_bundle(zoo_bundle(name) if name.startswith(PREFIX) else bundle)
