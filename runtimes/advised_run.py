"""What a run with several edges, or with a controller, has more than one with an edge alone."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError
from aecnn_deploy.runtimes.controller_advice import AdviceBox
from aecnn_deploy.runtimes.controller_link import ControllerLink
from aecnn_deploy.runtimes.controller_messages import PROTOCOL, Hello
from aecnn_deploy.runtimes.controller_state import StateTeller
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.way_choice import EdgeSide, WayChoice


def open_first(sides: Sequence[EdgeSide], *, needed: bool) -> None:
    """Connect to every edge, one after the other. With ``needed``, raises what the last one says if none answers."""
    errors: list[AecnnError] = []
    for side in sides:
        try:
            side.sessions.open_first()
        except AecnnError as exc:
            errors.append(exc)
    if needed and len(errors) == len(sides):
        raise errors[-1]


@contextmanager
def advised(
    bundle: Bundle, settings: DeviceSettings, ways: WayChoice, box: AdviceBox, local: LocalModel | None
) -> Iterator[None]:
    """Hear a controller's advice into ``box``. Raises SettingsError, CredentialsError: it cannot be asked."""
    assert settings.controller is not None
    assert settings.deadline_ms is not None
    variants = [spec.id for spec in bundle.manifest.variants]
    teller = StateTeller(ways, variants=len(variants), deadline_ms=settings.deadline_ms, local=local)
    link = ControllerLink(
        settings.controller,
        Hello(
            protocol=PROTOCOL,
            device=settings.name or socket.gethostname() or "a device",
            software=f"aecnn-deploy {__version__}",
            bundle_id=bundle.id,
            edges=[side.name for side in ways.sides],
            variants=variants,
        ),
        credentials=settings.credentials,
        timeout_s=settings.timeout_s,
        lock=ways.desk.lock,
        box=box,
        tell=teller.state_locked,
        heard=ways.desk.head_turn.notify,  # a frame that waits for its way may have another one now
        seed=settings.seed,
    )
    link.start()
    try:
        yield
    finally:
        link.close()
