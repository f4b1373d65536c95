"""Numbers as the page writes them."""

import json
from collections.abc import Callable, Sequence
from types import MappingProxyType

from aecnn_deploy.planning.paper import PaperRow
from aecnn_deploy.reports.numbers import Spread
from aecnn_deploy.reports.page import Html, cell, missing
from aecnn_deploy.reports.points import Point

DASH = "–"


def accuracy(value: Spread) -> str:
    """A share as percent, with its deviation over the seeds where there are several."""
    return f"{100 * value.mean:.2f}" + (f" ± {100 * value.sd:.2f}" if value.sd is not None else "")


def size(shape: Sequence[int] | None) -> str:
    """C×H×W."""
    return "×".join(map(str, shape)) if shape else DASH


def share(value: float) -> str:
    """A share of the multiply-adds as percent."""
    return f"{100 * value:.1f}" if value else "0"


def top1(point: Point | None) -> str:
    return DASH if point is None else f"{accuracy(point.accuracy)} ({point.accuracy.n})"


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.2f}"


def entropy(value: Spread | None) -> str:
    return DASH if value is None else f"{value.mean:.2f}" + (f" ± {value.sd:.2f}" if value.sd is not None else "")


def wire_bytes(point: Point | None) -> str:
    return DASH if point is None or point.wire_bytes is None else f"{point.wire_bytes:,.0f}"


def milliseconds(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def plus_minus(value: tuple[float, float]) -> str:
    return f"{value[0]:.2f} ± {value[1]:.2f}"


def beside(row: PaperRow | None, show: Callable[[PaperRow], str]) -> list[str]:
    return [show(row)] if row else []


def best_cell(point: Point | None) -> Html:
    return cell(DASH) if point is None else cell(top1(point), point.name, f"{wire_bytes(point)} B")


def points_text(difference: float) -> str:
    """A difference of two shares in points, with its sign."""
    return f"{100 * difference:+.2f}".replace("-", "−")


def difference_cell(value: float | None) -> Html:
    if value is None:
        return cell(DASH)
    return cell(Html(f'<span class="{"wins" if value > 0 else "loses"}">{points_text(value)}</span>'))


def factor_text(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}×"


def reached_by(point: Point | None) -> str:
    return "no point" if point is None else f"{point.name}: {accuracy(point.accuracy)} %, {wire_bytes(point)} B"


def nothing(*arms: str, any_of: bool = False) -> Html:
    """What to train for a section that has nothing to show."""
    swept = [arm for arm in arms if arm in _SWEPT]
    wanted = [f"arms = {json.dumps(swept)} in a [[sweep]]"] if swept else []
    wanted += dict.fromkeys(_ELSEWHERE[arm] for arm in arms if arm in _ELSEWHERE)
    return missing(f"Nothing to show yet. It needs{' some of' if any_of else ''}: {'; '.join(wanted)}.")


_SWEPT = ("aecnn", "aecnn-fast", "bottlenetpp", "random", "l1", "se", "cbam", "jpeg-features")
# What brings the other arms into a run; CA_Pruned is trained on the way to AECNN.
_ELSEWHERE = MappingProxyType(
    {
        "unsplit": "any training with labels (the unsplit network is its first task)",
        "local-int8": "local_int8 = true",
        "strided": "a [[strided]] table",
        "jpeg": "a [[codecs]] table",
        "webp": "a [[codecs]] table",
        "avif": "a [[codecs]] table",
    }
)
