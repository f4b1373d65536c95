"""``aecnn-deploy export``: a training run becomes a bundle."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.console import print_json
from aecnn_deploy.cli.photographs import read_frames
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from aecnn_deploy.bundle.manifest import Manifest
    from aecnn_deploy.exporters.engines import EngineRequest

EXAMPLE = "Example: aecnn-deploy export run --out bundle --engine tensorrt-rtx --sm 75 --sm 86"

_MOST_IMAGES = 400


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("export", epilog=EXAMPLE)(export)


def export(
    run: Annotated[Path, typer.Argument(help="The folder that 'aecnn-deploy train' wrote.")],
    out: Annotated[Path, typer.Option(help="The bundle to write: a folder, or a .tar.zst.")],
    engine: Annotated[
        str, typer.Option(help="GPU engines to build beside the ONNX files: none, tensorrt-rtx or tensorrt.")
    ] = "none",
    sm: Annotated[
        list[int] | None,
        typer.Option(help="GPU architecture for tensorrt-rtx, e.g. 75; may be repeated. Default: this machine's GPU."),
    ] = None,
    batch_max: Annotated[int, typer.Option(help="Largest batch that an engine runs in one piece.")] = 8,
    variant: Annotated[
        list[str] | None, typer.Option(help="Export this variant only; may be repeated. Default: all.")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Round weights to bfloat16's precision: archives shrink by half.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Photographs to choose the planes' coding with, best 200. Default: the run's few."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that stands at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export a training run to a bundle for devices and edges.

    Every ONNX file is compared with torch on real photographs, at batch sizes 1 and 5; a file that differs leaves no
    bundle. Engines for tensorrt-rtx are built without a GPU; tensorrt builds for the GPU of this machine.
    """
    request = _engine_request(engine, sm, batch_max)
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(module, why="exporting", extra="train")
    from aecnn_deploy.exporters.export import export_run
    from aecnn_deploy.models.run import load_run

    start_s = time.perf_counter()
    trained = load_run(run)
    frames = read_frames(images, trained.input, _MOST_IMAGES) if images else None
    with StageBars() as bars:
        manifest = export_run(
            trained,
            out,
            engine=request,
            variants=variant or None,
            replace=force,
            compact=compact,
            calibration_frames=frames,
            progress=bars,
        )
    seconds = time.perf_counter() - start_s
    if as_json:
        print_json(_document(manifest, out, seconds))
    else:
        _print(manifest, out, seconds)


def _engine_request(engine: str, sm: list[int] | None, batch_max: int) -> "EngineRequest | None":
    """Raises SettingsError: an unknown engine, or --sm without --engine tensorrt-rtx."""
    from aecnn_deploy.exporters.engines import EngineRequest
    from aecnn_deploy.runtimes.tensorrt_probe import PRODUCTS

    if engine not in ("none", *PRODUCTS):
        raise SettingsError(f"unknown --engine {engine!r}; choose one of none, {', '.join(PRODUCTS)}")
    if sm and engine != "tensorrt-rtx":
        raise SettingsError(f"--sm goes with --engine tensorrt-rtx only, got --engine {engine}")
    if engine == "none":
        return None
    return EngineRequest(engine, tuple(f"sm{number}" for number in sm or ()), (1, 1, batch_max))


def _document(manifest: "Manifest", out: Path, seconds: float) -> dict[str, Any]:
    return {
        "bundle": str(out),
        "bundle_id": manifest.bundle_id,
        "variants": [spec.id for spec in manifest.variants],
        "files": {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in manifest.files.items()},
        "verification": manifest.measurements["verification"],
        "seconds": round(seconds, 3),
    }


def _print(manifest: "Manifest", out: Path, seconds: float) -> None:
    verified: dict[str, dict[str, Any]] = manifest.measurements["verification"]
    for name, entry in manifest.files.items():
        typer.echo(f"{name:<66} {entry.bytes / 1e6:>8.2f} MB")
        typer.echo(f"    {_words(verified.get(name))}")
    typer.echo(f"bundle {manifest.bundle_id[:16]}… in {out}, {seconds:.1f} s")
    typer.echo(f"serve it with: aecnn-deploy serve-edge {out}")


def _words(item: dict[str, Any] | None) -> str:
    if item is None:
        return "built, not run: it is for another machine's GPU"
    batches = "and ".join(f"{batch} " for batch in item["batches"]).strip()
    if item["differing_share"] is not None:
        return f"planes are torch's but for {item['differing_share']:.4%}, one step off (batch {batches})"
    return (
        f"logits within {item['largest_difference']:.1e} of torch's, top-1 agreement "
        f"{item['top1_agreement']:.0%} (batch {batches})"
    )
