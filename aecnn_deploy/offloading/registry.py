"""Policies by name. A name's module is imported when the policy is made: most need nothing but numpy, some torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.policy import Policy

Maker = Callable[[Scenario, int], Policy]

_HERE = "aecnn_deploy.offloading.registry"

# name -> "module:function" of a scenario and a seed
POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "grl": f"{_HERE}:make_shipped",
        "random": f"{_HERE}:make_random",
        "local": f"{_HERE}:make_local",
        "offload": f"{_HERE}:make_offload",
        "neurosurgeon": f"{_HERE}:make_neurosurgeon",
        "selfish": f"{_HERE}:make_selfish",
        "greedy": f"{_HERE}:make_greedy",
        "greedy-tuned": f"{_HERE}:make_tuned_greedy",
        "exact": f"{_HERE}:make_exact",
    }
)
_TUNING_SEEDS = (1_000_001, 1_000_002)  # of training: no table's


def make_policy(name: str, scenario: Scenario, seed: int = 0) -> Policy:
    """The policy of this name, or of this file, for ``scenario``; ``seed``: of what is random in it.

    Raises PolicyError: there is no such name or file, the file is no policy, or it is one of other sizes alone.
    """
    if is_policy_file(name):
        return _of_file(policy_file(Path(name)), scenario)
    if name not in POLICIES:
        raise PolicyError(
            f"no policy is called {name!r}; known are {', '.join(POLICIES)}, the path of a policy file (.onnx, .npz), "
            "and the folder of a training that is done"
        )
    module, _, attribute = POLICIES[name].partition(":")
    maker: Maker = getattr(import_module(module), attribute)
    return maker(scenario, seed)


def is_policy_file(name: str) -> bool:
    """Whether ``name`` is a path and no name: it ends in .onnx or .npz, has a slash, or is a folder here."""
    return name not in POLICIES and (name.endswith((".onnx", ".npz")) or "/" in name or Path(name).is_dir())


def policy_file(path: Path) -> Path:
    """The policy file of a path: itself, or the one in a training's folder."""
    if not path.is_dir():
        return path
    other = path / "policy.npz"
    return other if other.exists() else path / "policy.onnx"


def _of_file(path: Path, scenario: Scenario) -> Policy:
    """The policy in a file: by its suffix."""
    if path.suffix == ".npz":
        from aecnn_deploy.offloading.baselines.ppo import load_ppo

        policy = load_ppo(path)
        policy.fit(scenario.devices.count, scenario.servers.count, len(scenario.profile.options))
        return policy
    from aecnn_deploy.offloading.agent.policy import load_policy

    return load_policy(path)


def make_shipped(scenario: Scenario, seed: int) -> Policy:
    """``shipped_policy``."""
    from aecnn_deploy.offloading.agent.policy import shipped_policy

    return shipped_policy()


def make_random(scenario: Scenario, seed: int) -> Policy:
    """``RandomPolicy``."""
    from aecnn_deploy.offloading.baselines.rules import RandomPolicy

    return RandomPolicy(seed)


def make_local(scenario: Scenario, seed: int) -> Policy:
    """``AllLocal``."""
    from aecnn_deploy.offloading.baselines.rules import AllLocal

    return AllLocal()


def make_neurosurgeon(scenario: Scenario, seed: int) -> Policy:
    """``Neurosurgeon``."""
    from aecnn_deploy.offloading.baselines.rules import Neurosurgeon

    return Neurosurgeon()


def make_selfish(scenario: Scenario, seed: int) -> Policy:
    """``Selfish``."""
    from aecnn_deploy.offloading.baselines.rules import Selfish

    return Selfish()


def make_offload(scenario: Scenario, seed: int) -> Policy:
    """``best_fixed`` on training seeds; some seconds."""
    from aecnn_deploy.offloading.baselines.tuning import best_fixed

    return best_fixed(scenario, _TUNING_SEEDS)


def make_greedy(scenario: Scenario, seed: int) -> Policy:
    """``Greedy`` as it is known."""
    from aecnn_deploy.offloading.baselines.greedy import Greedy

    return Greedy()


def make_tuned_greedy(scenario: Scenario, seed: int) -> Policy:
    """``tuned_greedy`` on training seeds; a minute or more."""
    from aecnn_deploy.offloading.baselines.tuning import tuned_greedy

    return tuned_greedy(scenario, _TUNING_SEEDS)


def make_exact(scenario: Scenario, seed: int) -> Policy:
    """``ExactPolicy``."""
    from aecnn_deploy.offloading.bounds.policy import ExactPolicy

    return ExactPolicy()
