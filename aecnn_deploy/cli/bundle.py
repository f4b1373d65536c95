"""``aecnn-deploy bundle show``, ``bundle verify`` and ``bundle engines``; ``bundle triton`` has a module of its own."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from aecnn_deploy.bundle.manifest import INT8
from aecnn_deploy.cli import bundle_triton
from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
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
from aecnn_deploy.errors import SettingsError

if TYPE_CHECKING:
    from aecnn_deploy.bundle.reader import Bundle

_NAME = 28  # columns
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add the command group to ``app``."""
    group = typer.Typer(
        name="bundle", help="Look into a bundle.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
    )
    group.command("show", epilog="Example: aecnn-deploy bundle show bundle --json")(show)
    group.command("engines", epilog="Example: aecnn-deploy bundle engines bundle --sm 75 --out bundle2")(engines)
    group.command("verify", epilog="Example: aecnn-deploy bundle verify bundle.tar.zst")(verify)
    bundle_triton.register(group)
    app.add_typer(group)


def show(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle holds; every file is verified first."""
    opened = open_named(bundle)
    if as_json:
        print_json(_document(opened))
        return
    manifest = opened.manifest
    spec = manifest.input
    typer.echo(f"bundle    {manifest.bundle_id}")
    typer.echo(f"backbone  {manifest.backbone}, {len(manifest.labels)} labels")
    typer.echo(f"input     {spec.width}x{spec.height} RGB, short side resized to {spec.resize_short}, centre crop")
    typer.echo(f"files     {len(manifest.files)}, {sum(entry.bytes for entry in manifest.files.values()) / 1e6:.1f} MB")
    typer.echo(
        f"{'variant':<{_NAME}} {'planes':>12} {'bits':>4} {'head MAC':>9} {'of full':>7} {'agree':>6} {'top-1':>6}"
    )
    for variant in manifest.variants:
        planes = "x".join(map(str, variant.planes))
        share = variant.head_macs / variant.full_macs if variant.full_macs else 0.0
        name = variant.id
        if len(name) > _NAME:  # on a line of its own: the columns stay, and all fits 80 of them
            typer.echo(name)
            name = ""
        typer.echo(
            f"{name:<{_NAME}} {planes:>12} {variant.bits:>4} {variant.head_macs / 1e6:>8.1f}M {share:>7.1%} "
            f"{_share(variant.agreement):>6} {_share(variant.accuracy):>6}"
        )
        if len(variant.head_files) > 1 or INT8 in variant.head_files:
            default = next(precision for precision, file in variant.head_files.items() if file == variant.head)
            typer.echo(f"  heads   {', '.join(variant.head_files)}; by default {default}")
        typer.echo(_wrapped("  tails   ", sorted(variant.tails.keys() | variant.engines.keys())))
        if coding := variant.coding:
            with_one = " and a dictionary" if coding.dictionary else ""
            typer.echo(f"  coding  calibrated: prediction {coding.predictor}{with_one}")


def verify(
    bundle: BundleArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also run every model file on the samples that the bundle keeps.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every file of a bundle with its manifest. Exit status 1: one differs, or it is no bundle.

    With --deep, heads, tails and the unsplit model are run on this machine, engines where it has the GPU that they were
    built for, and compared with what torch gave when the bundle was exported.
    """
    opened = open_named(bundle)
    manifest = opened.manifest
    if deep:
        _verify_deep(opened, as_json)
        return
    size = sum(entry.bytes for entry in manifest.files.values())
    if as_json:
        print_json(
            {
                "bundle_id": manifest.bundle_id,
                "format": manifest.format,
                "ok": True,
                "files": len(manifest.files),
                "bytes": size,
            }
        )
    else:
        typer.echo(f"{bundle} is whole: {len(manifest.files)} files, {size} bytes, bundle {manifest.bundle_id}")


def engines(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="The bundle to write: a folder, or a .tar.zst.")],
    engine: Annotated[str, typer.Option(help="What to build: tensorrt-rtx or tensorrt.")] = "tensorrt-rtx",
    sm: SmOption = None,
    precision: PrecisionOption = None,
    batch_min: BatchMinOption = 1,
    batch_opt: BatchOptOption = 1,
    batch_max: BatchMaxOption = 8,
    workspace: WorkspaceOption = None,
    timing_cache: TimingCacheOption = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Photographs to calibrate int8 with, 32 at most. Default: the bundle's samples."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that stands at --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add GPU engines to a finished bundle, built from its tails; neither torch nor the training run is needed.

    The new bundle has an id of its own: start both halves with it.
    """
    from aecnn_deploy.cli.photographs import head_planes, read_frames
    from aecnn_deploy.cli.stages import StageBars
    from aecnn_deploy.exporters.bundle_engines import add_engines
    from aecnn_deploy.exporters.int8_tail import MOST_IMAGES

    batch = (batch_min, batch_opt, batch_max)
    request = engine_request(engine, sm, batch, precision=precision, workspace_mib=workspace, timing_cache=timing_cache)
    if request is None:
        raise SettingsError("--engine none builds nothing; choose tensorrt-rtx or tensorrt")
    if images and "int8" not in request.precisions:
        raise SettingsError("--images calibrates int8 engines; add --precision int8, or leave it out")
    opened = open_named(bundle)
    frames = read_frames(images, opened.manifest.input, MOST_IMAGES) if images else None
    with StageBars() as bars:
        manifest = add_engines(
            opened,
            out,
            request,
            planes_of=None if frames is None else lambda variant: head_planes(opened, variant, frames),
            replace=force,
            progress=bars,
        )
    names = {spec.id: sorted(spec.engines) for spec in manifest.variants}
    if as_json:
        print_json({"bundle": str(out), "bundle_id": manifest.bundle_id, "engines": names})
        return
    for variant, targets in names.items():
        typer.echo(f"{variant}:")
        typer.echo(_wrapped("  ", targets))
    typer.echo(f"bundle {manifest.bundle_id[:16]}… in {out}; on the GPU's machine: aecnn-deploy bundle verify --deep")


def _verify_deep(bundle: "Bundle", as_json: bool) -> None:
    from aecnn_deploy.cli.verification import echo_legend, echo_row
    from aecnn_deploy.runtimes.samples import FAILED, verify_bundle

    checks = []
    if not as_json:
        echo_legend()
    for check in verify_bundle(bundle):
        checks.append(check)
        if not as_json:
            verified = msgspec.to_builtins(check.verified) if check.verified else None
            echo_row(check.file, check.verdict, verified, check.reason)
    failed = sum(check.verdict == FAILED for check in checks)
    if as_json:
        ok = not failed
        print_json({"bundle_id": bundle.id, "ok": ok, "files": [msgspec.to_builtins(check) for check in checks]})
    else:
        done = sum(check.verified is not None for check in checks)
        typer.echo(f"{done} files ok, {failed} failed, {len(checks) - done - failed} not run here")
    raise typer.Exit(1 if failed else 0)


def _document(bundle: "Bundle") -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle_id": manifest.bundle_id,
        "format": manifest.format,
        "backbone": manifest.backbone,
        "labels": list(manifest.labels),
        "variants": [
            {
                "id": variant.id,
                "split": variant.split,
                "split_name": variant.split_name,
                "ratio": variant.ratio,
                "bits": variant.bits,
                "planes": list(variant.planes),
                "head": variant.head,
                "heads": variant.head_files,
                "head_macs": variant.head_macs,
                "full_macs": variant.full_macs,
                "tails": variant.tails | {target: engine.file for target, engine in variant.engines.items()},
                "accuracy": variant.accuracy,
                "agreement": variant.agreement,
                "coding": msgspec.to_builtins(variant.coding),
            }
            for variant in manifest.variants
        ],
        "measurements": manifest.measurements,
        "tools": manifest.tools,
    }


def _wrapped(title: str, names: list[str]) -> str:
    """The names after ``title``, in lines of 80 columns at most."""
    return fill(", ".join(names), 80, initial_indent=title, subsequent_indent=" " * len(title), break_on_hyphens=False)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
