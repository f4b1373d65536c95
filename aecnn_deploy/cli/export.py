"""``aecnn-deploy export``: a training run becomes a bundle."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from aecnn_deploy.cli.bundle_triton import echo_repository, repository_document
from aecnn_deploy.cli.console import print_json
from aecnn_deploy.cli.engine_options import (
    BatchMaxOption,
    BatchMinOption,
    BatchOptOption,
    PrecisionOption,
    SmOption,
    TimingCacheOption,
    WorkspaceOption,
    engine_request,
)
from aecnn_deploy.cli.export_options import frame_size, onnx_options, triton_settings
from aecnn_deploy.cli.photographs import read_frames
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.cli.verification import echo_legend, echo_row
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from aecnn_deploy.bundle.manifest import Manifest
    from aecnn_deploy.runtimes.verification import Verified

EXAMPLE = "Example: aecnn-deploy export run --out bundle --engine tensorrt-rtx --sm 75 --sm 86"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("export", epilog=EXAMPLE)(export)


def export(
    run: Annotated[Path, typer.Argument(help="The folder that 'aecnn-deploy train' wrote.")],
    out: Annotated[Path, typer.Option(help="The bundle to write: a folder, or a .tar.zst.")],
    engine: Annotated[
        str, typer.Option(help="GPU engines to build beside the ONNX files: none, tensorrt-rtx or tensorrt.")
    ] = "none",
    sm: SmOption = None,
    precision: PrecisionOption = None,
    batch_min: BatchMinOption = 1,
    batch_opt: BatchOptOption = 1,
    batch_max: BatchMaxOption = 8,
    workspace: WorkspaceOption = None,
    timing_cache: TimingCacheOption = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Export this variant only; may be repeated. Default: all.")
    ] = None,
    head_precision: Annotated[
        list[str] | None,
        typer.Option(help="Heads to write: fp32, int8 (after 'calibrate ranges'); may be repeated. Default: fp32."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Round weights to bfloat16's precision: archives shrink by half.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Photographs to calibrate int8 and the coding with, at most 400. Default: the run's few."),
    ] = None,
    samples: Annotated[
        bool,
        typer.Option("--samples/--no-samples", help="Keep five of the run's photographs in it, for verify --deep."),
    ] = True,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, e.g. an SPDX id, for the files' metadata.")
    ] = "not stated",
    input_size: Annotated[
        str | None,
        typer.Option(metavar="S|HxW", help="Pixels of the frames, where they are not those of the training."),
    ] = None,
    opset: Annotated[int, typer.Option(help="Opset of the ONNX files, 14 to 21.")] = 18,
    ir_version: Annotated[int, typer.Option(help="IR version of the ONNX files, at most 10.")] = 10,
    onnx_batch: Annotated[
        str, typer.Option(metavar="dynamic|N", help="The ONNX files' batch axis: open, or fixed to N images.")
    ] = "dynamic",
    simplify: Annotated[bool, typer.Option("--simplify", help="Run onnxslim on each ONNX file.")] = False,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a Triton model repository of the bundle, too.")
    ] = None,
    triton_backend: Annotated[
        str, typer.Option(help="What runs the tails there: auto, onnxruntime or tensorrt; the rest: 'bundle triton'.")
    ] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that stands at --out, and models in --triton.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export a training run to a bundle for devices and edges.

    Every ONNX file is compared with torch on real photographs, at batch sizes 1 and 5; a file that differs leaves no
    bundle. Engines for tensorrt-rtx are built without a GPU; tensorrt builds for the GPU of this machine.
    """
    batch = (batch_min, batch_opt, batch_max)
    request = engine_request(engine, sm, batch, precision=precision, workspace_mib=workspace, timing_cache=timing_cache)
    onnx, size = onnx_options(opset, ir_version, onnx_batch, simplify=simplify), frame_size(input_size)
    for module in ("torch", "onnx", "onnxscript", "onnxruntime", *(["onnxslim"] if simplify else [])):
        require(module, why="exporting", extra="train")
    from aecnn_deploy.bundle.reader import open_bundle
    from aecnn_deploy.calibration.plane_coding import MOST_IMAGES
    from aecnn_deploy.exporters.export import export_run
    from aecnn_deploy.exporters.triton_repository import write_repository
    from aecnn_deploy.models.resized_run import resized_run
    from aecnn_deploy.models.run import load_run

    settings = None if triton is None else triton_settings(triton, out, triton_backend, request, onnx, force=force)
    start_s = time.perf_counter()
    verified: dict[str, Verified] = {}
    trained = load_run(run)
    if size is not None:
        trained = resized_run(trained, *size)
    frames = read_frames(images, trained.input, MOST_IMAGES) if images else None
    with StageBars() as bars:
        manifest = export_run(
            trained,
            out,
            engine=request,
            tails=precision or (),
            variants=variant or None,
            head_precisions=head_precision or ("fp32",),
            replace=force,
            compact=compact,
            calibration_frames=frames,
            samples=samples,
            licence=licence,
            onnx=onnx,
            on_verified=verified.__setitem__,
            progress=bars,
        )
    seconds = time.perf_counter() - start_s
    written = None
    if triton is not None and settings is not None:
        written = write_repository(open_bundle(out), triton, settings, replace=force)
    if as_json:
        document = _document(manifest, verified, out, seconds)
        print_json(document | ({"triton": repository_document(written)} if written else {}))
        return
    _print(manifest, verified, out, seconds)
    if written:
        echo_repository(written)


def _document(manifest: "Manifest", verified: "dict[str, Verified]", out: Path, seconds: float) -> dict[str, Any]:
    return {
        "bundle": str(out),
        "bundle_id": manifest.bundle_id,
        "variants": [spec.id for spec in manifest.variants],
        "files": {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in manifest.files.items()},
        "verification": {name: msgspec.to_builtins(item) for name, item in verified.items()},
        "onnx": manifest.measurements["onnx"],
        "seconds": round(seconds, 3),
    }


def _print(manifest: "Manifest", verified: "dict[str, Verified]", out: Path, seconds: float) -> None:
    echo_legend()
    for name in manifest.files:
        if name.endswith((".onnx", ".engine")):
            item = msgspec.to_builtins(verified[name]) if name in verified else None
            echo_row(name, "ok" if item else "not run", item, "built for another GPU: run bundle verify --deep there")
    for name, nodes in manifest.measurements["onnx"]["simplified"].items():
        typer.echo(f"{name}: {nodes['nodes']} nodes of {nodes['nodes_before']} are left")
    if "input_size" in manifest.measurements:
        size_of = f"{manifest.input.height}x{manifest.input.width}"
        typer.echo(f"for frames of {size_of} pixels, at which no accuracy and no agreement was measured")
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    typer.echo(
        f"bundle {manifest.bundle_id[:16]}…, {len(manifest.files)} files, {size:.1f} MB, {seconds:.1f} s, in {out}"
    )
    typer.echo(f"serve it with: aecnn-deploy serve-edge {out}")
