"""What a policy sees at the start of a slot, of the simulator and of the field alike.

Shapes: B worlds at once, N devices, S servers, V options. A decision is an integer for each device: 0 computes
locally, 1 + s·V + v offloads to server s by option v.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Actions = NDArray[np.int64]

LOCAL = 0


@dataclass(frozen=True)
class Observation:
    """One slot of B worlds. Seconds count from the slot's start; times are estimates, and may turn out otherwise."""

    active: Flags  # [B, N] has a task in this slot
    deadline_s: Floats  # [B, N] of the task
    device_backlog_s: Floats  # [B, N] until the device's processor is free
    local_s: Floats  # [B, N] the unsplit network on the device
    device_s: Floats  # [B, N, V] preparing, head, encoding
    airtime_s: Floats  # [B, N, S, V] sending, alone; inf: out of reach
    edge_s: Floats  # [B, S, V] decoding, recovery and tail, at the capacity and foreign load last seen; inf: down
    radio_backlog_s: Floats  # [B, S] until the access point has sent what earlier slots left
    edge_backlog_s: Floats  # [B, S] until the server has done what earlier slots left
    accuracy: Floats  # [V] top-1, 0 to 1
    local_accuracy: float
    hop_s: float  # what comes on top of each offloaded task: propagation, the answer's way back
    slot_s: float
    shared_radio: bool  # the tasks sent to one server go over the air one after another

    @property
    def batch(self) -> int:
        """B."""
        return int(self.active.shape[0])

    @property
    def devices(self) -> int:
        """N."""
        return int(self.active.shape[1])

    @property
    def servers(self) -> int:
        """S."""
        return int(self.edge_s.shape[1])

    @property
    def options(self) -> int:
        """V."""
        return int(self.edge_s.shape[2])

    @property
    def choices(self) -> int:
        """1 + S·V: how many decisions there are for one device."""
        return 1 + self.servers * self.options

    def local_fits(self) -> Flags:
        """[B, N]: the device expects to compute its task in time. A device that does not, does not begin."""
        fits: Flags = self.active & (self.device_backlog_s + self.local_s <= self.deadline_s)
        return fits

    def alone_s(self) -> Floats:
        """[B, N, S, V]: when each task would be done by each option if it were the slot's only one."""
        return self._alone_s

    @cached_property
    def _alone_s(self) -> Floats:
        ready = (self.device_backlog_s[..., None] + self.device_s)[:, :, None, :]
        sent = ready + self.airtime_s
        if self.shared_radio:
            sent = np.maximum(ready, self.radio_backlog_s[:, None, :, None]) + self.airtime_s
        done: Floats = np.maximum(sent, self.edge_backlog_s[:, None, :, None]) + self.edge_s[:, None] + self.hop_s
        return done

    def feasible(self) -> Flags:
        """[B, N, 1 + S·V]: the decisions that would be in time alone; local always is allowed."""
        alone = (self.alone_s() <= self.deadline_s[..., None, None]) & self.active[..., None, None]
        flat = alone.reshape(self.batch, self.devices, -1)
        return np.concatenate([np.ones((self.batch, self.devices, 1), bool), flat], axis=2)

    def values(self) -> Floats:
        """[B, N, 1 + S·V]: what each decision is worth if it is in time, 0 to 1."""
        local = np.where(self.local_fits(), self.local_accuracy, 0.0)[..., None]
        offload = np.tile(self.accuracy, self.servers)[None, None] * self.active[..., None]
        return np.concatenate([local, offload], axis=2)

    def packed(self) -> tuple["Observation", Actions]:
        """This slot with no more devices than have a task in one of its worlds, and which devices [B, P] these are.

        What a slot's tasks do to each other has nothing to do with devices that have none.
        """
        most = max(int(self.active.sum(axis=1).max(initial=0)), 1)
        places = np.argsort(~self.active, axis=1, kind="stable")[:, :most]
        rows = np.arange(self.batch)[:, None]
        arrays: dict[str, Any] = {name: getattr(self, name)[rows, places] for name in _OF_DEVICES}
        return replace(self, **arrays), places


# the fields of Observation with an entry for each device
_OF_DEVICES = ("active", "deadline_s", "device_backlog_s", "local_s", "device_s", "airtime_s")


def unpacked(actions: Actions, places: Actions, devices: int) -> Actions:
    """[B, N] of the packed decisions [B, P]; devices without a task compute locally, which is nothing."""
    made = np.zeros((len(actions), devices), np.int64)
    np.put_along_axis(made, places, actions, axis=1)
    return made


def server_of(actions: Actions, options: int) -> Actions:
    """The server of each decision, -1 where it is local."""
    return np.where(actions > 0, (actions - 1) // options, -1)


def option_of(actions: Actions, options: int) -> Actions:
    """The option of each decision, 0 where it is local (mask by ``actions > 0``)."""
    return np.where(actions > 0, (actions - 1) % options, 0)
