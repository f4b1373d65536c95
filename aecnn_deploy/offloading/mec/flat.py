"""An observation as one vector of fixed size, for learners that take nothing else.

The layout for N devices, S servers and V options; every number is from 0 to ``CLIP``, times are parts of the scenario's
longest deadline, and what is out of reach or down is ``CLIP``:

| columns | what |
|---|---|
| N | whether the device has a task: 0 or 1 |
| N | the task's deadline; 0 without a task |
| N | the device's backlog |
| N | computing locally |
| N·V | preparing, head and encoding, by option |
| N·S·V | airtime, by server, then by option |
| S | the access point's backlog |
| S | the server's backlog |
| S·V | decoding, recovery and tail, by option |
"""

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.offloading.mec.observation import Flags, Observation
from aecnn_deploy.offloading.mec.scenario import Scenario

LAYOUT = 1  # of the columns above
CLIP = 4.0

Vectors = NDArray[np.float32]


class FlatFeatures:
    """``scenario`` gives the sizes and the scale; both stay when its devices, links and servers are drawn anew."""

    def __init__(self, scenario: Scenario) -> None:
        self._begin(scenario.devices.count, scenario.servers.count, len(scenario.profile.options), scale_of(scenario))

    @classmethod
    def sized(cls, devices: int, servers: int, options: int, scale_s: float) -> "FlatFeatures":
        """Those of a scenario of these sizes whose longest deadline is ``scale_s``."""
        features = cls.__new__(cls)
        features._begin(devices, servers, options, scale_s)
        return features

    def _begin(self, devices: int, servers: int, options: int, scale_s: float) -> None:
        self._scale_s = scale_s
        self.choices = 1 + servers * options
        self.devices = devices
        self.size = devices * (4 + options + servers * options) + servers * (2 + options)

    def of(self, seen: Observation) -> Vectors:
        """[B, size] float32, finite, 0 to ``CLIP``."""
        times = (
            seen.deadline_s * seen.active,
            seen.device_backlog_s,
            seen.local_s,
            seen.device_s,
            seen.airtime_s,
            seen.radio_backlog_s,
            seen.edge_backlog_s,
            seen.edge_s,
        )
        rows = seen.batch
        scaled = np.concatenate([part.reshape(rows, -1) for part in times], axis=1) / self._scale_s
        vectors = np.concatenate([seen.active, np.minimum(scaled, CLIP)], axis=1)
        return vectors.astype(np.float32)

    def masks(self, seen: Observation) -> Flags:
        """[B, N·(1 + S·V)]: decisions that would be in time alone; local always is one of them."""
        return seen.feasible().reshape(seen.batch, -1)


def scale_of(scenario: Scenario) -> float:
    """The longest deadline, in seconds."""
    return scenario.devices.deadline_ms[1] / 1e3
