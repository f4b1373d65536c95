"""What ``export`` and ``bundle engines`` both ask about engines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aecnn_deploy.errors import SettingsError

if TYPE_CHECKING:
    from aecnn_deploy.exporters.engines import EngineRequest

SmOption = Annotated[
    list[int] | None,
    typer.Option(help="GPU architecture for tensorrt-rtx, e.g. 75; may be repeated. Default: this machine's GPU."),
]
PrecisionOption = Annotated[
    list[str] | None,
    typer.Option(help="What an engine computes in: fp16, int8 or fp32; may be repeated. Default: fp16."),
]
BatchMinOption = Annotated[int, typer.Option(help="Smallest batch of an engine's profile: 1.")]
BatchOptOption = Annotated[int, typer.Option(help="The batch that an engine is tuned for.")]
BatchMaxOption = Annotated[int, typer.Option(help="Largest batch that an engine runs in one piece.")]
WorkspaceOption = Annotated[
    int | None,
    typer.Option(metavar="MIB", help="GPU memory that a layer may take beside its tensors. Default: TensorRT's limit."),
]
TimingCacheOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep tensorrt's timings of kernels here, for the next build; made if missing."),
]


def engine_request(
    engine: str,
    sm: list[int] | None,
    batch: tuple[int, int, int],
    *,
    precision: list[str] | None = None,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
) -> "EngineRequest | None":
    """None for "none". Raises SettingsError: an unknown engine or precision, or options that do not go with it."""
    from aecnn_deploy.exporters.engines import EngineRequest, check_precisions
    from aecnn_deploy.runtimes.tensorrt_probe import PRODUCTS

    if engine not in ("none", *PRODUCTS):
        raise SettingsError(f"unknown --engine {engine!r}; choose one of none, {', '.join(PRODUCTS)}")
    if sm and engine != "tensorrt-rtx":
        raise SettingsError(f"--sm goes with --engine tensorrt-rtx only, got --engine {engine}")
    if engine == "none":
        for option, value in (("--workspace", workspace_mib), ("--timing-cache", timing_cache)):
            if value is not None:
                raise SettingsError(f"{option} goes with an engine, got --engine none")
        check_precisions(precision or ())
        return None
    return EngineRequest(
        engine,
        tuple(f"sm{number}" for number in sm or ()),
        batch,
        tuple(precision or ("fp16",)),
        workspace_mib,
        timing_cache,
    )
