"""``aecnn-deploy simulate``: policies in a scenario of many devices and several edges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from aecnn_deploy.cli.console import print_json, progress
from aecnn_deploy.cli.simulation_options import (
    BatchOption,
    BoundOption,
    ChangesOption,
    JsonOption,
    OutOption,
    ScenarioArgument,
    SeedsOption,
    SlotsOption,
    VaryOption,
)
from aecnn_deploy.errors import SettingsError

EXAMPLE = "Example: aecnn-deploy simulate paper-2x14 --policy random --policy local --seeds 3"
_WIDTH = 80


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("simulate", epilog=EXAMPLE)(simulate)


def simulate(
    scenario: ScenarioArgument,
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy by name; may be repeated.", show_default="random and local")
    ] = None,
    seeds: SeedsOption = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them; 1000 and more are not trained on.")] = 1000,
    batch: BatchOption = 8,
    slots: SlotsOption = None,
    vary: VaryOption = None,
    changes: ChangesOption = None,
    bound: BoundOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate policies in a scenario: many devices, several edges, tasks with deadlines.

    All policies meet the same worlds. The score is the accuracy of all tasks that were done in time, added, a second:
    expected right answers in time. Its spread is over seeds. docs/offloading.md explains scenarios and keys.
    """
    from aecnn_deploy.offloading.scenario_file import load_scenario, with_changes
    from aecnn_deploy.offloading.simulation import Simulation, Vary

    asked = read_changes(changes)
    if slots is not None:
        asked["slots"] = slots
    varied = Vary(*_key_and_values(vary, "--vary", many=True)) if vary is not None else None
    simulation = Simulation(
        scenario=with_changes(load_scenario(scenario), asked),
        policies=tuple(policy or ("random", "local")),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        batch=batch,
        vary=varied,
        bound_of=_bound_of(bound),
    )
    if out is not None:
        _check_folder(out)
    with progress("slots", simulation.slots()) as bar:
        document = simulation.run(bar.advance)
    if out is not None:
        _write(out, document)
    if as_json:
        print_json(document)
        return
    for line in _lines(document):
        typer.echo(line)


def _bound_of(kind: str | None) -> Any:
    """The function that bounds a scenario; None: none was asked for. Raises SettingsError: there is no such kind."""
    if kind is None:
        return None
    from aecnn_deploy.offloading.bounds.document import KINDS, bound_document
    from aecnn_deploy.optional import require

    short = {"auto": None, "exact": "exact per slot", "lp": "lp", "empty": "per-slot, empty queues"}
    named = {**short, "clairvoyant": "clairvoyant"}
    if kind not in named:
        raise SettingsError(f"no bound is called {kind!r}; known are {', '.join(named)}: docs/bounds.md explains them")
    assert {one for one in named.values() if one} == set(KINDS)
    require("scipy", why="simulate --bound")

    def bound_of(scenario: Any, seeds: Any, batch: int) -> dict[str, Any]:
        return bound_document(scenario, seeds, kind=named[kind], batch=batch)

    return bound_of


def read_changes(changes: list[str] | None) -> dict[str, Any]:
    """The changes of ``--set`` by key. Raises SettingsError: one is no KEY=VALUE."""
    return dict(_key_and_values(text, "--set", many=False) for text in changes or [])


def _key_and_values(text: str, option: str, *, many: bool) -> tuple[str, Any]:
    """``devices.count=20`` as key and value, as TOML; a word that is none is a string. Raises SettingsError."""
    key, equals, value = (part.strip() for part in text.partition("="))
    example = "devices.count=7,14,20" if many else "devices.count=20"
    if not (key and equals and value):
        raise SettingsError(f"{option} {text!r} is no {'list of values' if many else 'value'}; write it as {example}")
    read = _array(value)
    if read is None:  # words without quotes
        items = [part.strip() for part in value.split(",")]
        read = [item for part in items for item in _array(part) or [part]]
    if not many and len(read) != 1:
        raise SettingsError(f"{option} {text!r} holds {len(read)} values, expected one; write it as {example}")
    return key, tuple(read) if many else read[0]


def _array(text: str) -> list[Any] | None:
    """The values of a TOML array without its brackets; None: it is none."""
    import tomllib

    try:
        document = tomllib.loads(f"values = [{text}]")
    except (ValueError, RecursionError):
        return None
    return document["values"] if set(document) == {"values"} else None


def _check_folder(path: Path) -> None:
    """Raises SettingsError: the file could not be written, which is said before hours of simulation."""
    if path.is_dir() or not path.parent.is_dir():
        raise SettingsError(f"cannot write {path}: it is a folder or in none; name another file with --out")


def _write(path: Path, document: dict[str, Any]) -> None:
    """Beside its place, then renamed. Raises SettingsError: it cannot be written."""
    import json

    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        partial.replace(path)
    except OSError as exc:
        raise SettingsError(f"cannot write {path}: {exc.strerror or exc}; name another file with --out") from None


def _lines(document: dict[str, Any]) -> Iterator[str]:
    """The document for a person, in 80 columns."""
    seeds = document["seeds"]
    yield f"scenario  {document['scenario']}, {document['slots']} slots, {document['batch']} worlds a seed"
    yield f"seeds     {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed      {seeds[0]}"
    if "points" not in document:
        yield from _table(document)
        return
    for point in document["points"]:
        yield ""
        yield f"{document['vary']['key']} = {point['value']}"[:_WIDTH]
        yield from _table(point)


def _table(point: dict[str, Any]) -> Iterator[str]:
    energy = any(row["energy_j_mean"] is not None for row in point["rows"])
    yield ""
    head = f"{'policy':<20}{'score /s':>18}{'in time':>9}{'accuracy':>10}{'tasks /s':>10}{'ms':>7}"
    yield head + (f"{'J':>6}" if energy else "")
    for row in point["rows"]:
        name = row["policy"] if len(row["policy"]) <= 20 else row["policy"][:19] + "…"
        score = f"{row['score_mean']:.2f} ± {row['score_sd']:.2f}"
        took = "" if row["decision_ms_p50"] is None else f"{row['decision_ms_p50']:.2f}"
        joule = f"{row['energy_j_mean']:.2f}" if energy else ""
        yield (
            f"{name:<20}{score:>18}{row['success_mean']:>9.1%}{row['accuracy_mean']:>10.2%}"
            f"{row['throughput_mean']:>10.2f}{took:>7}{joule:>6}"
        ).rstrip()
    if point["bound"] is not None:
        yield f"{'bound':<20}{point['bound']['score_mean']:>11.2f}  {point['bound']['kind']}"[:_WIDTH]
