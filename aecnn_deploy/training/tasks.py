"""The tasks of a run: which there are for its settings, and what each needs before it."""

from collections.abc import Iterator
from dataclasses import dataclass

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.split import reused_stages
from aecnn_deploy.training.frame_codecs import GRID
from aecnn_deploy.training.settings import Algorithm1Settings, SweepSettings, seeds_of

RANKED_BY = {"random": "random", "l1": "l1", "se": "se", "cbam": "cbam"}


@dataclass(frozen=True, slots=True)
class Task:
    """One task. ``kind`` names the function that does it; what does not concern it is 0 or empty."""

    kind: str
    seed: int
    split: int = 0
    ratio: int = 0
    bits: int = 0
    method: str = ""  # of the ranking, or the codec
    name: str = ""  # of a strided head
    side: int = 0
    base_bits: int = 0  # of the CA_Pruned network that recovery is inserted into
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The task's name in the run's folders, e.g. ``aecnn-l6-v4-u8-s0``."""
        parts = [self.kind, self.method, self.name]
        for letter, value in (("l", self.split), ("v", self.ratio), ("u", self.bits)):
            parts.append(f"{letter}{value}" if value else "")
        parts += [str(self.side or ""), f"s{self.seed}"]
        return "-".join(part for part in parts if part)


def tasks_of(settings: Algorithm1Settings, backbone: Backbone) -> tuple[Task, ...]:
    """All tasks, each after those that it needs, none twice.

    Raises ModelError: a split point that the backbone lacks, or a ratio that leaves no channel. SettingsError: no task,
    or more frozen stages than there are.
    """
    if not (settings.sweep or settings.strided or settings.codecs or settings.late_splits or settings.local_int8):
        raise SettingsError("the settings name nothing to train: add a [[sweep]], [[strided]] or [[codecs]] table")
    stages = len(backbone.split_points)
    if settings.freeze > stages:
        raise SettingsError(f"freeze {settings.freeze} is more than the {stages} stages of {backbone.name}; lower it")
    tasks: dict[str, Task] = {}
    for task in _all(settings, backbone):
        tasks.setdefault(task.id, task)
    return tuple(tasks.values())


def _all(settings: Algorithm1Settings, backbone: Backbone) -> Iterator[Task]:
    seeds = seeds_of(settings)
    first = seeds[0]
    for seed in (first,) if settings.shared_unsplit else seeds:
        yield Task("unsplit", seed)
    if settings.local_int8:
        yield Task("local-int8", first, needs=(f"unsplit-s{first}",))
    for split in settings.late_splits:
        backbone.split_point(split)
        for bits in settings.late_bits:
            yield Task("late-split", first, split=split, bits=bits, needs=(f"unsplit-s{first}",))
    for item in settings.strided:
        backbone.split_point(item.split)
        reused_stages(backbone, item.reuse, item.drop)
        if item.reuse > item.split:
            raise SettingsError(
                f"the strided head {item.name!r} reuses {item.reuse} stages, its tail begins after stage {item.split}; "
                f"set reuse to {item.split} at most"
            )
        for seed in item.seeds:
            yield Task("strided", seed, name=item.name, needs=(_unsplit(settings, seed),))
    for group in settings.codecs:
        for seed in group.seeds:
            for codec in group.codecs:
                for side in group.sides:
                    known = sorted({known for known, _ in GRID[codec]})
                    if side not in known:
                        raise SettingsError(f"no qualities are known for {codec} at {side} pixels; sides are {known}")
                    yield Task("codec", seed, method=codec, side=side, needs=(_unsplit(settings, seed),))
    for sweep in settings.sweep:
        for seed in sweep.seeds:
            for split in sweep.splits:
                for ratio in sweep.ratios:
                    backbone.split_point(split).kept_channels(ratio)  # refuses what leaves no channel
                    for bits in sweep.bits:
                        yield from _combination(sweep, split, ratio, bits, seed, _unsplit(settings, seed))


def _unsplit(settings: Algorithm1Settings, seed: int) -> str:
    return f"unsplit-s{seeds_of(settings)[0] if settings.shared_unsplit else seed}"


def _combination(sweep: SweepSettings, split: int, ratio: int, bits: int, seed: int, unsplit: str) -> Iterator[Task]:
    for arm in sweep.arms:
        if arm == "bottlenetpp":
            yield Task("bottlenetpp", seed, split, ratio, bits, needs=(unsplit,))
        elif arm == "aecnn-fast":
            yield Task("fast", seed, split, ratio, bits, needs=(unsplit,))
        else:
            # CA_Pruned is fine-tuned once for all depths of planes, at the greatest.
            most = max(sweep.bits)
            rank = Task("rank", seed, split, method=RANKED_BY.get(arm, "ca"), needs=(unsplit,))
            pruned = Task("pruned", seed, split, ratio, most, method=rank.method, needs=(rank.id,))
            yield from (rank, pruned)
            if arm in ("aecnn", "jpeg-features"):
                recovered = Task("aecnn", seed, split, ratio, bits, base_bits=most, needs=(pruned.id,))
                yield recovered
                if arm == "jpeg-features":
                    yield Task("jpeg-features", seed, split, ratio, bits, needs=(recovered.id,))
