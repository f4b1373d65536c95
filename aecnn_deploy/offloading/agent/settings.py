"""How a graph policy is trained, checked when it is said."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.agent.search import SearchSettings

# As deployed: within 2 ms for 14 devices, 2 servers and 7 options on one core.
SEARCH = SearchSettings(moves=2, changes=24, steps=1, joins=6)

# Seeds of training, of the curve while training, and of tables are apart: 0, 1, 2, … are the tables'.
TRAINING_SEED = 1_000_000
VALIDATION_SEED = 500_000


@dataclass(frozen=True)
class TrainSettings:
    """One training. ``slots`` are played by ``worlds`` worlds at once."""

    method: str = "grl"
    seed: int = 0
    slots: int = 600
    worlds: int = 16
    episode: int = 50  # slots until the worlds are drawn anew; then there is a checkpoint and a point of the curve
    width: int = 32
    rounds: int = 3
    learning_rate: float = 3e-3
    batch: int = 64
    updates: int = 4  # gradient steps after each slot
    replay: int = 8192  # decisions that are kept
    flat: bool = False  # the actor is DROO's plain network, not a graph network
    plain: bool = False  # the critic takes what is seen at face value, and work left costs nothing
    deployed: SearchSettings = SEARCH  # of the policy when it is trained
    explore: float = 0.1  # chance of a device to do otherwise, in every other world: the learned critic must see it
    samples: int = 8  # futures of the critic while training
    search: SearchSettings = field(default_factory=lambda: SearchSettings(moves=3, changes=32, steps=3, anchors=True))
    price_slots: int = 40  # of each trial of the prices of work left
    price_after: tuple[float, ...] = (0.3,)  # shares of the slots after which prices are learned
    curve_slots: int = 40

    def __post_init__(self) -> None:
        counts = ("slots", "worlds", "episode", "width", "rounds", "batch", "updates", "replay", "samples")
        for name in (*counts, "price_slots", "curve_slots"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.learning_rate < 1:
            raise SettingsError(f"learning_rate is {self.learning_rate}, expected more than 0 and less than 1")
        if not 0 <= self.explore <= 1:
            raise SettingsError(f"explore is {self.explore}, expected 0 to 1")
        if not 0 <= self.seed < TRAINING_SEED // 2:
            raise SettingsError(f"seed is {self.seed}, expected 0 to {TRAINING_SEED // 2 - 1}")

    def for_slots(self, slots: int) -> "TrainSettings":
        """For at least so many slots, in whole episodes."""
        return replace(self, slots=-(-slots // self.episode) * self.episode)

    def document(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)


# As many candidates as SEARCH, all of them moved thresholds, as DROO has no others.
_THRESHOLDS = SearchSettings(moves=6, steps=0)

# How a method of the same scheme is trained. What each is of the literature: docs/baselines.md.
METHODS: Mapping[str, TrainSettings] = MappingProxyType(
    {
        "grl": TrainSettings(),
        "droo": TrainSettings(
            method="droo",
            flat=True,
            plain=True,
            explore=0.0,
            search=_THRESHOLDS,
            deployed=_THRESHOLDS,
        ),
        "droo-futures": TrainSettings(method="droo-futures", flat=True),  # DROO's actor with our critic and search
        "grl-plain": TrainSettings(method="grl-plain", plain=True),  # our actor and search without either
    }
)


def settings_of(method: str) -> TrainSettings:
    """The settings of METHODS. Raises SettingsError: there is no such method."""
    if method not in METHODS:
        raise SettingsError(f"no method is called {method!r}; known are {', '.join(METHODS)}")
    return METHODS[method]
