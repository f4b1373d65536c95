"""What the offloading part of a report reads: JSON documents, told apart by their keys; docs/offloading-report.md.

Keys that are not known here are passed over, so that a document may say more than it has to.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np

from aecnn_deploy.errors import RunFormatError

MAX_BYTES = 64 * 2**20
MAX_POLICIES, MAX_POINTS = 60, 1000
CURVES = "curves.jsonl"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1 + 1e-9)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seeds = Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=MAX_POINTS)]
Value = bool | int | float | Name | tuple[float, ...]


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a document."""


class PolicyRow(_Part, frozen=True):
    """One policy in one scenario: means over seeds. Scores are accuracy-weighted tasks in time, a second and world."""

    policy: Name
    score_mean: Amount
    score_sd: Amount
    accuracy_mean: Share  # of the tasks in time
    success_mean: Share  # tasks in time over tasks arrived
    throughput_mean: Amount  # tasks in time, a second and world
    arrived_mean: Amount  # tasks, a second and world
    accuracy_sd: Amount | None = None
    success_sd: Amount | None = None
    throughput_sd: Amount | None = None
    energy_j_mean: Amount | None = None  # of a task arrived
    decision_ms_p50: Amount | None = None  # of one world
    scores: Annotated[tuple[Amount, ...], msgspec.Meta(max_length=MAX_POINTS)] = ()  # one for each seed


Rows = Annotated[tuple[PolicyRow, ...], msgspec.Meta(min_length=1, max_length=MAX_POLICIES)]


class Bound(_Part, frozen=True):
    """What the policies are held against; ``proven_share``: of its slots whose value is proven the best.

    ``holds``: no policy's score can be higher. ``scores``: one for each seed.
    """

    kind: Name
    score_mean: Amount
    score_sd: Amount | None = None
    holds: bool | None = None
    proven_share: Share | None = None
    slots: Count | None = None
    batch: Count | None = None
    seeds: tuple[int, ...] | Count | None = None
    scores: Annotated[tuple[Amount, ...], msgspec.Meta(max_length=MAX_POINTS)] = ()


class Comparison(_Part, frozen=True):
    """``simulate --json``: policies in one scenario, all in the same worlds."""

    scenario: Name
    seeds: Seeds
    rows: Rows
    bound: Bound | None = None
    slots: Count | None = None  # of an episode
    batch: Count | None = None  # worlds of a seed


class Vary(_Part, frozen=True):
    """The key that a sweep changes, and the values that were asked for."""

    key: Name
    values: Annotated[tuple[Value, ...], msgspec.Meta(max_length=MAX_POINTS)] = ()


class SweepPoint(_Part, frozen=True):
    """The comparison at one value."""

    value: Value
    rows: Rows
    bound: Bound | None = None


class Sweep(_Part, frozen=True):
    """``simulate --vary --json``: the comparison again and again, with one key of the scenario changed."""

    scenario: Name
    seeds: Seeds
    vary: Vary
    points: Annotated[tuple[SweepPoint, ...], msgspec.Meta(min_length=1, max_length=MAX_POINTS)]
    slots: Count | None = None
    batch: Count | None = None


class DrooRow(_Part, frozen=True):
    """One way to decide on the published channels: rates over the published optimum."""

    policy: Name
    critic_evaluations: Amount
    rate_mean: Amount
    rate_sd: Amount | None = None
    rate_p5: Amount | None = None
    exact_share: Share | None = None
    decision_ms_p50: Amount | None = None


class DrooTable(_Part, frozen=True):
    """Computation rates on DROO's channels, at so many evaluations of the critic a decision."""

    rows: Annotated[tuple[DrooRow, ...], msgspec.Meta(min_length=1, max_length=MAX_POLICIES)]


class TransferRow(_Part, frozen=True):
    """A policy in a scenario it was not trained in; ``ratio``: its score over that of one that was."""

    scenario: Name
    policy: Name
    trained_on: Name
    score_mean: Amount
    score_sd: Amount | None = None
    ratio: Amount | None = None


class TransferTable(_Part, frozen=True):
    """Policies in other scenarios than their own."""

    rows: Annotated[tuple[TransferRow, ...], msgspec.Meta(min_length=1, max_length=MAX_POLICIES)]


class CurveLine(_Part, frozen=True):
    """One line of a training's curves; ``slot``: slots trained so far."""

    slot: Count
    loss: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)] | None = None
    train_score: Amount | None = None
    eval_score: Amount | None = None
    eval_success: Share | None = None
    seconds: Amount | None = None
    seed: int | None = None
    label: Name | None = None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One training, by rising slot; runs of one ``label`` differ in the seed."""

    label: str
    seed: int | None
    lines: tuple[CurveLine, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its name, its own words on where it comes from, and its document or its runs."""

    name: str
    document: Comparison | Sweep | DrooTable | TransferTable | tuple[TrainingRun, ...]
    made: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Documents:
    """Every file that was read, and what was passed over within folders."""

    sources: tuple[Source, ...]
    left_out: tuple[str, ...] = ()

    @property
    def comparisons(self) -> list[tuple[str, Comparison]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, Comparison)]

    @property
    def sweeps(self) -> list[tuple[str, Sweep]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, Sweep)]

    @property
    def droo(self) -> list[tuple[str, DrooTable]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, DrooTable)]

    @property
    def transfers(self) -> list[tuple[str, TransferTable]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, TransferTable)]

    @property
    def runs(self) -> list[TrainingRun]:
        return [run for item in self.sources if isinstance(item.document, tuple) for run in item.document]


# kind -> (struct, in words, what writes it)
KINDS = MappingProxyType(
    {
        "comparison": (Comparison, "a comparison of policies", "aecnn-deploy simulate --json"),
        "sweep": (Sweep, "a sweep", "aecnn-deploy simulate --vary --json"),
        "droo": (DrooTable, "a table of DROO rates", "the DROO benchmark"),
        "transfer": (TransferTable, "a transfer table", "the transfer benchmark"),
    }
)
_SEED = re.compile(r"(?:^|[-_ .])(?:seed|s)[-_ .]?(\d{1,9})$")
_MADE = ("machine", "versions", "commit", "command", "settings")  # what a file may say of where it comes from
_EXPECTED = (
    "expected an object with 'scenario', 'seeds' and 'rows' (a comparison) or 'vary' and 'points' (a sweep), or with "
    "'rows' that have 'critic_evaluations' (DROO) or 'trained_on' (transfer)"
)


def read_documents(paths: Sequence[Path]) -> Documents:
    """The documents of files, and of all ``*.json`` and ``curves.jsonl`` within folders; each file counts once.

    Within a folder a JSON file of another kind is passed over and named. Raises RunFormatError: a file that is
    damaged, or given by name and of another kind; nothing is there to be read.
    """
    sources: list[Source] = []
    left_out: list[str] = []
    seen: set[Path] = set()
    for given in paths:
        found = False
        for path in _files(given):
            if path.resolve() in seen:
                found = True
                continue
            source = _read(path, given)
            if source is not None:
                seen.add(path.resolve())
                sources.append(source)
                found = True
            elif path == given:
                raise RunFormatError(f"{path} is no document of offloading: {_EXPECTED}")
            else:
                left_out.append(str(path))
        if not found:
            raise RunFormatError(
                f"{given} holds no document of offloading; expected *.json of 'aecnn-deploy simulate --json' or "
                f"{CURVES} of a training"
            )
    return Documents(tuple(_label_shortly(sources)), tuple(left_out))


def _label_shortly(sources: Sequence[Source]) -> list[Source]:
    """The sources, without the folders that the labels of all training runs begin with."""
    labels = {run.label for item in sources if isinstance(item.document, tuple) for run in item.document}
    if len(labels) > MAX_POLICIES:
        raise RunFormatError(f"{len(labels)} kinds of training runs, over the limit of {MAX_POLICIES}; give fewer")
    parts = [label.split("/") for label in labels]
    most = min(map(len, parts), default=1) - 1
    shared = next((n for n in range(most, 0, -1) if len({tuple(part[:n]) for part in parts}) == 1), 0)

    def shorter(run: TrainingRun) -> TrainingRun:
        return replace(run, label="/".join(run.label.split("/")[shared:]))

    return [
        replace(item, document=tuple(map(shorter, item.document))) if isinstance(item.document, tuple) else item
        for item in sources
    ]


def _files(given: Path) -> Iterator[Path]:
    if given.is_dir():
        yield from sorted({*given.rglob("*.json"), *given.rglob(CURVES)})
    else:
        yield given


def _read(path: Path, given: Path) -> Source | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise RunFormatError(f"cannot read {path}: {exc.strerror}; give files or folders of documents") from None
    if len(content) > MAX_BYTES:
        raise RunFormatError(f"{path} is over the limit of {MAX_BYTES} bytes; no document of offloading is so big")
    if path.suffix == ".jsonl":
        return _curves(path, content, given)
    return _document(path, content)


def _document(path: Path, content: bytes) -> Source | None:
    fields = _decode(path, content, Any, "JSON", _EXPECTED)
    kind = _kind(fields)
    if kind is None:
        return None
    struct, what, writer = KINDS[kind]
    document = _decode(path, content, struct, what, f"expected what {writer} writes")
    if isinstance(document, Comparison):
        _check_rows(path, document.rows, document.seeds, "")
    elif isinstance(document, Sweep):
        for point in document.points:
            _check_rows(path, point.rows, document.seeds, f" at {document.vary.key} = {point.value}")
    return Source(str(path), document, {key: fields[key] for key in _MADE if key in fields})


def _kind(fields: Any) -> str | None:
    if not isinstance(fields, dict):
        return None
    if "vary" in fields and "points" in fields:
        return "sweep"
    rows = fields.get("rows")
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return None
    first = rows[0]
    marks = (("droo", "critic_evaluations"), ("transfer", "trained_on"), ("comparison", "score_mean"))
    found = next((kind for kind, mark in marks if mark in first), None)
    return "comparison" if found is None and "scenario" in fields else found


def _check_rows(path: Path, rows: Sequence[PolicyRow], seeds: Sequence[int], where: str) -> None:
    for row in rows:
        if not row.scores:
            continue
        if len(row.scores) != len(seeds):
            raise RunFormatError(
                f"{path}{where}: {row.policy!r} has {len(row.scores)} scores for {len(seeds)} seeds; expected one each"
            )
        mean = float(np.mean(row.scores))
        if not isclose(mean, row.score_mean, rel_tol=0.01, abs_tol=1e-3):
            raise RunFormatError(
                f"{path}{where}: {row.policy!r} has score_mean {row.score_mean:g}, but its scores average {mean:g}; "
                "write the document again"
            )


def _curves(path: Path, content: bytes, given: Path) -> Source:
    texts = content.split(b"\n")
    label, named_seed = _label(path, given)
    notes: tuple[str, ...] = ()
    runs: dict[tuple[str, int | None], dict[int, CurveLine]] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=CurveLine)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            if number == len(texts) and not isinstance(exc, msgspec.ValidationError):
                notes = (f"{path}: its last line is incomplete and left out; the training was stopped in the middle.",)
                break
            _refuse(f"{path}, line {number},", "a line of curves", exc, "expected an object with 'slot'")
        # A training that was resumed writes again what came after its last checkpoint: the later line counts.
        seed = named_seed if line.seed is None else line.seed
        runs.setdefault((line.label or label, seed), {})[line.slot] = line
    if not runs:
        raise RunFormatError(f"{path} has no line of curves yet; train for longer, or leave it out")
    found = [TrainingRun(name, seed, tuple(by[slot] for slot in sorted(by))) for (name, seed), by in runs.items()]
    return Source(str(path), tuple(found), {}, notes)


def _label(path: Path, given: Path) -> tuple[str, int | None]:
    """The folder of the curves as a label, within what was given, and the seed that a part such as ``seed-2`` says."""
    inside = path.parent.relative_to(given).parts if given.is_dir() else ()
    outside = (given if given.is_dir() else path.parent).absolute()
    seeds = [int(found[1]) for part in (*outside.parts[-1:], *inside) if (found := _SEED.search(part))]
    parts = [short for part in inside if (short := _SEED.sub("", part))]
    if not parts:
        parts = [short for part in reversed(outside.parts[1:]) if (short := _SEED.sub("", part))][:1]
    return "/".join(parts)[-200:] or "training", seeds[-1] if seeds else None


def _decode(path: Path, content: bytes, kind: Any, what: str, expected: str) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        _refuse(str(path), what, exc, expected)


def _refuse(where: str, what: str, exc: Exception, expected: str) -> NoReturn:
    why = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
    raise RunFormatError(f"{where} is damaged, or not {what}: {why}; {expected}") from None
