"""How a graph policy is trained, checked when it is said."""

from dataclasses import asdict, dataclass, field
from typing import Any

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.agent.search import SearchSettings

# Seeds of training, of the curve while training, and of tables are apart: 0, 1, 2, … are the tables'.
TRAINING_SEED = 1_000_000
VALIDATION_SEED = 500_000


@dataclass(frozen=True)
class TrainSettings:
    """One training. ``slots`` are played by ``worlds`` worlds at once."""

    seed: int = 0
    slots: int = 600
    worlds: int = 16
    episode: int = 50  # slots until the worlds are drawn anew; then there is a checkpoint and a point of the curve
    width: int = 32
    rounds: int = 3
    learning_rate: float = 3e-3
    batch: int = 64
    updates: int = 4  # gradient steps after each slot
    replay: int = 4096  # decisions that are kept
    samples: int = 8  # futures of the critic while training
    search: SearchSettings = field(default_factory=lambda: SearchSettings(moves=3, changes=32, steps=3))
    price_slots: int = 40  # of each trial of the prices of work left
    price_after: tuple[float, ...] = (0.15, 0.4)  # shares of the slots after which prices are learned
    curve_slots: int = 40

    def __post_init__(self) -> None:
        counts = ("slots", "worlds", "episode", "width", "rounds", "batch", "updates", "replay", "samples")
        for name in (*counts, "price_slots", "curve_slots"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.learning_rate < 1:
            raise SettingsError(f"learning_rate is {self.learning_rate}, expected more than 0 and less than 1")
        if not 0 <= self.seed < TRAINING_SEED // 2:
            raise SettingsError(f"seed is {self.seed}, expected 0 to {TRAINING_SEED // 2 - 1}")

    def document(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)
