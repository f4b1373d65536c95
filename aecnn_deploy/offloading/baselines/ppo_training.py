"""Training of the baseline ``ppo``: MaskablePPO over many worlds in one array step. Needs the extra ``ppo``."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from aecnn_deploy import __version__
from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.agent.settings import TRAINING_SEED, VALIDATION_SEED
from aecnn_deploy.offloading.baselines.ppo import POLICY, PpoPolicy, PpoSettings, ppo_facts, write_ppo
from aecnn_deploy.offloading.mec.env import expected_arrivals
from aecnn_deploy.offloading.mec.flat import CLIP, FlatFeatures, Vectors, scale_of
from aecnn_deploy.offloading.mec.observation import Actions, Flags
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.mec.world import World
from aecnn_deploy.optional import require

SETTINGS, CURVES = "settings.json", "curves.jsonl"


class Worlds(VecEnv):
    """``worlds`` worlds in one array step as stable-baselines3 wants them: reset in the step that ends an episode.

    All end together, truncated after ``episode`` slots. Spaces and rewards as ``OffloadingEnv``'s.
    """

    render_mode = None

    def __init__(self, scenario: Scenario, worlds: int, episode: int, seed: int) -> None:
        self.world = World(scenario, batch=worlds, seed=seed)
        self.features = FlatFeatures(scenario)
        self.episode, self._expected = episode, expected_arrivals(scenario)
        self.worth = self.arrived = 0.0  # since the curve's last point
        choices = np.full(self.features.devices, self.features.choices, np.int64)
        box: spaces.Box[Any] = spaces.Box(0.0, CLIP, (self.features.size,), np.float32)
        super().__init__(worlds, box, spaces.MultiDiscrete(choices))

    def reset(self) -> Vectors:
        """New worlds; what ``seed`` was told is not heard: the draws are those of ``World``."""
        self.world.reset()
        return self.vectors()

    def step_async(self, actions: Actions) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Vectors, Any, Flags, list[dict[str, Any]]]:
        outcome = self.world.step(self._actions)
        self.worth += float(outcome.reward.sum())
        self.arrived += float(outcome.active.sum())
        ends = self.world.slot >= self.episode
        vectors = self.vectors()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ends:  # truncated: the value of what would have come counts
            infos = [{"terminal_observation": vector, "TimeLimit.truncated": True} for vector in vectors]
            vectors = self.reset()
        rewards = (outcome.reward / self._expected).astype(np.float32)
        return vectors, rewards, np.full(self.num_envs, ends), infos

    def vectors(self) -> Vectors:
        """[worlds, size] of the slot to be decided."""
        return self.features.of(self.world.observe())

    def action_masks(self) -> Flags:
        """[worlds, N·(1 + S·V)]."""
        return self.features.masks(self.world.observe())

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"the worlds are one array; {attr_name} cannot be set for some of them")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        rows = getattr(self, method_name)(*method_args, **method_kwargs)
        return [rows[index] for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class _Curve(BaseCallback):
    """A point of the curve for each rollout that has been learned from."""

    def __init__(self, run: "_Run", on_step: Callable[[int], None] | None) -> None:
        super().__init__()
        self._run, self._on_step_call = run, on_step

    def _on_step(self) -> bool:
        if self._on_step_call is not None:
            self._on_step_call(self.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._run.point(self.num_timesteps)

    def _on_training_end(self) -> None:
        self._run.point(self.num_timesteps)


class _Run:
    """One training and its folder."""

    def __init__(self, scenario: Scenario, settings: PpoSettings, out: Path) -> None:
        self.scenario, self.settings, self.out = scenario, settings, out
        self.worlds = Worlds(scenario, settings.worlds, settings.episode, TRAINING_SEED + settings.seed)
        hidden = [settings.width] * settings.layers
        self.model: Any = require("sb3_contrib", why="policy train --method ppo").MaskablePPO(
            "MlpPolicy",
            self.worlds,
            learning_rate=settings.learning_rate,
            n_steps=settings.n_steps,
            batch_size=settings.worlds * settings.n_steps // settings.minibatches,
            n_epochs=settings.n_epochs,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
            clip_range=settings.clip_range,
            ent_coef=settings.ent_coef,
            vf_coef=settings.vf_coef,
            policy_kwargs={"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": nn.Tanh},
            seed=settings.seed,
            device="cpu",
        )
        self._start_s = time.monotonic()

    def policy(self) -> PpoPolicy:
        """As the network is now."""
        layers = [*self.model.policy.mlp_extractor.policy_net, self.model.policy.action_net]
        arrays = tuple(_arrays(each) for each in layers if isinstance(each, nn.Linear))
        return PpoPolicy(ppo_facts(self.scenario, self.settings, scale_of(self.scenario)), arrays)

    def point(self, played: int) -> None:
        """``played``: slots over all worlds; the curve counts those of each world, as the graph policy's does."""
        worlds = self.worlds
        score, success = self._validate()
        point = {
            "slot": played // self.settings.worlds,
            "loss": round(float(self.model.logger.name_to_value["train/loss"]), 5),
            "train_score": round(worlds.worth / max(worlds.arrived, 1.0), 5),
            "eval_score": round(score, 5),
            "eval_success": round(success, 5),
            "seconds": round(time.monotonic() - self._start_s, 1),
            "seed": self.settings.seed,
        }
        worlds.worth = worlds.arrived = 0.0
        with (self.out / CURVES).open("a") as file:
            file.write(json.dumps(point) + "\n")

    def _validate(self) -> tuple[float, float]:
        """The mean reward of a task on validation seeds, and the share of the tasks in time."""
        settings, policy = self.settings, self.policy()
        world = World(self.scenario, batch=settings.worlds, seed=VALIDATION_SEED + settings.seed)
        worth = arrived = in_time = 0.0
        for _ in range(settings.curve_slots):
            outcome = world.step(policy.decide(world.observe()))
            worth += float(outcome.reward.sum())
            arrived += float(outcome.active.sum())
            in_time += float(outcome.in_time.sum())
        return worth / max(arrived, 1.0), in_time / max(arrived, 1.0)


def train(
    scenario: Scenario, settings: PpoSettings, out: Path, *, on_step: Callable[[int], None] | None = None
) -> Path:
    """As ``train_ppo`` says."""
    rollout = settings.worlds * settings.n_steps
    settings = replace(settings, steps=-(-settings.steps // rollout) * rollout)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PolicyError(f"{out} is not empty; choose another folder, or remove it first")
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "version": __version__,
        "method": "ppo",
        "scenario": json.loads(msgspec.json.encode(scenario)),
        "settings": settings.document(),
    }
    (out / SETTINGS).write_text(json.dumps(document, indent=2))
    run = _Run(scenario, settings, out)
    run.model.learn(settings.steps, callback=_Curve(run, on_step), log_interval=None)
    path = out / POLICY
    write_ppo(run.policy(), path)
    return path


def _arrays(layer: nn.Linear) -> tuple[Vectors, Vectors]:
    """Weights [in, out] and biases [out], copied."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return np.ascontiguousarray(weight.T).copy(), bias.copy()
