"""``aecnn-deploy doctor``: what this machine can do, and what is missing for the rest."""

import importlib.metadata
import os
import platform
import textwrap
from typing import Annotated, Any

import typer

from aecnn_deploy import __version__
from aecnn_deploy.cli.console import print_json
from aecnn_deploy.runtimes.tensorrt_probe import PRODUCTS, usable

# extra -> (what it is for, the distributions that make it)
_EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "device": ("run-device", ("onnxruntime", "pyjpegls", "websockets")),
    "video": ("run-device: video files, cameras, streams", ("av",)),
    "edge": ("serve-edge", ("onnxruntime", "prometheus-client", "pyjpegls", "starlette", "uvicorn", "websockets")),
    "train": ("train, evaluate, export", ("onnx", "onnxscript", "safetensors", "timm", "torch", "torchvision")),
    "demo": ("demo", ("scikit-image", "scikit-learn")),
    "tensorrt-rtx": ("export --engine tensorrt-rtx", ("tensorrt-rtx",)),
    "tensorrt": ("export --engine tensorrt", ("tensorrt",)),
    "cuda": ("serve-edge on a GPU", ("pycuda",)),
}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor", epilog="Example: aecnn-deploy doctor")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Say what is installed, what this machine can do, and how to get the rest."""
    document = examine()
    if as_json:
        print_json(document)
        return
    typer.echo(
        f"aecnn-deploy {__version__}, Python {document['python']}, {document['machine']}, {document['cpus']} CPUs"
    )
    for name, extra in document["extras"].items():
        if extra["missing"]:
            typer.echo(f"  --  {name:<13} {extra['for']}: pip install 'aecnn-deploy[{name}]'")
        else:
            typer.echo(f"  ok  {name:<13} {extra['for']}")
    for name, reason in document["gpu_runners"].items():
        typer.echo(f"  {'--' if reason else 'ok'}  {name} runner")
        if reason:
            typer.echo(textwrap.fill(reason, 78, initial_indent=" " * 6, subsequent_indent=" " * 6))


def examine() -> dict[str, Any]:
    """The document that ``doctor --json`` prints."""
    extras = {}
    for name, (purpose, distributions) in _EXTRAS.items():
        versions = {distribution: _version(distribution) for distribution in distributions}
        missing = [distribution for distribution, version in versions.items() if version is None]
        extras[name] = {"for": purpose, "versions": versions, "missing": missing}
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "extras": extras,
        "gpu_runners": {product: usable(product) for product in PRODUCTS},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
