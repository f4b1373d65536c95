"""``aecnn-deploy calibrate``: fit a bundle to what it is used for, and measure what its halves take."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from aecnn_deploy.cli import calibrate_features, calibrate_latency
from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import print_json, say
from aecnn_deploy.cli.photographs import head_planes, read_frames
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from aecnn_deploy.bundle.manifest import FileEntry, VariantSpec

EXAMPLE = "Example: aecnn-deploy calibrate coders bundle --images photos/ --out bundle2"

calibrate = typer.Typer(no_args_is_help=True, help="Fit a bundle to what it is used for; measure what its halves take.")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    calibrate_latency.register(calibrate)
    app.add_typer(calibrate, name="calibrate")
    calibrate_features.register(calibrate)


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


@calibrate.command("ranges", epilog="Example: aecnn-deploy calibrate ranges run --data photos/train")
def ranges(
    run: Annotated[Path, typer.Argument(help="The folder that 'aecnn-deploy train' wrote.")],
    data: Annotated[
        str, typer.Option(help="Training photographs: a folder (folders in it too), a file, or the name caltech101.")
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the data set that --data names is, or is downloaded to.",
            show_default="$AECNN_DATA, or a cache",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="minmax, percentile, entropy, or auto: the one with the nearest planes.")
    ] = "auto",
    limit: Annotated[int, typer.Option(min=1, help="At most so many photographs, evenly chosen.")] = 100,
    variant: Annotated[
        list[str] | None, typer.Option(help="Calibrate this variant only; may be repeated. Default: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Gather activation ranges for int8 heads, and keep them in the run.

    Of photographs that the run knows, only those that it was trained on are taken. Then 'aecnn-deploy export
    --head-precision fp32 --head-precision int8' writes both heads of each variant. Both are timed here on one thread;
    the bundle's default is the faster one.
    """
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(module, why="calibrating int8 heads", extra="train")
    from aecnn_deploy.cli.stages import StageBars
    from aecnn_deploy.exporters.int8_calibration import CALIBRATION_FILE, calibrate_heads
    from aecnn_deploy.models.run import load_run
    from aecnn_deploy.training.dataset import CALTECH101, resolve_data, training_names

    trained = load_run(run)
    folder = resolve_data(data, data_dir) if data == CALTECH101 or Path(data).is_dir() else Path(data)
    frames = read_frames(folder, trained.input, limit, prefer=training_names(run))
    with StageBars() as bars:
        record = calibrate_heads(trained, frames, method=method, variants=variant or None, progress=bars)
    chosen = {name: item for name, item in record.variants.items() if not variant or name in variant}
    if as_json:
        rows = [
            {
                "variant": name,
                "method": item.method,
                "mean_difference": item.mean_difference,
                "agreement": item.agreement,
                "fp32_ms": item.fp32_ms,
                "int8_ms": item.int8_ms,
                "default": item.faster,
            }
            for name, item in chosen.items()
        ]
        print_json({"run": str(run), "images": len(frames), "variants": rows})
        return
    for name, item in chosen.items():
        typer.echo(
            f"{name}: {item.method}; same class for {item.agreement:.1%}; "
            f"fp32 {item.fp32_ms:.2f} ms, int8 {item.int8_ms:.2f} ms here"
        )
        differences = ", ".join(f"{other} {steps:.3f}" for other, steps in item.mean_difference.items())
        typer.echo(f"    mean difference of planes in steps: {differences}")
    typer.echo(f"{run / CALIBRATION_FILE} from {len(frames)} photographs")


def _dictionary_bytes(files: "dict[str, FileEntry]", name: str | None) -> int:
    return files[name].bytes if name else 0
