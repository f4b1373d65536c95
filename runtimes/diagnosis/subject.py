"""What a diagnosis is about: a machine, and the bundle and the edge that were named."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import BundleError, SettingsError
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import stream_url
from aecnn_deploy.runtimes.diagnosis.host import Host


@dataclass(frozen=True, slots=True)
class DiagnosisSettings:
    """What to examine. Raises SettingsError: ``edge`` is no address, a time is not positive."""

    bundle: str | None = None  # as the user named it
    edge: str | None = None  # ws://HOST:PORT, wss://, http:// or https://
    credentials: Credentials = field(default_factory=Credentials)  # for that edge
    timeout_s: float = 5.0  # of each wait for the edge
    probe_timeout_s: float = 120.0  # of ONNX Runtime's start in a process of its own: slow on a cold SD card
    check_timeout_s: float = 150.0  # of any one check, whatever it hangs in
    host: Host = field(default_factory=Host)

    def __post_init__(self) -> None:
        if self.edge is not None:
            stream_url(self.edge)
        for name in ("timeout_s", "probe_timeout_s", "check_timeout_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected a positive number of seconds")


class Subject:
    """The settings, and the bundle, which is opened (and so verified) once, when the first check asks for it."""

    def __init__(self, settings: DiagnosisSettings, open_named: Callable[[str], Bundle]) -> None:
        self.settings, self.host = settings, settings.host
        self._open_named = open_named

    @cached_property
    def opened(self) -> Bundle | BundleError | None:
        """The bundle; why it cannot be opened; None: none was named."""
        if self.settings.bundle is None:
            return None
        try:
            return self._open_named(self.settings.bundle)
        except BundleError as exc:
            return exc

    @property
    def bundle(self) -> Bundle | None:
        """The bundle, where one was named and is whole."""
        return self.opened if isinstance(self.opened, Bundle) else None
