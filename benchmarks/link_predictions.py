"""What the planner says of the arms of ``benchmarks.link_fig5``, from profiles that are measured in the same run.

The two halves' profiles and the link's are those of the commands, each run where it belongs: ``calibrate device`` and
``calibrate link`` in the device's namespace, ``calibrate edge`` in the edge's. The link's own rate is not taken from
its profile: the prediction of a cell is for the rate that the shaper was told.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.planning.link import Link as PlannedLink
from aecnn_deploy.planning.predict import Predictor
from aecnn_deploy.planning.profile_store import the_profile
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, LinkProfile
from benchmarks.link_arms import FILE, Arm
from benchmarks.namespaces import Link, Side

_TIMEOUT_S = 300.0
_COMMAND = [sys.executable, "-m", "aecnn_deploy"]


class CalibrationFailedError(RuntimeError):
    """A calibration command ended with an error, which it said."""


def calibrate(link: Link, bundle: str, edge_url: str, photographs: Path, profiles: Path) -> None:
    """Measure the three profiles into ``profiles``. ``photographs``: a folder. Raises CalibrationFailedError.

    The edge runs; the link is shaped to the rate at which ``fixed`` is to be measured.
    """
    kept, images = ["--profiles", str(profiles)], ["--images", str(photographs)]
    halves: list[tuple[Side, list[str]]] = [
        ("device", ["device", bundle, "--threads", "1", "--no-layers", *images, *kept]),
        ("edge", ["edge", bundle, "--threads", "1", "--no-build", "--no-layers", *images, *kept]),
        ("device", ["link", bundle, "--edge", edge_url, "--threads", "1", *kept]),
    ]
    for side, arguments in halves:
        process = link.process(
            side, [*_COMMAND, "calibrate", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = process.communicate(timeout=_TIMEOUT_S)
        if process.returncode != 0:
            raise CalibrationFailedError(f"calibrate {' '.join(arguments)} ended with {process.returncode}: {said}")


def predictions(
    bundle: Bundle,
    profiles: Path,
    arms: Sequence[Arm],
    rates_bps: Sequence[float],
    size: tuple[int, int],
    *,
    downlink: float,
) -> dict[tuple[Arm, float], float]:
    """Milliseconds of each arm at each rate; ``size`` of the photographs, width and height.

    ``downlink``: its rate, in uplinks. Raises PlanError.
    """
    device, edge, fixed = (
        the_profile(bundle, DeviceProfile, folder=profiles),
        the_profile(bundle, EdgeProfile, folder=profiles),
        the_profile(bundle, LinkProfile, folder=profiles).fixed.p50_ms,
    )
    predictor = Predictor(bundle.manifest, device, edge, image_size=size)
    found = {}
    for rate_bps in rates_bps:
        link = PlannedLink(rate_bps, fixed, downlink * rate_bps)
        for arm in arms:
            found[arm, rate_bps] = _predicted_ms(predictor, arm, link, size)
    return found


def _predicted_ms(predictor: Predictor, arm: Arm, link: PlannedLink, size: tuple[int, int]) -> float:
    if arm.variant is not None and arm.coder is not None:
        return predictor.split(arm.variant, arm.coder, link).total_ms
    if arm.image_coding is None:
        return predictor.local().total_ms
    if arm.image_coding != FILE:
        return predictor.full(arm.image_coding, link).total_ms
    return predictor.full(f"{FILE}@{size[0]}x{size[1]}", link).total_ms
