"""Options of ``serve-edge`` that say on which Ray cluster its tails run, and by how many replicas."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from aecnn_deploy.errors import SettingsError

if TYPE_CHECKING:
    from aecnn_deploy.runtimes.ray_tails import RayTails

RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Run the tails on this Ray cluster: auto, local (one of its own here) or HOST:PORT."
    ),
]
RayReplicasOption = Annotated[
    str, typer.Option(metavar="MIN:MAX", help="Replicas on the Ray cluster, autoscaled between the two; or N.")
]
RayCpusOption = Annotated[float, typer.Option(help="CPUs of each replica, and threads of its models.")]
RayGpusOption = Annotated[float, typer.Option(help="GPUs of each replica.")]
RayStartOption = Annotated[
    float, typer.Option("--ray-start-s", help="Seconds for the first replica to start, and for it to load a model.")
]


@contextmanager
def ray_tails(
    address: str | None,
    replicas: str,
    resources: tuple[float, float],
    start_s: float,
    *,
    runner: str,
    precision: str | None,
    threads: int,
    spinning: bool,
    build: bool,
) -> "Iterator[RayTails | None]":
    """Replicas on the cluster at ``address`` for as long as it is entered; None: no cluster was asked for.

    ``resources``: CPUs and GPUs of each. Raises SettingsError: a value, or what does not go together. ServeError: no
    such cluster, or no room on it. SIGTERM while it starts ends with exit status 0, as it does later.
    """
    if address is None:
        yield None
        return
    if runner != "auto" or precision is not None:
        given = f"--runner {runner}" if runner != "auto" else f"--precision {precision}"
        raise SettingsError(
            f"{given} is for this machine, --ray for a cluster, whose nodes choose; give one of the two"
        )
    from aecnn_deploy.exporters.edge_engines import EdgeEngines
    from aecnn_deploy.runtimes.ray_settings import RaySettings, replica_range
    from aecnn_deploy.runtimes.ray_tails import RayTails

    least, most = replica_range(replicas)
    engines = EdgeEngines if build else None
    tails = RayTails(
        RaySettings(
            address, least, most, *resources, start_s=start_s, threads=threads, spinning=spinning, engines=engines
        )
    )
    before = signal.signal(signal.SIGTERM, _end)
    try:
        try:
            tails.start()
        except SystemExit:  # by SIGTERM: Ray puts a handler of its own in place, which raises the same
            raise typer.Exit from None
        finally:
            signal.signal(signal.SIGTERM, before)
        yield tails
    finally:
        tails.close()


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
