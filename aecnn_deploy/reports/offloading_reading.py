"""Reading documents of offloading from files and folders: told apart by their keys, refused by name where damaged."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec
import numpy as np

from aecnn_deploy.errors import RunFormatError
from aecnn_deploy.reports.offloading_documents import (
    MAX_POLICIES,
    Comparison,
    CurveLine,
    Documents,
    DrooTable,
    PolicyRow,
    Source,
    Sweep,
    TrainingRun,
    TransferTable,
)

MAX_BYTES = 64 * 2**20
CURVES, _SETTINGS = "curves.jsonl", "settings.json"  # of a training, beside each other

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
_MADE = (
    "machine",
    "version",
    "versions",
    "commit",
    "command",
    "method",
    "settings",
)  # what a file may say of where it comes from
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
        curves = set(given.rglob(CURVES))
        settings = {path.with_name(_SETTINGS) for path in curves}
        yield from sorted(curves | set(given.rglob("*.json")) - settings)
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
    return Source(str(path), tuple(found), _settings(path.with_name(_SETTINGS)), notes)


def _settings(path: Path) -> dict[str, Any]:
    """What a training says of itself beside its curves, without the scenario; empty where there is no such file."""
    try:
        document = msgspec.json.decode(path.read_bytes()) if path.stat().st_size <= MAX_BYTES else None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return {key: document[key] for key in _MADE if key in document} if isinstance(document, dict) else {}


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
