"""DROO itself: a fully connected actor that learns online from the best of its own order-preserving candidates.

Huang, Bi, Zhang, IEEE TMC 2019, algorithm 1, with the published sizes: hidden layers of 120 and 80, a memory of 1,024
frames, every 10 frames one step of Adam on 128 of them, K adapted every 32. What is learned in the frames of one
interval does not act before its end, so an interval's frames are decided together, and several learners (seeds) in
lockstep: the results are those of one frame after the other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.droo.physics import Floats, Modes, computation_rate
from aecnn_deploy.offloading.droo.rules import order_preserving

GAIN_SCALE: Final = 1e6  # of the inputs, so that they are about 1
ADAM_BETAS: Final = (0.09, 0.999)  # of the authors' code
INITIAL_BIAS: Final = 0.1
PORT_DECAY: Final = 1e-4  # of the weights, in the authors' PyTorch code


@dataclass(frozen=True)
class OnlineSettings:
    """The published sizes. ``fixed_candidates``: K stays there; else it is adapted.

    ``port``: as in the authors' PyTorch code, Adam begins anew at each step, weights decay, and are uniform at first;
    the default is their TensorFlow code's way.
    Raises SettingsError: a size below 1, or a learning rate outside 0 to 1.
    """

    hidden: tuple[int, int] = (120, 80)
    learning_rate: float = 0.01
    memory: int = 1024
    batch: int = 128
    interval: int = 10
    adapt_every: int = 32
    fixed_candidates: int | None = None
    port: bool = False

    def __post_init__(self) -> None:
        sizes = (*self.hidden, self.memory, self.batch, self.interval, self.adapt_every, self.fixed_candidates or 1)
        if min(sizes) < 1 or not 0 < self.learning_rate < 1:
            raise SettingsError(f"{self}: sizes must be at least 1, the learning rate between 0 and 1")


@dataclass(frozen=True)
class Frames:
    """What each learner (L) did in each frame (F): rates in bits a second, modes, and evaluations of the critic."""

    rates: Floats  # (L, F)
    modes: Modes  # (L, F, N)
    evaluations: npt.NDArray[np.int64]  # (L, F)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: on networks as small as these a second one costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class OnlineDroo:
    """Learners of ``devices`` devices, one for each seed, that see the same frames."""

    def __init__(
        self, devices: int, weights: Floats, seeds: tuple[int, ...], settings: OnlineSettings | None = None
    ) -> None:
        self.settings = settings or OnlineSettings()
        if self.settings.fixed_candidates is not None and self.settings.fixed_candidates > devices:
            raise SettingsError(
                f"{self.settings.fixed_candidates} candidates are over DROO's limit of {devices} devices"
            )
        self._weights, self._devices = weights, devices
        self._rngs = [np.random.default_rng([seed, 0xD200]) for seed in seeds]
        sizes = (devices, *self.settings.hidden, devices)
        self._parameters = [self._initial(a, b) for a, b in pairwise(sizes)]
        flat = [parameter for layer in self._parameters for parameter in layer]
        self._optimiser = torch.optim.Adam(
            flat,
            lr=self.settings.learning_rate,
            betas=ADAM_BETAS,
            weight_decay=PORT_DECAY if self.settings.port else 0.0,
        )
        self._inputs = np.zeros((self.settings.memory, devices))
        self._labels = np.zeros((len(seeds), self.settings.memory, devices))
        self._frame = 0
        first = self.settings.fixed_candidates or devices
        self._candidates = np.full(len(seeds), first)
        self._winners: npt.NDArray[np.int64] = np.zeros((len(seeds), self.settings.adapt_every), np.int64)

    def _initial(self, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer of every learner: weights (L, inputs, outputs), biases (L, 1, outputs)."""
        if self.settings.port:
            bound = inputs**-0.5
            weight, bias = (
                np.stack([rng.uniform(-bound, bound, (rows, outputs)) for rng in self._rngs]) for rows in (inputs, 1)
            )
        else:
            weight = np.stack([rng.normal(0, 1 / self._devices, (inputs, outputs)) for rng in self._rngs])
            bias = np.full((len(self._rngs), 1, outputs), INITIAL_BIAS)
        return (
            torch.tensor(weight, dtype=torch.float32, requires_grad=True),
            torch.tensor(bias, dtype=torch.float32, requires_grad=True),
        )

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = inputs
        for number, (weight, bias) in enumerate(self._parameters):
            x = torch.baddbmm(bias, x, weight)
            if number < len(self._parameters) - 1:
                x = torch.relu(x)
        return x

    def _scores(self, gains: Floats) -> Floats:
        """Each learner's logits of offloading, (L, F, N)."""
        inputs = torch.from_numpy((gains * GAIN_SCALE).astype(np.float32))
        with torch.no_grad():
            found: Floats = self._forward(inputs.expand(len(self._rngs), -1, -1)).double().numpy()
        return found

    def actor(self, learner: int) -> Callable[[Floats], Floats]:
        """Logits of gains (S, N), as one learner, by its number among the seeds, has them now."""
        layers = [(weight[learner].detach(), bias[learner].detach()) for weight, bias in self._parameters]

        def scores(gains: Floats) -> Floats:
            x = torch.from_numpy((gains * GAIN_SCALE).astype(np.float32))
            with torch.no_grad():
                for number, (weight, bias) in enumerate(layers):
                    x = torch.addmm(bias, x, weight)
                    x = torch.relu(x) if number < len(layers) - 1 else x
            found: Floats = x.double().numpy()
            return found

        return scores

    def run(self, gains: Floats, *, on_frames: Callable[[int], None] = lambda frames: None) -> Frames:
        """Decide and learn ``gains`` (F, N), frame after frame."""
        settings, learners, (frames, devices) = self.settings, len(self._rngs), gains.shape
        rates = np.zeros((learners, frames))
        modes = np.zeros((learners, frames, devices), np.bool_)
        evaluations = np.zeros((learners, frames), np.int64)
        start = 0
        while start < frames:
            # As far as neither the network nor K changes.
            to_step = settings.interval - self._frame % settings.interval
            to_adapt = settings.adapt_every - self._frame % settings.adapt_every
            stop = min(frames, start + to_step, start + to_adapt)
            here = slice(start, stop)
            rates[:, here], modes[:, here], winners = self._decide(gains[here])
            evaluations[:, here] = self._candidates[:, None]
            self._remember(gains[here], modes[:, here], winners)
            if self._frame % settings.interval == 0:
                self._learn()
            if self._frame % settings.adapt_every == 0 and settings.fixed_candidates is None:
                # A winner counts from 0; one more than the last needed is tried.
                self._candidates = np.minimum(self._winners.max(1) + 2, devices)
            on_frames(stop - start)
            start = stop
        return Frames(rates, modes, evaluations)

    def _decide(self, gains: Floats) -> tuple[Floats, Modes, npt.NDArray[np.int64]]:
        """Rates and modes of the best candidates of each learner and frame, and which of them it was."""
        most = int(self._candidates.max())
        candidates = order_preserving(self._scores(gains), most)
        wanted = np.broadcast_to((np.arange(most) < self._candidates[:, None])[:, None], candidates.shape[:-1])
        learner, frame, candidate = np.nonzero(wanted)
        rates = np.full(wanted.shape, -np.inf)
        rates[wanted] = computation_rate(gains[frame], candidates[learner, frame, candidate], self._weights)
        best = rates.argmax(-1)
        rows = np.ix_(range(best.shape[0]), range(best.shape[1]))
        return rates.max(-1), candidates[rows[0], rows[1], best], best

    def _remember(self, gains: Floats, modes: Modes, winners: npt.NDArray[np.int64]) -> None:
        frames = self._frame + np.arange(len(gains))
        self._inputs[frames % self.settings.memory] = gains * GAIN_SCALE
        self._labels[:, frames % self.settings.memory] = modes
        self._winners[:, frames % self.settings.adapt_every] = winners
        self._frame += len(gains)

    def _learn(self) -> None:
        """One step on a batch that each learner draws from what it remembers."""
        held = min(self._frame, self.settings.memory)
        rows = np.stack([rng.integers(0, held, self.settings.batch) for rng in self._rngs])
        inputs = torch.from_numpy(self._inputs[rows].astype(np.float32))
        labels = torch.from_numpy(self._labels[np.arange(len(rows))[:, None], rows].astype(np.float32))
        if self.settings.port:
            self._optimiser.state.clear()
        self._optimiser.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(self._forward(inputs), labels, reduction="none")
        # The learners share nothing: each one's gradient is its own.
        torch.autograd.backward(losses.mean((1, 2)).sum())
        self._optimiser.step()
