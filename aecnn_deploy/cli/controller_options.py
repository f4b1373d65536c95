"""Options of what advises devices: an edge that is a controller, too, and a controller alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aecnn_deploy.bundle.reader import Bundle
    from aecnn_deploy.offloading.live.annex import ControllerAnnex
    from aecnn_deploy.offloading.policy import Policy

ControllerOption = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help="Advise this edge's devices by a policy: a file, or greedy or static."),
]
SlotOption = Annotated[float, typer.Option(help="Milliseconds of a slot: devices are advised once in each.")]


def policy_of(name: str) -> "Policy":
    """The policy of a file or of a training's folder, or a built-in one.

    Raises PolicyError: there is none, or the file cannot be used.
    """
    from aecnn_deploy.offloading.live.policies import BUILT_IN, named_policy
    from aecnn_deploy.offloading.registry import policy_file

    if name in BUILT_IN or not Path(name).exists():
        return named_policy(name)
    from aecnn_deploy.offloading.agent.policy import load_policy

    return load_policy(policy_file(Path(name)))


def controller_annex(name: str | None, bundle: "Bundle", slot_ms: float) -> "ControllerAnnex | None":
    """What makes an edge a controller; None without a policy. Raises PolicyError, SettingsError."""
    if name is None:
        return None
    from aecnn_deploy.offloading.live.advising import ControllerSettings
    from aecnn_deploy.offloading.live.annex import ControllerAnnex

    return ControllerAnnex(lambda: policy_of(name), bundle, ControllerSettings(slot_ms=slot_ms))
