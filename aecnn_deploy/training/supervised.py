"""A run with labels: its folder, its tasks, and the run that an export reads.

settings.json   the settings as they were read       data.json   the split, file by file
setup.json      where the photographs are            tasks/, results/, rankings/   see checkpoints.py, models/results.py
run.json, backbone.safetensors, variants/, frames.npy   written when every task is done: what an export reads
"""

import functools
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from aecnn_deploy.errors import TrainingError
from aecnn_deploy.models.backbones import backbone_spec, build_backbone
from aecnn_deploy.models.results import ResultRow, read_results, remove_partial, write_json
from aecnn_deploy.models.run import RUN_FILE, SETTINGS_FILE, check_run_target, is_folder
from aecnn_deploy.training import algorithm1, fast
from aecnn_deploy.training.assemble import assemble_run
from aecnn_deploy.training.checkpoints import sole_writer
from aecnn_deploy.training.codec_arms import measure_feature_jpeg, measure_local_int8, train_codec
from aecnn_deploy.training.dataset import (
    DataSplit,
    LabelledPhotographs,
    limit_training,
    load_labelled,
    read_split,
    split_record,
    stratified_split,
)
from aecnn_deploy.training.designs import check_designs
from aecnn_deploy.training.progress import Progress
from aecnn_deploy.training.settings import Algorithm1Settings, seeds_of
from aecnn_deploy.training.sweep import SweepOutcome, SweepTask, run_sweep
from aecnn_deploy.training.sweep_ray import connected
from aecnn_deploy.training.tasks import Task, tasks_of
from aecnn_deploy.training.workshop import Workshop, library_backbone, no_report

_T = TypeVar("_T")

KINDS: Mapping[str, Callable[[Workshop, Task], None]] = MappingProxyType(
    {
        "unsplit": algorithm1.train_unsplit,
        "rank": algorithm1.rank_channels,
        "pruned": algorithm1.train_pruned,
        "aecnn": algorithm1.train_recovery,
        "bottlenetpp": algorithm1.train_bottlenet,
        "late-split": algorithm1.measure_late,
        "fast": fast.train_fast,
        "strided": fast.train_strided,
        "codec": train_codec,
        "jpeg-features": measure_feature_jpeg,
        "local-int8": measure_local_int8,
    }
)
_SETTINGS, _DATA, _SETUP = SETTINGS_FILE, "data.json", "setup.json"
# A run may grow by these; all else decides what its tasks are.
_GROWING = ("sweep", "strided", "codecs", "late_splits", "late_bits", "local_int8")


class Setup(msgspec.Struct, frozen=True):
    """setup.json: where the photographs are, and where their decoded frames are kept."""

    root: str
    cache: str | None


@dataclass(frozen=True, slots=True)
class Supervised:
    """What a run ended with; ``failed`` by task."""

    rows: tuple[ResultRow, ...]
    failed: dict[str, str]
    skipped: tuple[str, ...]


def train_supervised(
    settings: Algorithm1Settings,
    root: Path,
    out: Path,
    *,
    resume: bool,
    replace: bool,
    jobs: int = 1,
    ray_address: str | None = None,
    cache: Path | None = None,
    progress: Progress,
) -> Supervised:
    """Train all that ``settings`` name on the categories under ``root``, in the folder ``out``.

    ``resume``: go on with the run that stands there; it may have grown. Raises SettingsError, SourceError, ModelError,
    TrainingError, also where another process trains in ``out``; what is done stays on disk.
    """
    tasks = tasks_of(settings, build_backbone(settings.backbone))
    check_designs(settings, tasks)
    library = library_backbone(settings)
    with ExitStack() as held:
        held.enter_context(connected(ray_address))
        stands = is_folder(out)
        if stands:  # before anything in it is read or removed
            held.enter_context(sole_writer(out))
        shop = _begin(settings, root, out, resume=resume, replace=replace, cache=cache, progress=progress)
        shop.library = library
        if not stands:
            held.enter_context(sole_writer(out))
        if jobs == 1 and ray_address is None:
            _open.cache_clear()
            _prepared[str(out.resolve())] = shop
        outcome: SweepOutcome = run_sweep(
            [SweepTask(task.id, task.needs) for task in tasks],
            functools.partial(execute, str(out.resolve())),
            is_done=lambda task: shop.folder(task).is_done,
            jobs=jobs,
            ray_address=ray_address,
            shared=out.resolve(),
            progress=progress,
        )
        rows = read_results(out)
        if not outcome.failed:
            with_row = {row.task for row in rows}
            for task in tasks:
                if task.kind == "unsplit" and task.id not in with_row:
                    algorithm1.measure_unsplit(shop, task)
                    rows = read_results(out)
            assemble_run(shop, tasks, rows)
    return Supervised(rows, outcome.failed, shop.photographs.skipped)


def _begin(
    settings: Algorithm1Settings,
    root: Path,
    out: Path,
    *,
    resume: bool,
    replace: bool,
    cache: Path | None,
    progress: Progress,
) -> Workshop:
    """The run's folder, ready for its tasks."""
    spec = settings.input_spec(backbone_spec(settings.backbone).input)
    _check_outside(out, root)
    begun = (out / _SETTINGS).is_file()
    if begun and not resume and not replace:
        raise TrainingError(f"{out} holds a run; go on with it: --resume, replace it: --force, or choose another --out")
    # Also without settings: an unsplit network and a split may be brought from another run.
    continues = resume and (begun or (out / _DATA).is_file())
    if continues and begun:
        _check_same(out, settings)
        _check_split_known(out)
    elif not continues:
        check_run_target(out, replace=replace)
    photographs = load_labelled(root, spec, cache=cache, progress=progress)
    split = _split(out if continues else None, settings, photographs)
    if continues:
        remove_partial(out)
    elif out.exists():  # nothing of an old run goes before the new one can begin
        _empty(out)
    write_json(out / _SETTINGS, settings)
    write_json(out / _SETUP, Setup(str(root.resolve()), str(cache.resolve()) if cache else None))
    if not (out / _DATA).is_file():
        write_json(out / _DATA, split_record(photographs, split))
    (out / RUN_FILE).unlink(missing_ok=True)
    return Workshop(out, settings, photographs, split, progress.note)


def _check_outside(out: Path, root: Path) -> None:
    """Raises TrainingError: the run would be a category of its own data."""
    with suppress(OSError, ValueError, RuntimeError):  # a place that is none is refused by name later
        below = out.resolve().relative_to(root.resolve())
        if not any(part.startswith(".") for part in below.parts):
            raise TrainingError(
                f"{out} lies in {root}, whose sub-folders are the categories; choose an --out outside of the data"
            )


def _check_split_known(out: Path) -> None:
    """Raises TrainingError: something is trained, but the record of the photographs that it was trained on is gone."""
    if not (out / _DATA).is_file() and any((out / "tasks").glob("*/*.json")):
        raise TrainingError(
            f"{out / _DATA} is missing, which says what the tasks were trained on; put it back, or begin the run anew "
            "with --force"
        )


def _empty(out: Path) -> None:
    """Remove what is in ``out``, the settings last: by them a folder is known as a run. Raises TrainingError.

    The folder itself stays: it is locked, and may be a link or a mounted volume.
    """
    try:
        for path in sorted(out.iterdir(), key=lambda path: path.name == _SETTINGS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as exc:
        raise TrainingError(f"cannot empty {out}: {exc.strerror} ({exc.filename}); choose another --out") from None


def _split(run: Path | None, settings: Algorithm1Settings, photographs: LabelledPhotographs) -> DataSplit:
    """The split that ``run`` recorded, or a new one."""
    if run is not None and (run / _DATA).is_file():
        return read_split(run / _DATA, photographs)
    shares = settings.data
    split = stratified_split(
        photographs.labels,
        validation=shares.validation,
        test=shares.test,
        seed=shares.seed,
        categories=photographs.categories,
    )
    return limit_training(split, photographs.labels, shares.train_limit, shares.seed)


_prepared: dict[str, Workshop] = {}


def execute(run: str, task_id: str) -> None:
    """Do one task of the run in this process. Raises the parts' own errors."""
    shop = _prepared.get(run) or _open(run)
    by_id = {task.id: task for task in tasks_of(shop.settings, build_backbone(shop.settings.backbone))}
    task = by_id[task_id]
    KINDS[task.kind](shop, task)


@functools.lru_cache(maxsize=1)
def _open(run: str) -> Workshop:
    """The workshop of a run, from its files: what a process of its own begins with."""
    folder = Path(run)
    settings = read_run_settings(folder)
    setup = _read(folder / _SETUP, Setup)
    cache = Path(setup.cache) if setup.cache else None
    spec = settings.input_spec(backbone_spec(settings.backbone).input)
    photographs = load_labelled(Path(setup.root), spec, cache=cache)
    return Workshop(folder, settings, photographs, read_split(folder / _DATA, photographs), no_report)


def read_run_settings(run: Path) -> Algorithm1Settings:
    """The settings that a run was begun with. Raises TrainingError: none or damaged."""
    return _read(run / _SETTINGS, Algorithm1Settings)


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as exc:
        raise TrainingError(f"{path} cannot be read: {exc}; begin the run anew with --force") from None


def _check_same(out: Path, settings: Algorithm1Settings) -> None:
    """Raises TrainingError: the run was begun with settings that these do not continue."""
    old = read_run_settings(out)
    for field in msgspec.structs.fields(Algorithm1Settings):
        before, now = getattr(old, field.name), getattr(settings, field.name)
        if field.name not in _GROWING and before != now:
            raise TrainingError(
                f"{out} was begun with {field.name} = {_short(before)}, the settings say {_short(now)}; put it back, "
                "or begin another run with another --out"
            )
    if settings.shared_unsplit and seeds_of(old)[0] != seeds_of(settings)[0]:
        raise TrainingError(
            f"{out} was begun with seed {seeds_of(old)[0]}'s unsplit network for all seeds; do not add a smaller seed"
        )
    named = {item.name: item for item in settings.strided}
    for item in old.strided:
        now = named.get(item.name, item)
        if msgspec.structs.replace(now, seeds=item.seeds) != item:  # it may have got more seeds
            raise TrainingError(f"{out} has another strided head {item.name!r}; give the changed one another name")


def _short(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:100]
