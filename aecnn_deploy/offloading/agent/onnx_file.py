"""Writing a trained policy as one ONNX file, checked against torch before it is there."""

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from aecnn_deploy.errors import VerificationError
from aecnn_deploy.offloading.agent.features import FEATURES, LOCAL_FEATURES, PATH_FEATURES, SERVER_FEATURES
from aecnn_deploy.offloading.agent.network import GraphActor
from aecnn_deploy.offloading.agent.policy import FORMAT, INPUTS, METADATA_KEY, PolicyFacts, facts_text, read_policy
from aecnn_deploy.offloading.agent.residuals import KINDS
from aecnn_deploy.offloading.agent.trainer import Trainer
from aecnn_deploy.offloading.baselines.flat_actor import FlatActor
from aecnn_deploy.optional import require

_TOLERANCE = 1e-4
_SIZES = ((1, 14, 2, 6), (3, 5, 1, 1), (2, 30, 4, 7))  # worlds, devices, servers, options


def policy_facts(trainer: Trainer) -> PolicyFacts:
    """What the file of ``trainer``'s policy says."""
    residuals, scenario = trainer.residuals(), trainer.scenario
    only = None
    if trainer.settings.flat:
        only = (scenario.devices.count, scenario.servers.count, len(scenario.profile.options))
    prices = trainer.prices
    return PolicyFacts(
        format=FORMAT,
        features=FEATURES,
        sizes=(PATH_FEATURES, LOCAL_FEATURES, SERVER_FEATURES),
        scenario=trainer.scenario.name,
        method=trainer.scenario.profile.name,
        seed=trainer.settings.seed,
        slots=trainer.slot,
        training=trainer.settings.method,
        only=only,
        search=msgspec.to_builtins(trainer.settings.deployed),
        prices={"radio": prices.radio, "edge": prices.edge, "device": prices.device},
        residuals={name: [round(float(value), 6) for value in getattr(residuals, name)] for name in KINDS},
        chances=trainer.chances.network(),
    )


def write_policy(actor: GraphActor | FlatActor, facts: PolicyFacts, path: Path) -> None:
    """The policy file at ``path``, written beside it and renamed. Raises VerificationError: it scores otherwise."""
    onnx = require("onnx", why="policy export", extra="offloading")
    actor = actor.eval()
    beside = path.with_name(path.name + ".part")
    sizes = _SIZES if facts.only is None else tuple((worlds, *facts.only) for worlds in (1, 3))
    worlds, devices, servers, options = (
        torch.export.Dim(name, min=1) for name in ("worlds", "devices", "servers", "options")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names of dimensions that are one
        program = torch.onnx.export(
            actor,
            tuple(_inputs(*sizes[-1])),
            input_names=list(INPUTS),
            output_names=["scores"],
            dynamic_shapes=(
                {0: worlds, 1: devices, 2: servers, 3: options},
                {0: worlds, 1: devices},
                {0: worlds, 1: servers},
                {0: worlds, 1: devices},
            )
            if facts.only is None
            else ({0: worlds},) * 4,
            dynamo=True,
            opset_version=18,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_places(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, facts_text(facts)
    onnx.checker.check_model(model)
    onnx.save(model, beside)
    _verify(actor, beside, path, sizes)
    beside.replace(path)


def _forget_places(model: Any) -> None:
    """Take off where in whose source each node was written: it is of no use to a reader."""
    del model.metadata_props[:]
    graph = model.graph
    for one in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del one.metadata_props[:]
        one.doc_string = ""


def _verify(
    actor: GraphActor | FlatActor, beside: Path, path: Path, sizes: tuple[tuple[int, int, int, int], ...]
) -> None:
    session = read_policy(beside).session
    for worlds, devices, servers, options in sizes:
        inputs = _inputs(worlds, devices, servers, options)
        with torch.no_grad():
            expected = actor(*inputs).numpy()
        (got,) = session.run(None, {name: part.numpy() for name, part in zip(INPUTS, inputs, strict=True)})
        apart = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
        if not apart <= _TOLERANCE:
            beside.unlink()
            raise VerificationError(path.name, "greatest difference of a score", apart, _TOLERANCE, worlds)


def _inputs(worlds: int, devices: int, servers: int, options: int) -> list[torch.Tensor]:
    maker = torch.Generator().manual_seed(worlds)
    return [
        torch.rand(worlds, devices, servers, options, PATH_FEATURES, generator=maker),
        torch.rand(worlds, devices, LOCAL_FEATURES, generator=maker),
        torch.rand(worlds, servers, SERVER_FEATURES, generator=maker),
        (torch.rand(worlds, devices, generator=maker) < 0.7).float(),
    ]
