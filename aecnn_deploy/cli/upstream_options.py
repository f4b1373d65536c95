"""Options of ``serve-edge`` that send its tails to a Triton server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.errors import SettingsError

if TYPE_CHECKING:
    from aecnn_deploy.runtimes.triton_tails import TritonTails

UpstreamOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Run the tails on a Triton server: triton://HOST:PORT, tritons:// for TLS."),
]
UpstreamCaOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Trust it by this CA's certificate (PEM), not by the system's.")
]
UpstreamPrefixOption = Annotated[
    str | None, typer.Option(help="What its models' names begin with; {bundle}: the bundle id's first 12 digits.")
]
UpstreamParallelOption = Annotated[
    int | None, typer.Option(help="Batches of one model that are there at once. Default: 4.")
]
UpstreamTimeoutOption = Annotated[
    float | None, typer.Option("--upstream-timeout-s", help="Seconds for one batch there. Default: 10.")
]
UpstreamRetryOption = Annotated[
    float | None,
    typer.Option("--upstream-retry-s", help="Seconds that a batch is tried again while it is away. Default: 10."),
]
UpstreamWaitOption = Annotated[
    float | None, typer.Option("--upstream-wait-s", help="Seconds to wait for it at the start. Default: 30.")
]


def upstream_tails(
    url: str | None,
    ca: Path | None,
    prefix: str | None,
    parallel: int | None,
    seconds: tuple[float | None, float | None, float | None],
    *,
    ray: object = None,
) -> "TritonTails | None":
    """``seconds``: for one call, of trying again, of waiting at the start. ``ray``: what was given as ``--ray``.

    None: no ``url`` was given.

    Raises SettingsError: a value, or what does not go together. CredentialsError, MissingExtraError.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in zip(
            ("ca", "prefix", "parallel", "call_s", "retry_s", "wait_s"), (ca, prefix, parallel, *seconds), strict=True
        )
        if value is not None
    }
    if url is None:
        if given:
            raise SettingsError("the options --upstream-… go with --upstream URL, which was not given")
        return None
    if ray is not None:
        raise SettingsError("--upstream and --ray both say where the tails run; give one of them")
    from aecnn_deploy.runtimes.triton_settings import UpstreamSettings
    from aecnn_deploy.runtimes.triton_tails import TritonTails

    return TritonTails(UpstreamSettings(url, **given))
