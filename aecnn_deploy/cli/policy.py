"""``aecnn-deploy policy train|evaluate|export``: learned offloading."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aecnn_deploy.cli.console import print_json, progress, say
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

TRAIN_EXAMPLE = "Example: aecnn-deploy policy train paper-2x14 --out run"
EVALUATE_EXAMPLE = "Example: aecnn-deploy policy evaluate run --scenario paper-2x14 --policy greedy"
EXPORT_EXAMPLE = "Example: aecnn-deploy policy export run --out policy.onnx"


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Learned offloading: train, evaluate, export a policy.")
    group.command("train", epilog=TRAIN_EXAMPLE)(train)
    group.command("evaluate", epilog=EVALUATE_EXAMPLE)(evaluate)
    group.command("export", epilog=EXPORT_EXAMPLE)(export)
    app.add_typer(group, name="policy")


def train(
    scenario: ScenarioArgument,
    out: Annotated[Path, typer.Option(help="The folder of this training.")],
    method: Annotated[str, typer.Option(help="grl, or a baseline: docs/baselines.md.")] = "grl",
    slots: Annotated[int | None, typer.Option(min=1, help="Slots to play.")] = None,
    worlds: Annotated[int | None, typer.Option(min=1, max=1024, help="Worlds that are played at once.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, draws and worlds.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in OUT.")] = False,
    changes: ChangesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a graph policy in a scenario; some minutes on one core. docs/policy.md says how."""
    from dataclasses import replace

    from aecnn_deploy.cli.simulate import read_changes
    from aecnn_deploy.offloading.scenario_file import load_scenario, with_changes
    from aecnn_deploy.optional import require

    require("torch", why="policy train", extra="offloading")
    from aecnn_deploy.offloading.agent.run import train_policy
    from aecnn_deploy.offloading.agent.settings import settings_of
    from aecnn_deploy.offloading.agent.trainer import Trainer

    if method == "ppo":
        _train_ppo(
            with_changes(load_scenario(scenario), read_changes(changes)), out, seed, slots, worlds, resume, as_json
        )
        return
    settings = settings_of(method)
    settings = replace(settings, seed=seed, worlds=worlds or settings.worlds).for_slots(slots or settings.slots)
    played = with_changes(load_scenario(scenario), read_changes(changes))
    with progress("slots", settings.slots) as bar:
        begun = [False]

        def on_slot(trainer: Trainer) -> None:
            bar.advance(1 if begun[0] else trainer.slot, note=f"reward {trainer.scores[-1]:.3f}")
            begun[0] = True

        path = train_policy(played, settings, out, resume=resume, on_slot=on_slot)
    last = _last_point(out)
    if as_json:
        print_json({"policy": str(path), "scenario": played.name, "slots": last["slot"], "curve": last})
        return
    typer.echo(
        f"{path}: {last['slot']} slots, {last['seconds']:.0f} s, {last['eval_score']:.4f} of a task on other seeds"
    )


def _train_ppo(
    scenario: Any, out: Path, seed: int, slots: int | None, worlds: int | None, resume: bool, as_json: bool
) -> None:
    """Another program's training: it cannot go on where it was stopped."""
    from aecnn_deploy.offloading.agent.settings import TrainSettings
    from aecnn_deploy.offloading.baselines.ppo import train_ppo

    if resume and (out / "settings.json").exists():
        raise SettingsError("a training of ppo does not go on where it was stopped; remove its folder and begin again")
    ours = TrainSettings()
    worlds = worlds or ours.worlds
    steps = (slots or ours.slots) * worlds
    with progress("slots of all worlds", steps) as bar:
        path = train_ppo(scenario, seed=seed, steps=steps, out=out, worlds=worlds, on_step=bar.advance)
    last = _last_point(out)
    if as_json:
        print_json({"policy": str(path), "scenario": scenario.name, "slots": last["slot"], "curve": last})
        return
    typer.echo(f"{path}: {last['slot']} slots, {last['seconds']:.0f} s")


def evaluate(
    policies: Annotated[
        list[str] | None, typer.Argument(help="Policy files, trainings' folders, or names that simulate knows.")
    ] = None,
    scenario: Annotated[str, typer.Option(help="A scenario by name, or a .toml file.")] = "paper-2x14",
    policy: Annotated[
        list[str] | None, typer.Option(help="Another policy by name or file to stand beside; may be repeated.")
    ] = None,
    droo: Annotated[
        Path | None, typer.Option(help="A .mat file of DROO's test set in place of a scenario.", metavar="FILE")
    ] = None,
    seeds: SeedsOption = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them; no training draws from these.")] = 1000,
    batch: BatchOption = 8,
    slots: SlotsOption = None,
    vary: VaryOption = None,
    changes: ChangesOption = None,
    bound: BoundOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate policies in a scenario, beside others; or on DROO's published test set."""
    names = [*(policies or []), *(policy or [])]
    if droo is not None:
        from aecnn_deploy.cli.policy_droo import evaluate_droo

        if len(names) > 1:
            raise SettingsError(f"--droo evaluates at most one policy of its own kind, got {', '.join(names)}")
        evaluate_droo(droo, Path(names[0]) if names else None, seeds, as_json)
        return
    if not names:
        raise SettingsError("no policy is named; give a policy file, a training's folder, or a name, as: greedy")
    from aecnn_deploy.cli.simulate import simulate

    simulate(scenario, names, seeds, first_seed, batch, slots, vary, changes, bound, out, as_json)


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a training that is done.")],
    out: Annotated[Path, typer.Option(help="The policy file to write, .onnx.")],
    as_json: JsonOption = False,
) -> None:
    """Export a trained policy as one ONNX file: what serve-edge --controller and policy evaluate read."""
    from aecnn_deploy.offloading.agent.policy import copy_policy

    facts = copy_policy(run, out)
    size = out.stat().st_size
    if as_json:
        print_json(
            {
                "policy": str(out),
                "bytes": size,
                "scenario": facts.scenario,
                "method": facts.method,
                "seed": facts.seed,
                "slots": facts.slots,
                "features": facts.features,
            }
        )
        return
    say(f"{out}: {size:,} bytes, trained in {facts.scenario} for {facts.slots} slots, seed {facts.seed}")


def _last_point(out: Path) -> dict[str, Any]:
    import json

    last: dict[str, Any] = json.loads((out / "curves.jsonl").read_text().splitlines()[-1])
    return last
