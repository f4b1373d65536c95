"""From scores to a decision: candidates that keep the scores' order, the critic's best, and changes around it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.agent.candidates import groups_of, joined_changes, order_preserving, single_changes
from aecnn_deploy.offloading.mec.observation import Actions, Observation

Floats = NDArray[np.float64]

_BARRED = 1e6  # off the score of a path that is late even alone


class Critic(Protocol):
    """Says what candidate decisions are worth."""

    def score(self, seen: Observation, candidates: Actions) -> Floats:
        """[B, K] of candidates [B, K, N]."""


@dataclass(frozen=True)
class SearchSettings:
    """How many candidates the critic sees: 1 + groups·``moves``, then ``steps`` times ``changes`` around the best and
    ``joins`` of several of them at once."""

    moves: int = 2
    changes: int = 16
    steps: int = 1
    joins: int = 4
    anchors: bool = False  # all offloaded by each option, too: what an actor that knows nothing yet may never propose

    def __post_init__(self) -> None:
        if self.moves < 0 or self.changes < 1 or self.steps < 0 or self.joins < 0:
            raise SettingsError(f"{self}: expected moves, steps and joins of at least 0, and at least one change")

    def evaluations(self, servers: int, options: int) -> int:
        """How many candidates of one world the critic sees at most."""
        return 1 + len(groups_of(servers, options)) * self.moves + self.steps * (self.changes + self.joins)


def decide(scores: Floats, seen: Observation, critic: Critic, settings: SearchSettings) -> Actions:
    """[B, N]: the best decision found from scores [B, N, 1 + S·V]."""
    scores = np.where(seen.feasible(), scores, scores - _BARRED)
    if settings.moves == 0 and settings.steps == 0:
        first: Actions = scores.argmax(axis=2)
        return first
    groups = groups_of(seen.servers, seen.options)
    candidates = order_preserving(scores, groups, settings.moves)
    if settings.anchors:
        candidates = np.concatenate([candidates, anchored(seen)], axis=1)
    # One call of the critic for many candidates is cheaper than many for few: the first changes are around the first.
    around, first = candidates[:, 0], candidates.shape[1]
    if settings.steps:
        candidates = np.concatenate([candidates, single_changes(scores, around, settings.changes)], axis=1)
    worth = critic.score(seen, candidates)
    changed, changed_worth, found = candidates[:, first:], worth[:, first:], worth[:, 0]
    for step in range(settings.steps):
        if step:
            around, found = _best(candidates, worth)
            changed = single_changes(scores, around, settings.changes)
            changed_worth = critic.score(seen, changed)
            candidates, worth = _more(candidates, worth, changed, changed_worth)
        if settings.joins:
            joined = joined_changes(around, changed, changed_worth - found[:, None], settings.joins)
            candidates, worth = _more(candidates, worth, joined, critic.score(seen, joined))
        if step and not (worth.max(axis=1) > found).any():
            break
    return _best(candidates, worth)[0]


def anchored(seen: Observation) -> Actions:
    """[B, V, N]: every device by one option to the server where it would be done first if it were alone."""
    server = seen.alone_s().argmin(axis=2)  # [B, N, V]
    made: Actions = (1 + server * seen.options + np.arange(seen.options)).transpose(0, 2, 1)
    return made


def _best(candidates: Actions, worth: Floats) -> tuple[Actions, Floats]:
    first = worth.argmax(axis=1)
    rows = np.arange(len(first))
    return candidates[rows, first], worth[rows, first]


def _more(candidates: Actions, worth: Floats, others: Actions, theirs: Floats) -> tuple[Actions, Floats]:
    return np.concatenate([candidates, others], axis=1), np.concatenate([worth, theirs], axis=1)
