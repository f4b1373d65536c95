"""The graph policy as it is deployed: ONNX Runtime scores, numpy searches. No torch.

One ONNX file holds all of it: the actor's graph, and as metadata what the critic by model knows, the residuals and the
prices, with the features' version and what it was trained on.
"""

import json
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.agent.critic import ModelCritic, Prices
from aecnn_deploy.offloading.agent.features import FEATURES, LOCAL_FEATURES, PATH_FEATURES, SERVER_FEATURES, graph_of
from aecnn_deploy.offloading.agent.learned import ChanceNetwork, LearnedCritic
from aecnn_deploy.offloading.agent.residuals import KINDS, Residuals
from aecnn_deploy.offloading.agent.search import Critic, SearchSettings, decide
from aecnn_deploy.offloading.mec.observation import Actions, Floats, Observation, unpacked
from aecnn_deploy.optional import require

FORMAT = 1
METADATA_KEY = "aecnn_policy"
INPUTS = ("path", "local", "server", "active")
MOST_BYTES = 64 * 2**20  # of a policy file

SAMPLES = 8
CRITICS = ("model", "learned")


class PolicyFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a policy file says of itself."""

    format: int
    features: int  # version of what the actor reads
    sizes: tuple[int, int, int]  # numbers of features of a path, of local computing, of a server
    scenario: str  # that it was trained in
    method: str  # name of that scenario's profile
    seed: int
    slots: int  # of training
    training: str  # the method
    only: tuple[int, int, int] | None  # numbers of devices, servers and options that it is for; None: any
    search: dict[str, int | bool]  # with which it is deployed
    prices: dict[str, float]
    residuals: dict[str, list[float]]
    chances: ChanceNetwork  # the learned critic


@dataclass(frozen=True)
class PolicyFile:
    """A policy file, read and checked."""

    path: Path
    facts: PolicyFacts
    session: Any  # onnxruntime.InferenceSession

    def scores(self, seen: Observation) -> Floats:
        """[B, N, 1 + S·V]. Raises PolicyError: it is for another number of devices, servers or options."""
        sizes = (seen.devices, seen.servers, seen.options)
        if self.facts.only is not None and sizes != self.facts.only:
            raise PolicyError(
                f"{self.path} is for {_counts(self.facts.only)} alone, here are {_counts(sizes)}; train one there: "
                f"aecnn-deploy policy train --method {self.facts.training}"
            )
        graph = graph_of(seen)
        (scores,) = self.session.run(None, {name: getattr(graph, name) for name in INPUTS})
        return np.asarray(scores, np.float64)

    def residuals(self) -> Residuals:
        """What it has learned of estimates."""
        return Residuals(*(np.array(self.facts.residuals[name]) for name in KINDS))

    def prices(self) -> Prices:
        """What it has learned of work left to later slots."""
        return Prices(**self.facts.prices)

    def search(self) -> SearchSettings:
        """With which it is deployed."""
        return SearchSettings(**self.facts.search)  # type: ignore[arg-type]

    def critic(self, kind: str, samples: int = SAMPLES) -> Critic:
        """The critic "model" or "learned". Raises PolicyError: there is no such one."""
        if kind == "model":
            return ModelCritic(self.residuals(), self.prices(), samples=samples)
        if kind == "learned":
            return LearnedCritic(self.facts.chances, self.prices())
        raise PolicyError(f"no critic is called {kind!r}; known are {', '.join(CRITICS)}")


def read_policy(path: Path, *, threads: int = 1) -> PolicyFile:
    """The policy file at ``path``. Raises PolicyError: it is none, is damaged, or reads other features than ours."""
    runtime = require("onnxruntime", why="a policy file")
    remedy = "write one with: aecnn-deploy policy export RUN --out FILE"
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise PolicyError(f"cannot read the policy {path}: {exc.strerror}; {remedy}") from exc
    if size > MOST_BYTES:
        raise PolicyError(f"{path} has {size} bytes, over the limit of {MOST_BYTES}; this is no policy; {remedy}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors have no base of their own
        raise PolicyError(f"{path} is no ONNX file that runs: {str(exc).splitlines()[0]}; {remedy}") from exc
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise PolicyError(f"{path} is an ONNX file, but no policy: it lacks the metadata {METADATA_KEY!r}; {remedy}")
    facts = _facts(path, text)
    if {one.name for one in session.get_inputs()} != set(INPUTS):
        raise PolicyError(f"{path} takes other inputs than {', '.join(INPUTS)}; {remedy}")
    found = PolicyFile(path, facts, session)
    found.residuals()
    found.critic("learned")
    found.search()
    return found


def _facts(path: Path, text: str) -> PolicyFacts:
    remedy = "export it again with this version: aecnn-deploy policy export RUN --out FILE"
    try:
        facts = msgspec.json.decode(text.encode(), type=PolicyFacts)
    except msgspec.MsgspecError as exc:
        raise PolicyError(f"{path}: its metadata {METADATA_KEY!r} is damaged: {exc}; {remedy}") from exc
    sizes = (PATH_FEATURES, LOCAL_FEATURES, SERVER_FEATURES)
    if facts.format != FORMAT:
        raise PolicyError(f"{path} has policy format {facts.format}, this version reads {FORMAT}; {remedy}")
    if (facts.features, facts.sizes) != (FEATURES, sizes):
        raise PolicyError(
            f"{path} was trained on features of version {facts.features} with {facts.sizes} numbers of a path, local "
            f"computing and a server; this version has {FEATURES} with {sizes}; train it again, or use its own version"
        )
    if set(facts.search) != {field.name for field in fields(SearchSettings)}:
        raise PolicyError(f"{path}: its metadata lack how it searches; {remedy}")
    if set(facts.residuals) != set(KINDS) or set(facts.prices) != {"radio", "edge", "device"}:
        raise PolicyError(f"{path}: its metadata lack residuals or prices; {remedy}")
    return facts


def facts_text(facts: PolicyFacts) -> str:
    """As the metadata keep it."""
    return json.dumps(msgspec.to_builtins(facts), separators=(",", ":"))


def _counts(sizes: tuple[int, int, int]) -> str:
    return f"{sizes[0]} devices, {sizes[1]} servers and {sizes[2]} options"


class GraphPolicy:
    """Decides by a policy file. ``critic``: "model", "learned", or one of the caller's own."""

    def __init__(
        self,
        file: PolicyFile,
        *,
        name: str = "grl",
        search: SearchSettings | None = None,
        samples: int = SAMPLES,
        critic: Critic | str = "model",
    ) -> None:
        self.file, self.search = file, search or file.search()
        self._name = name
        self._critic = file.critic(critic, samples) if isinstance(critic, str) else critic

    @property
    def name(self) -> str:
        return self._name

    def reset(self, batch: int) -> None:
        """Nothing is remembered from slot to slot."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N]. A slot without a task is decided, too: everything local, which is nothing."""
        if not seen.active.any():
            return np.zeros(seen.active.shape, np.int64)
        if self.file.facts.only is not None:
            return decide(self.file.scores(seen), seen, self._critic, self.search)
        packed, places = seen.packed()
        chosen = decide(self.file.scores(packed), packed, self._critic, self.search)
        return unpacked(chosen, places, seen.devices)


def load_policy(path: Path, *, name: str | None = None, critic: str = "model") -> GraphPolicy:
    """The policy at ``path``, ready to decide. Raises PolicyError."""
    return GraphPolicy(read_policy(path), name=name or _name_of(path), critic=critic)


def shipped_policy() -> GraphPolicy:
    """The graph policy that comes with the package, trained in paper-2x14; docs/policy.md has the command."""
    with resources.as_file(resources.files("aecnn_deploy.offloading.agent").joinpath("grl-2x14.onnx")) as path:
        return load_policy(path, name="grl")


def _name_of(path: Path) -> str:
    """What a table calls the policy of this file: its name, or its training's folder's."""
    return path.parent.name if path.stem == "policy" and path.parent.name else path.stem


def copy_policy(run: Path, out: Path) -> PolicyFacts:
    """Write the policy of the training in ``run`` to ``out``, checked, beside it and renamed. Raises PolicyError."""
    source = run / "policy.onnx"
    if (run / "policy.npz").exists():
        raise PolicyError(
            f"{run} holds a policy of ppo, which is evaluated as it is: {run / 'policy.npz'}; nothing to export"
        )
    if not source.exists():
        if (run / "settings.json").exists():
            raise PolicyError(f"the training in {run} is not done; go on with: aecnn-deploy policy train … --resume")
        raise PolicyError(f"{run} holds no training of a policy; make one with: aecnn-deploy policy train --out {run}")
    facts = read_policy(source).facts
    if out.is_dir() or not out.parent.is_dir():
        raise PolicyError(f"cannot write {out}: it is a folder or in none; name a file with --out")
    beside = out.with_name(out.name + ".part")
    beside.write_bytes(source.read_bytes())
    beside.replace(out)
    return facts
