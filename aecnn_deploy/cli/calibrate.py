"""``aecnn-deploy calibrate``: fit a bundle to what it is used for."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import print_json, say
from aecnn_deploy.cli.photographs import head_planes, read_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from aecnn_deploy.bundle.manifest import FileEntry, VariantSpec

EXAMPLE = "Example: aecnn-deploy calibrate coders bundle --images photos/ --out bundle2"

calibrate = typer.Typer(no_args_is_help=True, help="Fit a bundle to what it is used for.")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(calibrate, name="calibrate")


@calibrate.command("coders", epilog=EXAMPLE)
def coders(
    bundle: BundleArgument,
    images: Annotated[Path, typer.Option(help="Photographs like those that devices will see: a folder or a file.")],
    out: Annotated[Path, typer.Option(help="The bundle to write: a folder, or a .tar.zst.")],
    limit: Annotated[int, typer.Option(min=1, help="At most so many photographs.")] = 400,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that stands at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Choose how each variant's planes are predicted, and train a zstd dictionary for them where one pays.

    Runs the bundle's heads on photographs. A dictionary needs 24 of them, and is kept where photographs that it was not
    trained on take at least 2 % fewer bytes. The new bundle has an id of its own: start both halves with it.
    """
    from aecnn_deploy.bundle.writer import BundleWriter
    from aecnn_deploy.calibration.plane_coding import calibrate_bundle

    given = open_named(bundle)
    writer = BundleWriter(out, replace=force)
    frames = read_frames(images, given.manifest.input, limit)

    def planes_of(variant: "VariantSpec") -> "npt.NDArray[np.uint8]":
        say(f"calibrating {variant.id}")
        return head_planes(given, variant, frames)

    with writer:
        manifest = calibrate_bundle(given, planes_of, writer)
    measured = manifest.measurements["coding"]
    rows = [
        {
            "variant": spec.id,
            "predictor": spec.coding.predictor if spec.coding else None,
            "dictionary_bytes": _dictionary_bytes(manifest.files, spec.coding.dictionary if spec.coding else None),
            **measured[spec.id],
        }
        for spec in manifest.variants
    ]
    if as_json:
        print_json({"bundle": str(out), "bundle_id": manifest.bundle_id, "variants": rows})
        return
    for row in rows:
        size = row["dictionary_bytes"]
        what = f"dictionary of {size} bytes" if size else "no dictionary"
        typer.echo(f"{row['variant']}: {row['predictor']}-zstd, {what}")
        sizes = ", ".join(f"{name} {value:,.0f}" for name, value in row["payload_bytes"].items())
        typer.echo(fill(f"mean bytes: {sizes}", 80, initial_indent="    ", subsequent_indent="    "))
    typer.echo(f"bundle {manifest.bundle_id[:16]}… in {out}, from {len(frames)} photographs")


def _dictionary_bytes(files: "dict[str, FileEntry]", name: str | None) -> int:
    return files[name].bytes if name else 0
