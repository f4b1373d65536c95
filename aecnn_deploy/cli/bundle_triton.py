"""``aecnn-deploy bundle triton``: a finished bundle becomes a Triton model repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import print_json, say

if TYPE_CHECKING:
    from aecnn_deploy.exporters.triton_repository import Repository

EXAMPLE = "Example: aecnn-deploy bundle triton zoo:caltech101-lite0 models"


def register(group: typer.Typer) -> None:
    """Add the command to the group ``bundle``."""
    group.command("triton", epilog=EXAMPLE)(triton)


def triton(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(help="The model repository to write: a new or an empty folder.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="Write this variant's tail only; may be repeated. Default: all.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="What runs the tails: auto, onnxruntime or tensorrt. auto: engines where there are.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Tails in fp16, int8 or fp32. Default: ONNX fp32, engines fp16 before int8.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most images that are run together. Default: 16, or an engine's largest batch.")
    ] = None,
    preferred_batch: Annotated[
        list[int] | None, typer.Option(help="A batch that is sent at once; may be repeated. Default: what waits.")
    ] = None,
    queue_delay_us: Annotated[int, typer.Option(help="Longest wait for others to run with, in microseconds.")] = 0,
    queue_timeout_us: Annotated[
        int, typer.Option(help="Refuse a request that waited this many microseconds; 0: none.")
    ] = 0,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait for one model; 0: any number.")] = 256,
    device: Annotated[
        str | None, typer.Option(help="cpu or gpu, for ONNX models too. Default: engines gpu, ONNX models cpu.")
    ] = None,
    gpu: Annotated[
        list[int] | None, typer.Option(help="A GPU's id, with --device gpu; may be repeated. Default: all.")
    ] = None,
    instances: Annotated[int, typer.Option(help="Copies of each model, on each of its GPUs.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of one ONNX Runtime model; 0 takes every core.")] = 0,
    warm_up: Annotated[
        bool, typer.Option("--warm-up/--no-warm-up", help="Run zeros before a model is said to be ready.")
    ] = True,
    prefix: Annotated[
        str, typer.Option(help="What the models' names begin with; {bundle}: the bundle id's first 12 digits.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Write beside what is there; replace models that came from a bundle.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a bundle's tails and its unsplit model as a model repository for NVIDIA's Triton Inference Server.

    Every ONNX file is opened and compared with the manifest first. Engines are served where they are of full TensorRT;
    Triton loads none of TensorRT-RTX.
    """
    from aecnn_deploy.exporters.triton_repository import write_repository
    from aecnn_deploy.exporters.triton_settings import TritonSettings

    settings = TritonSettings(
        backend=backend,
        precision=precision,
        max_batch=max_batch,
        preferred_batches=tuple(preferred_batch or ()),
        queue_delay_us=queue_delay_us,
        queue_timeout_us=queue_timeout_us,
        max_queue=max_queue,
        device=device,
        gpus=tuple(gpu or ()),
        instances=instances,
        threads=threads,
        warm_up=warm_up,
        prefix=prefix,
    )
    written = write_repository(open_named(bundle), out, settings, variants=variant or None, replace=force)
    if as_json:
        print_json(repository_document(written))
    else:
        echo_repository(written)


def repository_document(written: "Repository") -> dict[str, Any]:
    """For ``--json``."""
    return {
        "repository": str(written.path),
        "bundle_id": written.bundle_id,
        "models": {
            model.served_name: {
                "backend": model.backend,
                "precision": model.precision,
                "files": sorted(model.files),
                "max_batch_size": model.max_batch,
                "input": str(model.signature.input),
                "output": str(model.signature.output),
                "replaced": model.served_name in written.replaced,
                "note": model.note,
            }
            for model in written.models
        },
        "left": list(written.left),
    }


def echo_repository(written: "Repository") -> None:
    """For a person."""
    for model in written.models:
        typer.echo(f"{model.served_name}: {model.backend} {model.precision}, batches of up to {model.max_batch}")
        typer.echo(f"  {model.signature.input} -> {model.signature.output}")
        if model.note:
            say(f"{model.served_name}: {model.note}")
    if written.left:
        say(f"left as they were, of this or another bundle: {', '.join(written.left)}")
    typer.echo(f"bundle {written.bundle_id[:16]}…, {len(written.models)} models in {written.path}")
    typer.echo(f"serve it with: tritonserver --model-repository={written.path.absolute()}")
