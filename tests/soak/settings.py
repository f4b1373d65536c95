"""How a soak runs; every duration follows from the one that is given."""

from dataclasses import dataclass

from aecnn_deploy.errors import SettingsError


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """Raises SettingsError: a number is out of its range."""

    seconds: float = 600.0  # of load; beside it some seconds to start, and to read the last answers
    devices: int = 32  # honest ones; the hostile ones come on top
    processes: int = 4  # that the honest devices share
    frame_hz: float = 5.0  # of each device
    kills: int = 5  # of the edge, by SIGKILL, in the first two fifths: its last life is the longest
    cut_every_s: float = 0.7  # mean time between two cuts, of one device's connection each
    delay_s: tuple[float, float] = (0.0, 0.01)  # of what goes over the link
    tick_s: float = 10.0  # between two lines of the table
    sample_s: float = 0.5  # between two looks at memory
    smallest_share: float = 0.8  # of the mean of all honest devices
    memory_growth: float = 0.05  # after warm-up
    seed: int = 0

    def __post_init__(self) -> None:
        if not 40 <= self.seconds < 1e6:
            raise SettingsError(f"seconds is {self.seconds}, expected at least 40: each life of the edge takes some")
        if not 1 <= self.processes <= self.devices:
            raise SettingsError(f"processes is {self.processes}, expected 1 to the {self.devices} devices")
        if self.kills < 0 or self.frame_hz <= 0 or self.cut_every_s <= 0:
            raise SettingsError(
                f"kills is {self.kills}, frame_hz {self.frame_hz}, cut_every_s {self.cut_every_s}; "
                "expected 0 or more, and positive numbers"
            )

    @property
    def kill_times_s(self) -> tuple[float, ...]:
        """When the edge is killed, from the begin of the load."""
        return tuple(self.seconds * 0.4 * (number + 1) / self.kills for number in range(self.kills))
