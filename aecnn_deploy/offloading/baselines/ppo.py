"""A baseline from elsewhere: MaskablePPO of sb3-contrib, a network of dense layers over ``FlatFeatures``.

Schulman et al., arXiv 1707.06347, with masks of what would not even be in time alone (Huang, Ontañón, arXiv
2006.14171). Its network has one input for each number of each device and one output for each choice: other numbers of
devices, servers or options need another training. Training needs the extra ``ppo``; a trained policy needs numpy alone.

run/
  settings.json    the scenario with its profile, the settings, the package's version
  curves.jsonl     one point a rollout
  policy.npz       when it is done: the layers' arrays, and as text what they were trained on
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.mec.flat import LAYOUT, FlatFeatures, Vectors
from aecnn_deploy.offloading.mec.observation import Actions, Observation
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.optional import require

FORMAT: Final = 1
POLICY: Final = "policy.npz"
MOST_BYTES: Final = 64 * 2**20  # of a policy file, packed and unpacked
_REMEDY: Final = "train one with: aecnn-deploy policy train SCENARIO --method ppo --out RUN"

Layers = tuple[tuple[Vectors, Vectors], ...]


@dataclass(frozen=True)
class PpoSettings:
    """One training, by MaskablePPO's names where it has them."""

    seed: int = 0
    steps: int = 9600  # slots of one world, over all worlds; whole rollouts of all worlds are played
    worlds: int = 8
    episode: int = 50  # slots until the worlds are drawn anew
    n_steps: int = 25  # slots of each world between updates
    minibatches: int = 5  # that the slots of a rollout are dealt into
    n_epochs: int = 10
    gamma: float = 0.5  # a task lives for a slot or two; 0.9 was worse on validation seeds
    gae_lambda: float = 0.95
    learning_rate: float = 3e-4
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    width: int = 64  # of each hidden layer
    layers: int = 2  # of the policy, and as many of the value, apart
    curve_slots: int = 40  # played for each point of the curve, with other seeds

    def __post_init__(self) -> None:
        counts = ("steps", "worlds", "episode", "n_steps", "minibatches", "n_epochs", "width", "layers", "curve_slots")
        for name in counts:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("learning_rate", "clip_range"):
            if not 0 < getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected more than 0 and less than 1")
        for name in ("ent_coef", "vf_coef"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.seed < 500_000:
            raise SettingsError(f"seed is {self.seed}, expected 0 to 499999")
        if (self.worlds * self.n_steps) % self.minibatches or self.worlds * self.n_steps <= self.minibatches:
            raise SettingsError(
                f"{self.worlds} worlds of {self.n_steps} slots cannot be dealt into {self.minibatches} equal "
                "minibatches of two slots or more; choose minibatches that divide worlds * n_steps"
            )

    def document(self) -> dict[str, Any]:
        """As settings.json keeps it."""
        return asdict(self)


class PpoFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a policy file says of itself."""

    format: int
    layout: int  # of the observations' columns
    devices: int
    servers: int
    options: int
    scale_s: float  # of times
    layers: int  # with the last, of the choices' scores
    scenario: str  # that it was trained in
    profile: str  # name of that scenario's profile
    seed: int
    steps: int  # slots of one world, over all worlds


class PpoPolicy:
    """For each device the choice of the highest score among those that would be in time alone.

    ``layers``: weights [in, out] and biases [out], with tanh between them.
    """

    name = "ppo"

    def __init__(self, facts: PpoFacts, layers: Layers) -> None:
        self.facts, self._layers = facts, layers
        self._features = FlatFeatures.sized(facts.devices, facts.servers, facts.options, facts.scale_s)

    def reset(self, batch: int) -> None:
        """Nothing is remembered from slot to slot."""

    def fit(self, devices: int, servers: int, options: int) -> None:
        """Raises PolicyError: these are not the sizes that it was trained for."""
        facts = self.facts
        if (devices, servers, options) != (facts.devices, facts.servers, facts.options):
            raise PolicyError(
                f"this ppo policy was trained for {facts.devices} devices, {facts.servers} servers and {facts.options} "
                f"options ({facts.scenario}), and got {devices} devices, {servers} servers and {options} options; its "
                "network takes no other sizes: train it in this scenario with --method ppo"
            )

    def decide(self, seen: Observation) -> Actions:
        """[B, N]. Raises PolicyError: other sizes than those of its training."""
        self.fit(seen.devices, seen.servers, seen.options)
        chosen: Actions = np.where(seen.feasible(), self.scores(seen), -np.inf).argmax(axis=2)
        return chosen

    def scores(self, seen: Observation) -> Vectors:
        """[B, N, 1 + S·V]: logits, before masks."""
        values = self._features.of(seen)
        for number, (weight, bias) in enumerate(self._layers):
            values = (np.tanh(values) if number else values) @ weight + bias
        return values.reshape(seen.batch, seen.devices, seen.choices)


def train_ppo(
    scenario: Scenario,
    *,
    seed: int,
    steps: int,
    out: Path,
    worlds: int = 8,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train into the folder ``out``, which must be empty or absent; the policy file.

    ``steps`` counts slots over all ``worlds``, rounded up to whole rollouts; ``on_step`` gets those that are played.
    Raises MissingExtraError: the extra ``ppo`` is not installed; PolicyError: there is something in ``out``;
    SettingsError: a number out of range.
    """
    settings = PpoSettings(seed=seed, steps=steps, worlds=worlds)
    require("sb3_contrib", why="policy train --method ppo")
    from aecnn_deploy.offloading.baselines.ppo_training import train

    return train(scenario, settings, out, on_step=on_step)


def ppo_facts(scenario: Scenario, settings: PpoSettings, scale_s: float) -> PpoFacts:
    """Of a policy that is trained so."""
    return PpoFacts(
        format=FORMAT,
        layout=LAYOUT,
        devices=scenario.devices.count,
        servers=scenario.servers.count,
        options=len(scenario.profile.options),
        scale_s=scale_s,
        layers=settings.layers + 1,
        scenario=scenario.name,
        profile=scenario.profile.name,
        seed=settings.seed,
        steps=settings.steps,
    )


def write_ppo(policy: PpoPolicy, path: Path) -> None:
    """Write the policy file, beside it and renamed."""
    arrays: dict[str, Any] = {"about": np.array(msgspec.json.encode(policy.facts).decode())}
    for number, (weight, bias) in enumerate(policy._layers):
        arrays |= {f"{number}.weight": weight, f"{number}.bias": bias}
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    beside.replace(path)


def load_ppo(path: Path) -> PpoPolicy:
    """The policy in the file ``path``. Raises PolicyError: absent, damaged, of another format or layout."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise PolicyError(f"{path} has {size} bytes, over the limit of {MOST_BYTES}; this is no policy; {_REMEDY}")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            unpacked = sum(entry.file_size for entry in archive.zip.infolist())
            if unpacked > MOST_BYTES:
                raise PolicyError(f"{path} unpacks to {unpacked} bytes, over the limit of {MOST_BYTES}; {_REMEDY}")
            arrays = {name: archive[name] for name in archive.files}
        facts = msgspec.json.decode(str(arrays.pop("about")), type=PpoFacts)
    except PolicyError:
        raise
    except OSError as exc:
        raise PolicyError(f"cannot read the policy {path}: {exc.strerror or exc}; {_REMEDY}") from exc
    except Exception as exc:  # a damaged zip raises what its parser stumbled on
        raise PolicyError(f"{path} is no ppo policy ({type(exc).__name__}: {exc}); {_REMEDY}") from exc
    if (facts.format, facts.layout) != (FORMAT, LAYOUT):
        raise PolicyError(
            f"{path} has format {facts.format} with observations of layout {facts.layout}; this version reads {FORMAT} "
            f"with {LAYOUT}; train it again, or use its own version"
        )
    return PpoPolicy(facts, _layers(path, facts, arrays))


def _layers(path: Path, facts: PpoFacts, arrays: Mapping[str, NDArray[Any]]) -> Layers:
    """The arrays, checked against what the file says of itself."""
    sizes = (facts.devices, facts.servers, facts.options, facts.layers)
    if min(sizes) < 1 or not 0 < facts.scale_s < np.inf:
        raise PolicyError(f"{path}: sizes {sizes} and scale {facts.scale_s} s must be positive; {_REMEDY}")
    wanted = {f"{number}.{part}" for number in range(min(facts.layers, len(arrays))) for part in ("weight", "bias")}
    if facts.layers > len(arrays) or arrays.keys() != wanted:
        raise PolicyError(f"{path}: its arrays are not those of {facts.layers} layers; {_REMEDY}")
    features = FlatFeatures.sized(facts.devices, facts.servers, facts.options, facts.scale_s)
    layers, width = [], features.size
    for number in range(facts.layers):
        weight, bias = arrays[f"{number}.weight"], arrays[f"{number}.bias"]
        fits = weight.ndim == 2 and weight.shape[0] == width and bias.shape == weight.shape[1:]
        floats = weight.dtype == bias.dtype == np.float32 and np.isfinite(weight).all() and np.isfinite(bias).all()
        if not (fits and floats):
            raise PolicyError(
                f"{path}: layer {number} has {weight.dtype} {weight.shape} and {bias.dtype} {bias.shape}, expected "
                f"finite float32 with {width} inputs; {_REMEDY}"
            )
        layers.append((weight, bias))
        width = len(bias)
    if width != features.devices * features.choices:
        raise PolicyError(
            f"{path}: {width} scores for {features.devices} devices of {features.choices} choices; {_REMEDY}"
        )
    return tuple(layers)
