"""The simulator: B worlds of one scenario, slot by slot, as arrays. docs/offloading.md derives each step.

What happens to a world from outside, its tasks, channels, capacities, foreign load and the noise of computing times, is
drawn for every slot whatever was decided: two policies with the same seed meet the same world.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.mec.line import serve
from aecnn_deploy.offloading.mec.observation import LOCAL, Actions, Flags, Floats, Observation
from aecnn_deploy.offloading.mec.profile import ProfileArrays
from aecnn_deploy.offloading.mec.scenario import Scenario

# the fields of Observation that have a row for each world
_OF_WORLDS = (
    "active",
    "deadline_s",
    "device_backlog_s",
    "local_s",
    "device_s",
    "airtime_s",
    "edge_s",
    "radio_backlog_s",
    "edge_backlog_s",
)


@dataclass(frozen=True)
class Truth:
    """What a slot really brings, whatever is decided. Shapes as in Observation."""

    airtime_s: Floats  # [B, N, S, V]
    edge_s: Floats  # [B, S, V] at the slot's capacity and foreign load; inf: down
    device_noise: Floats  # [B, N] factor of computing times
    edge_noise: Floats  # [B, N]


@dataclass(frozen=True)
class Outcome:
    """What became of one slot's tasks. Shapes [B, N]."""

    active: Flags
    in_time: Flags
    accuracy: Floats  # of the tasks in time, else 0
    finish_s: Floats  # from the slot's start; inf: never
    sent: Flags  # it took the air
    energy_j: Floats | None

    @property
    def reward(self) -> Floats:
        """[B]: accuracies of the tasks in time, added."""
        total: Floats = self.accuracy.sum(axis=1)
        return total


class World:
    """``batch`` worlds of ``scenario``, drawn from ``seed``. Call ``reset``, then ``observe`` and ``step`` in turn."""

    def __init__(self, scenario: Scenario, *, batch: int = 1, seed: int = 0) -> None:
        self.scenario, self.batch = scenario, batch
        self._profile = ProfileArrays.of(scenario.profile)
        self._rng = np.random.default_rng(seed)
        self._levels = np.array(scenario.servers.capacity)
        self.reset()

    @property
    def choices(self) -> int:
        """1 + S·V."""
        return 1 + self.scenario.servers.count * len(self._profile.accuracy)

    def reset(self, seed: int | None = None) -> Observation:
        """New devices, links and servers; the first slot. ``seed``: begin the draws anew."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        rng, scenario, batch = self._rng, self.scenario, self.batch
        devices, servers, radio = scenario.devices, scenario.servers, scenario.radio
        shape = (batch, devices.count)
        self.slot = 0
        self._speed = np.exp(rng.uniform(np.log(devices.speed[0]), np.log(devices.speed[1]), shape))
        self._arrival = rng.uniform(*devices.arrival, shape)
        self._image_bytes = rng.uniform(*devices.image_kb, shape) * 1e3
        self._position = rng.uniform(0, radio.area_m, (*shape, 2))
        self._heading = rng.uniform(0, 2 * np.pi, shape)
        self._towers = _grid(servers.count, radio.area_m)
        self._shadow_db = rng.normal(0, radio.shadowing_db, (*shape, servers.count))
        self._taps = _taps(rng, (*shape, servers.count, radio.diversity))
        self._level = rng.integers(len(self._levels), size=(batch, servers.count))
        self._foreign = rng.uniform(*servers.foreign, (batch, servers.count))
        self._device_backlog = np.zeros(shape)
        self._radio_backlog = np.zeros((batch, servers.count))
        self._edge_backlog = np.zeros((batch, servers.count))
        profile = self._profile
        prepare = devices.prepare_ms / 1e3
        self._local_s = (prepare + profile.local_s) / self._speed
        self._device_s = (prepare + profile.device_s) / self._speed[..., None]
        self._payload = np.where(
            profile.sends_picture, self._image_bytes[..., None], profile.payload_bytes
        )  # [B, N, V]
        self._bits = 8 * self._payload[:, :, None, :]  # [B, N, 1, V]
        self._snr = self._mean_snr()
        self._seen_speed = self._server_speed()
        self._seen_up = self._up()
        self._draw()
        return self.observe()

    def draws(self) -> dict[str, Any]:
        """Where the draws are: ``go_on`` of another world of this scenario and size, then ``reset``, meets the same."""
        return dict(self._rng.bit_generator.state)

    def go_on(self, draws: dict[str, Any]) -> None:
        """Draw on from ``draws``, beginning with the next ``reset``."""
        self._rng.bit_generator.state = draws

    def observe(self) -> Observation:
        """What a policy sees of the slot that is to be decided."""
        return self._observation

    def truth(self) -> Truth:
        """What the slot will really bring: for bounds, never for a policy."""
        return self._truth

    def step(self, actions: Actions) -> Outcome:
        """Decide the slot: [B, N] of 0 to S·V. Raises PolicyError: other shapes or numbers."""
        outcome, device, radio, edge = settle(self._observation, self._truth, actions, self.scenario)
        slot_s = self._observation.slot_s
        self._device_backlog = np.maximum(device - slot_s, 0.0)
        self._radio_backlog = np.maximum(radio - slot_s, 0.0)
        down = ~self._up()
        self._edge_backlog = np.where(down, 0.0, np.maximum(edge - slot_s, 0.0))
        self._seen_speed, self._seen_up = self._server_speed(), self._up()
        self.slot += 1
        self._advance()
        self._draw()
        return outcome

    def _up(self) -> Flags:
        """[S]: which servers run in this slot."""
        up = np.ones(self.scenario.servers.count, bool)
        for server, first, back in self.scenario.servers.fails:
            if first <= self.slot < back:
                up[server] = False
        return up

    def _server_speed(self) -> Floats:
        """[B, S]: what is left of a server of capacity 1."""
        speed: Floats = self._levels[self._level] * (1 - self._foreign)
        return speed

    def _advance(self) -> None:
        """Channels, capacities, foreign load and places, one slot on."""
        rng, servers, radio, devices = self._rng, self.scenario.servers, self.scenario.radio, self.scenario.devices
        memory = radio.memory
        fresh = _taps(rng, self._taps.shape)
        self._taps = memory * self._taps + np.sqrt(1 - memory**2) * fresh
        changes = rng.random(self._level.shape) >= servers.stay
        drawn = rng.integers(len(self._levels), size=self._level.shape)
        self._level = np.where(changes, drawn, self._level)
        changes = rng.random(self._level.shape) >= servers.stay
        self._foreign = np.where(changes, rng.uniform(*servers.foreign, self._foreign.shape), self._foreign)
        if devices.move_m_s:
            self._heading = self._heading + rng.normal(0, 0.2, self._heading.shape)
            way = devices.move_m_s * self.scenario.slot_ms / 1e3
            step = way * np.stack([np.cos(self._heading), np.sin(self._heading)], axis=-1)
            place = self._position + step
            self._position = np.clip(place, 0, radio.area_m)
            self._snr = self._mean_snr()
            self._heading = np.where((place != self._position).any(axis=-1), self._heading + np.pi / 2, self._heading)

    def _draw(self) -> None:
        """The slot's tasks, what becomes of them, and what is seen of it beforehand."""
        rng, scenario = self._rng, self.scenario
        unsure, radio = scenario.uncertainty, scenario.radio
        shape = self._arrival.shape
        active = rng.random(shape) < self._arrival
        deadline = rng.uniform(*scenario.devices.deadline_ms, shape) / 1e3
        device_noise = np.exp(rng.normal(0, 1, shape) * unsure.device_jitter - unsure.device_jitter**2 / 2)
        edge_noise = np.exp(rng.normal(0, 1, shape) * unsure.edge_jitter - unsure.edge_jitter**2 / 2)
        missed = _taps(rng, self._taps.shape)
        airtime = self._bits / self._rate(self._taps)[..., None]
        seen_airtime = airtime
        if unsure.estimate_error:
            seen_taps = np.sqrt(1 - unsure.estimate_error) * self._taps + np.sqrt(unsure.estimate_error) * missed
            seen_airtime = self._bits / self._rate(seen_taps)[..., None]
        speed, up = self._server_speed(), self._up()
        seen_speed, seen_up = (speed, up) if unsure.known_load else (self._seen_speed, self._seen_up)
        service = self._service(speed, up)
        self._truth = Truth(airtime, service, device_noise, edge_noise)
        profile = self._profile
        self._observation = Observation(
            active=active,
            deadline_s=deadline,
            device_backlog_s=self._device_backlog,
            local_s=self._local_s,
            device_s=self._device_s,
            airtime_s=seen_airtime,
            edge_s=service if unsure.known_load else self._service(seen_speed, seen_up),
            radio_backlog_s=self._radio_backlog,
            edge_backlog_s=self._edge_backlog,
            accuracy=profile.accuracy,
            local_accuracy=profile.local_accuracy,
            hop_s=radio.hop_ms / 1e3,
            slot_s=scenario.slot_ms / 1e3,
            shared_radio=radio.shared,
        )

    def _service(self, speed: Floats, up: Flags) -> Floats:
        """[B, S, V] seconds of one task on each server."""
        seconds = self._profile.edge_s / speed[..., None]
        return seconds if up.all() else np.where(up[:, None], seconds, np.inf)

    def _mean_snr(self) -> Floats:
        """[B, N, S]: without fading, as a factor."""
        radio = self.scenario.radio
        apart = self._position[:, :, None, :] - self._towers
        metres = np.maximum(np.sqrt((apart**2).sum(axis=-1)), 1.0)
        loss_db = radio.loss_at_1m_db + 10 * radio.loss_exponent * np.log10(metres) + self._shadow_db
        noise_dbm = -174 + 10 * np.log10(radio.bandwidth_mhz * 1e6) + radio.noise_figure_db
        factor: Floats = 10 ** ((radio.power_dbm - loss_db - noise_dbm) / 10)
        return factor

    def _rate(self, taps: NDArray[np.complex128]) -> Floats:
        """[B, N, S] bits a second."""
        radio = self.scenario.radio
        power = np.add.reduce(taps.real**2 + taps.imag**2, axis=-1) / radio.diversity
        gain = 1 - radio.fading + radio.fading * power
        bits = np.minimum(radio.efficiency * np.log2(1 + self._snr * gain), radio.most_bits)
        rate: Floats = radio.bandwidth_mhz * 1e6 * np.maximum(bits, 1e-6)
        return rate


def settle(
    seen: Observation, truth: Truth, actions: Actions, scenario: Scenario
) -> tuple[Outcome, Floats, Floats, Floats]:
    """What becomes of a slot under ``actions`` [B, N], and when devices, radios and servers are free again."""
    if actions.shape != seen.active.shape or not np.issubdtype(actions.dtype, np.integer):
        raise PolicyError(
            f"a decision has shape {actions.shape} of {actions.dtype}, expected integers of {seen.active.shape}: "
            "one number for each device of each world"
        )
    if actions.size and (actions.min() < 0 or actions.max() >= seen.choices):
        raise PolicyError(
            f"a decision holds {actions.min()} to {actions.max()}, expected 0 (local) to {seen.choices - 1}"
        )
    batch, devices = actions.shape
    choice = np.maximum(actions - 1, 0)  # s·V + v
    at, option = np.divmod(choice, seen.options)
    offloaded = (actions > LOCAL) & seen.active
    server = np.where(offloaded, at, -1)
    local = seen.local_fits() & ~offloaded
    task = np.arange(batch * devices).reshape(batch, devices)
    world = np.arange(batch)[:, None]
    places = seen.servers * seen.options
    work = np.where(offloaded, seen.device_s.reshape(-1)[task * seen.options + option], seen.local_s)
    work = np.where(offloaded | local, work * truth.device_noise, 0.0)
    ready = seen.device_backlog_s + work
    airtime = truth.airtime_s.reshape(-1)[task * places + choice]
    service = truth.edge_s.reshape(-1)[world * places + choice] * truth.edge_noise
    served = serve(
        server,
        ready,
        airtime,
        service,
        seen.deadline_s - seen.hop_s,
        seen.radio_backlog_s,
        seen.edge_backlog_s,
        shared_radio=seen.shared_radio,
    )
    finish = np.where(local, ready, served.finish_s + seen.hop_s)
    in_time = seen.active & (finish <= seen.deadline_s)
    worth = np.where(offloaded, seen.accuracy[option], seen.local_accuracy)
    energy = None
    if scenario.energy is not None:
        spent = np.where(served.sent, airtime, 0.0)
        energy = work * scenario.energy.compute_w + spent * scenario.energy.transmit_w
    outcome = Outcome(seen.active, in_time, np.where(in_time, worth, 0.0), finish, served.sent, energy)
    return outcome, ready, served.radio_free_s, served.edge_free_s


def certain_truth(seen: Observation) -> Truth:
    """The truth if everything came as it is seen."""
    ones = np.ones(seen.active.shape)
    return Truth(seen.airtime_s, seen.edge_s, ones, ones)


def repeated(seen: Observation, times: int) -> Observation:
    """Each world of ``seen`` ``times`` times, one after another: rows for as many candidate decisions."""
    arrays: dict[str, Any] = {name: np.repeat(getattr(seen, name), times, axis=0) for name in _OF_WORLDS}
    return replace(seen, **arrays)


def _grid(servers: int, side: float) -> Floats:
    """[S, 2]: places of the access points, evenly within a square."""
    columns = int(np.ceil(np.sqrt(servers)))
    rows = int(np.ceil(servers / columns))
    places = [((i % columns + 0.5) / columns, (i // columns + 0.5) / rows) for i in range(servers)]
    return np.array(places) * side


def _taps(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Complex Gaussian of power 1."""
    parts = rng.normal(0, np.sqrt(0.5), (*shape, 2))
    taps: NDArray[np.complex128] = parts.view(np.complex128)[..., 0]
    return taps
