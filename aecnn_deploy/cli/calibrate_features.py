"""``aecnn-deploy calibrate features``: where the unsplit model may be cut, and what would be sent there."""

from math import prod
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import print_json, progress, say
from aecnn_deploy.cli.photographs import read_frames
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from aecnn_deploy.planning.profiles import CutFeatures

EXAMPLE = "Example: aecnn-deploy calibrate features bundle --images photos/"

_WIDTH = 80
_NEAR = 0.02  # multiply-adds may differ by so much from the manifest's, which torch counted


def register(calibrate: typer.Typer) -> None:
    """Add the command to ``calibrate``."""
    calibrate.command("features", epilog=EXAMPLE)(features)


def features(
    bundle: BundleArgument,
    images: Annotated[Path, typer.Option(help="Photographs like those that devices will see: a folder or a file.")],
    limit: Annotated[int, typer.Option(min=1, help="At most so many photographs, evenly chosen.")] = 40,
    quality: Annotated[
        list[int] | None, typer.Option(help="JPEG quality, 1 to 100; may be repeated. Default: 30, 60, 90.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads of the model; 0 takes every core.")] = 0,
    profiles: Annotated[
        Path | None, typer.Option(help="Folder of the profile.", show_default="BUNDLE.profiles, or a cache")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find where the unsplit model may be cut, and what its tensors take there as JPEG.

    'aecnn-deploy plan' compares rules of others with it. At cuts worth sending, the tensor is coded as JPEG for each
    photograph, and the rest of the model runs on what comes back: how often is the class the same? What it finds holds
    for the bundle, whichever machine measured.
    """
    require("onnx", why="measuring features", extra="plan")
    require("onnxruntime", why="measuring features")
    from aecnn_deploy.calibration.features import FeatureSettings, measure_features
    from aecnn_deploy.planning.profile_store import write_profile

    settings = FeatureSettings(threads=threads)
    if quality:
        settings = FeatureSettings(tuple(quality), threads=threads)
    opened = open_named(bundle)
    frames = read_frames(images, opened.manifest.input, limit)
    with progress("measuring features", len(frames) + settings.max_cuts) as bar:
        profile = measure_features(opened, frames, settings, advance=bar.advance)
    path = write_profile(opened, profile, profiles)
    counted, told = sum(profile.layer_macs.values()), opened.manifest.variants[0].full_macs
    if abs(counted - told) > _NEAR * told:
        say(f"the graph has {counted:,} multiply-adds, the manifest says {told:,}: a layer is of an unknown kind")
    measured = [cut for cut in profile.cuts if cut.jpeg_bytes]
    if as_json:
        print_json(
            {
                "bundle_id": opened.id,
                "profile": str(path),
                "images": profile.images,
                "took_s": profile.took_s,
                "macs": counted,
                "cuts": [_row(cut) for cut in profile.cuts],
            }
        )
        return
    for cut in measured:
        name = "×".join(map(str, cut.shape))
        typer.echo(f"{name}: {cut.macs / 1e6:,.0f} M of {counted / 1e6:,.0f} M multiply-adds, after {cut.after}")
        sizes = [f"float32 {4 * prod(cut.shape):,} bytes"]
        sizes += [
            f"JPEG {each} {size:,.0f} ({cut.jpeg_agreement[each]:.1%} agree)" for each, size in cut.jpeg_bytes.items()
        ]
        typer.echo(fill(", ".join(sizes), _WIDTH, initial_indent="    ", subsequent_indent="    "))
    typer.echo(f"{len(profile.cuts)} cuts, {len(measured)} of them measured with {profile.images} photographs: {path}")


def _row(cut: "CutFeatures") -> dict[str, Any]:
    return {
        "after": cut.after,
        "shape": cut.shape,
        "macs": cut.macs,
        "float32_bytes": 4 * prod(cut.shape),
        "quantised_agreement": cut.quantised_agreement,
        "jpeg": [
            {"quality": quality, "bytes_mean": size, "agreement": cut.jpeg_agreement[quality]}
            for quality, size in cut.jpeg_bytes.items()
        ],
    }
