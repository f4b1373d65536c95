"""``aecnn-deploy train`` and ``aecnn-deploy evaluate``."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.console import print_json, say
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.errors import RunFormatError, SettingsError, SourceError
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from aecnn_deploy.training.pipeline import Trained
    from aecnn_deploy.training.supervised import Supervised

_DATA_HELP = "A folder of photographs, or the name caltech101, which is looked for in --data-dir and downloaded."
_DATA_DIR_HELP = "Where the data set that --data names is, or is downloaded to.  [default: $AECNN_DATA, or a cache]"
_SPLIT_RECORD = "data.json"
_DRAWN = 300  # photographs, where no split names them


class Part(StrEnum):
    """Which photographs ``evaluate`` takes."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(
        "train", epilog="Example: aecnn-deploy train configs/label-free-quick.toml --data photographs --out run"
    )(train)
    app.command("evaluate", epilog="Example: aecnn-deploy evaluate run --data photographs --limit 300")(evaluate)


def train(
    config: Annotated[Path, typer.Argument(help="Settings, a TOML file; see configs/.")],
    data: Annotated[str, typer.Option(help=_DATA_HELP + " With labels, its sub-folders are the categories.")],
    out: Annotated[Path, typer.Option(help="The training run to write, a folder.")],
    data_dir: Annotated[Path | None, typer.Option(help=_DATA_DIR_HELP, show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that stands at --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a run that stands at --out.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Run so many tasks at once, in processes that share the cores.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run the tasks on a Ray cluster: auto, local or HOST:PORT.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no decoded photographs on disk.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train what the settings name: without labels, or Algorithm 1 with its baselines.

    method = "label-free" trains pruned heads and feature recovery for every ratio. method = "algorithm1" trains on
    categories: a sweep of tasks that may be stopped at any moment and goes on with --resume. Exit status 1 when one of
    them failed.
    """
    for module in ("torch", "torchvision", "timm", "safetensors"):
        require(module, why="training", extra="train")
    from aecnn_deploy.training.dataset import default_cache
    from aecnn_deploy.training.freed_memory import keep_freed_memory
    from aecnn_deploy.training.pipeline import train_label_free
    from aecnn_deploy.training.settings import LabelFreeSettings, read_settings
    from aecnn_deploy.training.supervised import train_supervised

    if resume and force:
        raise SettingsError("--resume goes on with a run, --force replaces it; give one of the two")
    if ray is not None and jobs > 1:
        raise SettingsError(f"--jobs {jobs} is for this machine, --ray for a cluster; give one of the two")
    settings = read_settings(config)
    keep_freed_memory()
    if isinstance(settings, LabelFreeSettings):
        given = {"--resume": resume, "--jobs": jobs > 1, "--ray": ray is not None}
        if wrong := [name for name, is_given in given.items() if is_given]:
            raise SettingsError(
                f'{" and ".join(wrong)} go with method = "algorithm1", {config} has method = "label-free"; leave them '
                "out, or take another config"
            )
        with StageBars() as bars:
            trained = train_label_free(settings, _root(data, data_dir, bars), out, replace=force, progress=bars)
        _show_label_free(trained, out, as_json)
        return
    if ray is not None:
        require("ray", why="a sweep on a Ray cluster", extra="scale")
    go_on = ["aecnn-deploy", "train", str(config), "--data", data, "--out", str(out), "--resume"]
    go_on += ["--data-dir", str(data_dir)] if data_dir is not None else []
    go_on += ["--no-cache"] if no_cache else []
    go_on += ["--jobs", str(jobs)] if jobs > 1 else []
    go_on += ["--ray", ray] if ray is not None else []
    try:
        with StageBars(lines=True) as bars:
            root = _root(data, data_dir, bars)
            cache = None if no_cache else default_cache()
            outcome = train_supervised(
                settings,
                root,
                out,
                resume=resume,
                replace=force,
                jobs=jobs,
                ray_address=ray,
                cache=cache,
                progress=bars,
            )
    except KeyboardInterrupt:
        say(f"interrupted; go on with: {shlex.join(go_on)}")
        raise typer.Exit(130) from None
    _show_supervised(outcome, out, as_json, shlex.join(go_on))
    if outcome.failed:
        raise typer.Exit(1)


def _root(data: str, data_dir: Path | None, bars: StageBars) -> Path:
    """The folder that --data means. Raises SourceError, SettingsError."""
    from aecnn_deploy.training.dataset import CALTECH101, resolve_data

    if data != CALTECH101 and data_dir is not None:
        raise SettingsError(f"--data-dir goes with --data {CALTECH101}, --data is the folder {data}; leave it out")
    return resolve_data(data, data_dir, progress=bars)


def _show_label_free(trained: "Trained", out: Path, as_json: bool) -> None:
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


def _show_supervised(outcome: "Supervised", out: Path, as_json: bool, go_on: str) -> None:
    import msgspec

    for line in outcome.skipped:
        say(f"skipped: {line}")
    if outcome.skipped:
        say(f"skipped images: {len(outcome.skipped)}")
    for task, error in outcome.failed.items():
        say(f"failed: {task}: {error}")
    if as_json:
        rows = msgspec.to_builtins(outcome.rows)
        print_json({"run": str(out), "rows": rows, "failed": outcome.failed, "skipped": list(outcome.skipped)})
    else:
        _print_rows(outcome)
    if outcome.failed:
        count = "1 task" if len(outcome.failed) == 1 else f"{len(outcome.failed)} tasks"
        say(f"{count} failed, what is done is kept; try again with: {go_on}")
    elif not as_json:
        typer.echo(f"run written to {out}; export it with: aecnn-deploy export {out} --out BUNDLE")
        typer.echo(f"tables and figures: aecnn-deploy report {out} --out REPORT")


def _print_rows(outcome: "Supervised") -> None:
    width = max((len(row.task) for row in outcome.rows), default=4)
    typer.echo(f"{'task':<{width}} {'arm':<13} {'accuracy':>8} {'wire bytes':>10} {'head':>6} {'seconds':>8}")
    for row in outcome.rows:
        sent = "-" if row.wire_bytes is None else f"{row.wire_bytes:.0f}"
        typer.echo(
            f"{row.task:<{width}} {row.arm:<13} {row.accuracy:>8.1%} {sent:>10} {row.head_macs / row.full_macs:>6.1%} "
            f"{row.train_s:>8.1f}"
        )
    if outcome.rows:
        typer.echo(
            f"accuracy: top-1 on {outcome.rows[0].test_images} test photographs; wire bytes: a message with its frame; "
            "head: its share of the unsplit model's multiply-adds"
        )


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder that 'aecnn-deploy train' wrote.")],
    data: Annotated[str, typer.Option(help=_DATA_HELP)],
    data_dir: Annotated[Path | None, typer.Option(help=_DATA_DIR_HELP, show_default=False)] = None,
    split: Annotated[
        Part | None,
        typer.Option(
            help="The photographs of the run's own split, or all.  [default: test where the run has one, else all]",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Use at most so many photographs, drawn with --seed.  [default: the whole split; of all, {_DRAWN}]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the photographs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure each variant of a run in torch: agreement with the unsplit model, payload bytes, and accuracy.

    Accuracy is top-1 against the name of the folder that a photograph is in, for runs that were trained on categories.
    """
    for module in ("torch", "torchvision", "timm", "safetensors"):
        require(module, why="evaluating", extra="train")
    from aecnn_deploy.models.run import load_run
    from aecnn_deploy.training.photographs import choose_files, load_photographs
    from aecnn_deploy.training.pipeline import evaluate_run

    labelled = (run / _SPLIT_RECORD).is_file()
    part = split or (Part.TEST if labelled else Part.ALL)
    if part is not Part.ALL and not labelled:
        raise SettingsError(
            f"--split {part.value} goes with a run that was trained on categories, {run} has no {_SPLIT_RECORD}; leave "
            "it out"
        )
    loaded = load_run(run)
    with StageBars() as bars:
        root = _root(data, data_dir, bars)
        if part is Part.ALL:
            files = choose_files(root, limit or _DRAWN, seed)
        else:
            files = _files_of(run / _SPLIT_RECORD, part, root, limit, seed)
        bars.stage("read photographs", len(files))
        photographs = load_photographs(files, loaded.input, on_step=bars.step)
        halves = {item.id: (item.head(), item.tail(), item.bits) for item in loaded.variants}
        rows = evaluate_run(halves, loaded.full(), photographs.frames, bars)
    labels = _labels_of(photographs.sources, root, loaded.labels)
    known = int((labels >= 0).sum()) if labelled else 0
    if known:
        rows = {name: row | {"accuracy": _accuracy(row["top1"], labels)} for name, row in rows.items()}
    for line in photographs.skipped:
        say(f"skipped: {line}")
    if as_json:
        document = {"run": str(run), "split": part.value, "labelled": known, "sources": list(photographs.sources)}
        print_json(document | {"rows": [{"variant": k, **v} for k, v in rows.items()]})
        return
    width = max(30, *(len(name) for name in rows)) if rows else 30
    typer.echo(f"{'variant':<{width}} {'agreement':>10} {'accuracy':>10} {'payload bytes':>14}")
    for name, row in rows.items():
        typer.echo(
            f"{name:<{width}} {row['agreement']:>10.1%} {_percent(row.get('accuracy')):>10} "
            f"{row['payload_bytes_mean']:>14.0f}"
        )
    typer.echo(f"on {len(photographs.frames)} photographs ({part.value}); agreement: top-1, with the unsplit model")
    if known:
        typer.echo(f"accuracy: top-1, of the {known} photographs whose folder is one of the run's categories")
        if part is Part.TEST and "unsplit_accuracy" in loaded.measurements:
            typer.echo(f"the unsplit model had {loaded.measurements['unsplit_accuracy']:.1%} on the whole test split")


def _files_of(record: Path, part: Part, root: Path, limit: int | None, seed: int) -> list[Path]:
    """The photographs under ``root`` that ``record`` names for ``part``, ``limit`` at most, drawn with ``seed``.

    Raises RunFormatError: ``record`` is damaged. SourceError: one of the photographs is not there.
    """
    import msgspec
    import numpy as np

    from aecnn_deploy.training.photographs import choose_files

    try:
        names = msgspec.convert(msgspec.json.decode(record.read_bytes())[part.value], tuple[str, ...])
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as exc:
        raise RunFormatError(f"{record} is not the record of a split: {exc}") from None
    # Named as the record names them: a file name need not be UTF-8.
    found = {_below(file, root): file for file in choose_files(root, 2**31, 0)}
    missing = [name for name in names if name not in found]
    if missing:
        raise SourceError(
            f"{len(missing)} of the {len(names)} {part.value} photographs of {record} are not under {root}, the first: "
            f"{missing[0]}; give the data that the run was trained on, or --split {Part.ALL.value} for what is there"
        )
    if limit is not None and limit < len(names):
        chosen = np.random.default_rng(seed).permutation(len(names))[:limit]
        names = tuple(names[index] for index in sorted(chosen))
    return [found[name] for name in names]


def _below(file: Path, root: Path) -> str:
    return bytes(file.relative_to(root)).decode(errors="backslashreplace")


def _labels_of(sources: "Sequence[str]", root: Path, categories: "Sequence[str]") -> "npt.NDArray[np.int64]":
    """The category that each photograph's folder under ``root`` names: int64 (N,), -1 where it names none."""
    import numpy as np

    number = {name: index for index, name in enumerate(categories)}
    folders = [_below(Path(source), root).split("/") for source in sources]
    return np.array([number.get(parts[0], -1) if len(parts) > 1 else -1 for parts in folders], np.int64)


def _accuracy(top1: "Sequence[int]", labels: "npt.NDArray[np.int64]") -> float:
    """Share of the photographs with a label on which ``top1`` is that label."""
    return float((labels == top1)[labels >= 0].mean())
