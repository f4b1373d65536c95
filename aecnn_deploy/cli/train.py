"""``aecnn-deploy train`` and ``aecnn-deploy evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.console import print_json, say
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from aecnn_deploy.training.pipeline import Trained


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(
        "train", epilog="Example: aecnn-deploy train configs/label-free-quick.toml --data photographs --out run"
    )(train)
    app.command("evaluate", epilog="Example: aecnn-deploy evaluate run --data photographs --limit 300")(evaluate)


def train(
    config: Annotated[Path, typer.Argument(help="Settings, a TOML file; see configs/.")],
    data: Annotated[Path, typer.Option(help="A folder of photographs, searched through; no labels are needed.")],
    out: Annotated[Path, typer.Option(help="The training run to write, a folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a run that stands at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train pruned heads and feature recovery for every ratio of the settings."""
    for module in ("torch", "torchvision", "timm", "safetensors"):
        require(module, why="training", extra="train")
    from aecnn_deploy.training.pipeline import train_label_free
    from aecnn_deploy.training.settings import read_settings

    settings = read_settings(config)
    with StageBars() as bars:
        trained = train_label_free(settings, data, out, replace=force, progress=bars)
    for line in trained.skipped:
        say(f"skipped: {line}")
    if as_json:
        print_json(_document(trained, out))
        return
    measured = trained.record.measurements
    typer.echo(f"{'variant':<30} {'planes':>12} {'head MMAC':>10} {'agreement':>10} {'seconds':>8}")
    for item in trained.record.variants:
        planes = "×".join(map(str, item.planes))
        typer.echo(
            f"{item.id:<30} {planes:>12} {item.head_macs / 1e6:>10.1f} {_percent(item.agreement):>10} "
            f"{measured['train_s'][item.id]:>8.1f}"
        )
    held_out = measured["photographs"]["held_out"]
    typer.echo(f"agreement: top-1, with the unsplit model, on {held_out} held-out photographs")
    typer.echo(f"run written to {out}; export it with: aecnn-deploy export {out} --out BUNDLE")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _document(trained: "Trained", out: Path) -> dict[str, Any]:
    return {
        "run": str(out),
        "backbone": trained.record.backbone,
        "variants": [
            {
                "id": item.id,
                "split": item.split,
                "ratio": item.ratio,
                "bits": item.bits,
                "planes": list(item.planes),
                "head_macs": item.head_macs,
                "full_macs": item.full_macs,
                "agreement": item.agreement,
            }
            for item in trained.record.variants
        ],
        "measurements": trained.record.measurements,
        "skipped": list(trained.skipped),
    }


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder that 'aecnn-deploy train' wrote.")],
    data: Annotated[Path, typer.Option(help="A folder of photographs, searched through.")],
    limit: Annotated[int, typer.Option(min=1, help="Use at most so many photographs, drawn with --seed.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Draws the photographs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure each variant of a run in torch: agreement with the unsplit model, and payload bytes."""
    for module in ("torch", "torchvision", "timm", "safetensors"):
        require(module, why="evaluating", extra="train")
    from aecnn_deploy.models.run import load_run
    from aecnn_deploy.training.photographs import choose_files, load_photographs
    from aecnn_deploy.training.pipeline import evaluate_run

    loaded = load_run(run)
    files = choose_files(data, limit, seed)
    with StageBars() as bars:
        bars.stage("read photographs", len(files))
        photographs = load_photographs(files, loaded.input, on_step=bars.step)
        halves = {item.id: (item.head(), item.tail(), item.bits) for item in loaded.variants}
        rows = evaluate_run(halves, loaded.full(), photographs.frames, bars)
    for line in photographs.skipped:
        say(f"skipped: {line}")
    if as_json:
        sources = list(photographs.sources)
        print_json({"run": str(run), "sources": sources, "rows": [{"variant": k, **v} for k, v in rows.items()]})
        return
    typer.echo(f"{'variant':<30} {'agreement':>10} {'payload bytes':>14}")
    for name, row in rows.items():
        typer.echo(f"{name:<30} {row['agreement']:>10.1%} {row['payload_bytes_mean']:>14.0f}")
    typer.echo(f"on {len(photographs.frames)} photographs; agreement: top-1, with the unsplit model")
