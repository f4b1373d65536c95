"""What a device draws while it computes, sends and waits: for rules that save energy."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from aecnn_deploy.errors import SettingsError

_COMPUTING = frozenset({"read", "head", "encode", "local"})
_SENDING = frozenset({"send"})


@dataclass(frozen=True, slots=True)
class DevicePowers:
    """Watts of a whole device, by what it does. The defaults are a Raspberry Pi 4 Model B's, with WiFi.

    ``compute_w`` 6.4 and ``idle_w`` 2.7: measured at 5 V, with all four cores under load (1.28 A) and idle (0.54 A), in
    the Raspberry Pi Dramble's table of power consumption (www.pidramble.com/wiki/benchmarks/power-consumption).
    Others measured 5.0 to 7.2 W and 1.6 W of a headless one at the mains (github.com/geerlingguy/sbc-reviews, 4).
    ``send_w`` 3.6: idle and 0.9 W of a radio with one antenna that transmits all the time (280 mA at 3.3 V in the data
    sheet of Microchip's ATWILC3000A, a radio of the same class; no measurement of the Pi's own was found).

    Raises SettingsError: one is negative or no number, or computing or sending draws less than idling.
    """

    compute_w: float = 6.4
    send_w: float = 3.6
    idle_w: float = 2.7

    def __post_init__(self) -> None:
        watts = (self.compute_w, self.send_w, self.idle_w)
        if not all(isfinite(value) and value >= 0 for value in watts) or min(watts) < self.idle_w:
            raise SettingsError(
                f"a device draws {self.compute_w:g} W computing, {self.send_w:g} W sending and {self.idle_w:g} W idle; "
                "expected numbers of 0 or more, and the last one the least"
            )

    def energy_mj(self, parts: Mapping[str, float]) -> float:
        """Millijoules that ``parts`` (stage -> milliseconds) cost the device: it waits in those that are the edge's."""
        return sum(self._watts(stage) * ms for stage, ms in parts.items())

    def _watts(self, stage: str) -> float:
        if stage in _COMPUTING:
            return self.compute_w
        return self.send_w if stage in _SENDING else self.idle_w


RASPBERRY_PI_4B = DevicePowers()
