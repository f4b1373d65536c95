"""What every policy is: observations in, decisions out."""

from typing import Protocol

from aecnn_deploy.offloading.mec.observation import Actions, Observation


class Policy(Protocol):
    """Decides slot by slot for B worlds at once. What it remembers between slots, it keeps for each world."""

    @property
    def name(self) -> str:
        """As tables name it."""

    def reset(self, batch: int) -> None:
        """A new episode of ``batch`` worlds begins: what was remembered is forgotten."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N]: 0 local, 1 + s·V + v to server s by option v; devices without a task may get anything."""
