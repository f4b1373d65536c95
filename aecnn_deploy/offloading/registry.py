"""Policies by name. A name's module is imported when the policy is made: most need nothing but numpy, some torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.policy import Policy

Maker = Callable[[Scenario, int], Policy]

# name -> "module:function" of a scenario and a seed
POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "random": "aecnn_deploy.offloading.registry:make_random",
        "local": "aecnn_deploy.offloading.registry:make_local",
    }
)


def make_policy(name: str, scenario: Scenario, seed: int = 0) -> Policy:
    """The policy of this name for ``scenario``; ``seed``: of what is random in it. Raises PolicyError: no such name."""
    if name not in POLICIES:
        raise PolicyError(f"no policy is called {name!r}; known are {', '.join(POLICIES)}")
    module, _, attribute = POLICIES[name].partition(":")
    maker: Maker = getattr(import_module(module), attribute)
    return maker(scenario, seed)


def make_random(scenario: Scenario, seed: int) -> Policy:
    """``RandomPolicy``."""
    from aecnn_deploy.offloading.baselines.simple import RandomPolicy

    return RandomPolicy(seed)


def make_local(scenario: Scenario, seed: int) -> Policy:
    """``AllLocal``."""
    from aecnn_deploy.offloading.baselines.simple import AllLocal

    return AllLocal()
