"""Training the actor: play, let the critic choose among candidates, keep the choice, learn to score it highest.

The scheme is DROO's (Huang, Bi, Zhang, algorithm 1), with a graph network for the actor and the critic by model over
learned residuals: no policy gradient, but replay and cross entropy with the best candidate that was found.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from aecnn_deploy.offloading.agent.chances import ChanceTrainer
from aecnn_deploy.offloading.agent.critic import ModelCritic, Prices
from aecnn_deploy.offloading.agent.features import Floats32, Graph, graph_of
from aecnn_deploy.offloading.agent.network import GraphActor
from aecnn_deploy.offloading.agent.residuals import Experience, Residuals
from aecnn_deploy.offloading.agent.search import decide
from aecnn_deploy.offloading.agent.settings import TRAINING_SEED, VALIDATION_SEED, TrainSettings
from aecnn_deploy.offloading.baselines.flat_actor import FlatActor
from aecnn_deploy.offloading.mec.observation import Actions, Floats, Observation
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.mec.world import World

GRAPH_PARTS = ("path", "local", "server", "active")
_PRICE_STEPS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
_CRITIC_SLOTS = 10  # until the critic takes up what has been learned of estimates meanwhile, with other futures


@dataclass
class Replay:
    """The last decisions, as arrays of a ring."""

    graphs: Graph
    actions: Actions
    filled: int = 0
    next: int = 0

    @classmethod
    def of(cls, graph: Graph, size: int) -> "Replay":
        """An empty ring for graphs of this shape."""

        def room(values: Floats32) -> Floats32:
            return np.zeros((size, *values.shape[1:]), np.float32)

        rooms = Graph(room(graph.path), room(graph.local), room(graph.server), room(graph.active))
        return cls(rooms, np.zeros((size, graph.active.shape[1]), np.int64))

    def put(self, graph: Graph, actions: Actions) -> None:
        """B decisions more; the oldest make room."""
        size = len(self.actions)
        places = (self.next + np.arange(len(actions))) % size
        for name in GRAPH_PARTS:
            getattr(self.graphs, name)[places] = getattr(graph, name)
        self.actions[places] = actions
        self.next = int((self.next + len(actions)) % size)
        self.filled = min(size, self.filled + len(actions))

    def batch(self, count: int, rng: np.random.Generator) -> tuple[list[torch.Tensor], torch.Tensor]:
        """``count`` decisions, drawn evenly."""
        places = rng.integers(self.filled, size=count)
        graph = self.graphs
        inputs = [torch.from_numpy(part[places]) for part in (graph.path, graph.local, graph.server, graph.active)]
        return inputs, torch.from_numpy(self.actions[places])


def tensors(graph: Graph) -> list[torch.Tensor]:
    """What the actor takes."""
    return [torch.from_numpy(part) for part in (graph.path, graph.local, graph.server, graph.active)]


def loss_of(actor: GraphActor | FlatActor, inputs: list[torch.Tensor], actions: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the decisions of devices that have a task, mean over them and over the actor's rounds."""
    active = inputs[3]
    losses = []
    for scores in actor.all_scores(*inputs):
        each = nn.functional.cross_entropy(scores.flatten(0, 1), actions.flatten(), reduction="none")
        losses.append((each * active.flatten()).sum() / active.sum().clamp(min=1.0))
    return torch.stack(losses).mean()


class Trainer:
    """One training, slot by slot; ``state`` and ``restore`` let it go on elsewhere."""

    def __init__(self, scenario: Scenario, settings: TrainSettings) -> None:
        self.scenario, self.settings = scenario, settings
        torch.manual_seed(settings.seed)
        self.actor: GraphActor | FlatActor = GraphActor(settings.width, settings.rounds)
        if settings.flat:
            options = len(scenario.profile.options)
            self.actor = FlatActor(scenario.devices.count, scenario.servers.count, options)
        self.optimiser = torch.optim.Adam(self.actor.parameters(), settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, settings.learning_rate, total_steps=settings.slots * settings.updates + 1
        )
        self.rng = np.random.default_rng(settings.seed)
        self.experience, self.prices = Experience(), Prices()
        self.chances = ChanceTrainer(settings.seed)
        self.world = World(scenario, batch=settings.worlds, seed=TRAINING_SEED + settings.seed)
        self.replay: Replay | None = None
        self.slot = 0
        self.loss = float("nan")
        self.scores: list[float] = []

    def scored(self, seen: Observation) -> Floats:
        """The actor's scores [B, N, C]."""
        with torch.no_grad():
            scores: Floats = self.actor(*tensors(graph_of(seen))).double().numpy()
        return scores

    def critic(self, *, samples: int | None = None, seed: int | None = None) -> ModelCritic:
        """The critic by what has been learned so far."""
        settings = self.settings
        return ModelCritic(
            self.residuals(),
            self.prices,
            samples=samples or settings.samples,
            seed=self.slot if seed is None else seed,
        )

    def play(self) -> None:
        """One slot: decide, learn what tasks took, keep the decision, take gradient steps."""
        settings = self.settings
        if self.slot % settings.episode == 0:
            self.world.reset()
        if self.slot % _CRITIC_SLOTS == 0:
            self._critic = self.critic()
        seen, truth = self.world.observe(), self.world.truth()
        actions = decide(self.scored(seen), seen, self._critic, settings.search)
        played = self._explored(actions)
        outcome = self.world.step(played)
        self.experience.learn(seen, truth, played, outcome.sent)
        self.chances.learn(seen, played, outcome.in_time)
        self.scores.append(float(outcome.reward.sum() / max(outcome.active.sum(), 1)))
        graph = graph_of(seen)
        if self.replay is None:
            self.replay = Replay.of(graph, settings.replay)
        self.replay.put(graph, actions)
        losses = []
        for _ in range(settings.updates):
            inputs, chosen = self.replay.batch(settings.batch, self.rng)
            loss = loss_of(self.actor, inputs, chosen)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0)
            self.optimiser.step()
            self.schedule.step()
            losses.append(float(loss.detach()))
        self.loss = float(np.mean(losses))
        self.slot += 1
        if not settings.plain and self.slot in {int(share * settings.slots) for share in settings.price_after}:
            self.learn_prices()

    def _explored(self, actions: Actions) -> Actions:
        """``actions``, but for some devices of every other world."""
        otherwise = self.rng.random(actions.shape) < self.settings.explore
        otherwise[::2] = False
        return np.where(otherwise, self.rng.integers(self.world.choices, size=actions.shape), actions)

    def learn_prices(self) -> None:
        """What a second of work left costs: each price in turn, as the worlds of training seeds reward it."""
        for name in ("edge", "radio", "device"):
            trials = [replace(self.prices, **{name: price}) for price in _PRICE_STEPS]
            rewards = [self._trial(prices) for prices in trials]
            self.prices = trials[int(np.argmax(rewards))]
        self._critic = self.critic()

    def _trial(self, prices: Prices) -> float:
        """The mean reward of a task under ``prices``; every trial meets the same worlds."""
        settings = self.settings
        critic = ModelCritic(self.residuals(), prices, samples=settings.samples, seed=self.slot)
        seed = TRAINING_SEED * 2 + settings.seed + self.slot
        return self._run(critic, seed, settings.price_slots)

    def validate(self) -> float:
        """The mean reward of a task on validation seeds, with the search that a deployed policy has."""
        return self._run(self.critic(seed=0), VALIDATION_SEED + self.settings.seed, self.settings.curve_slots)

    def _run(self, critic: ModelCritic, seed: int, slots: int) -> float:
        world = World(self.scenario, batch=self.settings.worlds, seed=seed)
        worth = arrived = 0.0
        for _ in range(slots):
            seen = world.observe()
            outcome = world.step(decide(self.scored(seen), seen, critic, self.settings.deployed))
            worth += outcome.reward.sum()
            arrived += outcome.active.sum()
        return float(worth / max(arrived, 1.0))

    def residuals(self) -> Residuals:
        """What is learned of the estimates; nothing, where they are taken at face value."""
        return Residuals.none() if self.settings.plain else self.experience.residuals()

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs to go on as if nothing had been; only between episodes."""
        replay = self.replay
        return {
            "slot": self.slot,
            "actor": self.actor.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": {
                "last_epoch": self.schedule.last_epoch,
                "_step_count": self.schedule.state_dict()["_step_count"],
            },
            "rng": json.dumps(self.rng.bit_generator.state),
            "world": json.dumps(self.world.draws()),
            "prices": asdict(self.prices),
            "experience": {name: torch.from_numpy(logs) for name, logs in self.experience.logs().items()},
            "chances": self.chances.state(),
            "scores": self.scores,
            "replay": None
            if replay is None
            else {
                "filled": replay.filled,
                "next": replay.next,
                "actions": torch.from_numpy(replay.actions),
                **{name: torch.from_numpy(getattr(replay.graphs, name)) for name in GRAPH_PARTS},
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``. Raises KeyError, RuntimeError, ValueError or TypeError: it is no such state."""
        self.actor.load_state_dict(state["actor"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict({**self.schedule.state_dict(), **state["schedule"]})
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.world.go_on(json.loads(state["world"]))
        self.prices = Prices(**state["prices"])
        self.experience.put({name: logs.numpy() for name, logs in state["experience"].items()})
        self.chances.restore(state["chances"])
        self.scores = list(state["scores"])
        kept = state["replay"]
        if kept is not None:
            graph = Graph(**{name: kept[name].numpy() for name in GRAPH_PARTS})
            self.replay = Replay(graph, kept["actions"].numpy(), kept["filled"], kept["next"])
        self.slot = state["slot"]
