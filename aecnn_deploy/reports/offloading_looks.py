"""How a policy looks: one colour, marker and line in every figure of a page, and names that a figure can write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from types import MappingProxyType
from typing import Any

from aecnn_deploy.optional import require
from aecnn_deploy.reports.canvas import WHY

BOUND = "#333333"
LONGEST = 30  # letters of a name in a figure; tables have all of it

# As in reports/canvas.py, colours that stay apart for colour-blind readers; no two share a marker.
_COLOURS = (
    ("#0072B2", "o"),
    ("#D55E00", "D"),
    ("#009E73", "^"),
    ("#56B4E9", "s"),
    ("#CC79A7", "v"),
    ("#E69F00", "X"),
    ("#9A9A9A", "<"),
    ("#6B6B00", "d"),
    ("#7A5195", "P"),
    ("#A65E00", "H"),
    ("#000000", "*"),
)
_LINES = ("-", "--", ":", "-.")
# Policies that this project names: each has its colour in every report. The others take what is left, in order.
_OWN = MappingProxyType(
    {
        "graph": 0,
        "greedy": 1,
        "droo": 2,
        "neurosurgeon": 3,
        "ppo": 4,
        "offload": 5,
        "random": 6,
        "local": 7,
        "exact": 10,
    }
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a policy is drawn with; from the twelfth on colours come again, hollow and on other lines."""

    colour: str
    marker: str
    line: str
    hollow: bool

    def plot(self) -> dict[str, Any]:
        """Arguments for a line with markers."""
        face = "white" if self.hollow else self.colour
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "markerfacecolor": face,
            "linewidth": 1.5,
            "markersize": 5.5,
            "markeredgewidth": 0.9,
            "markeredgecolor": self.colour,
        }


def looks(names: Iterable[str], known: Mapping[str, Look] = MappingProxyType({})) -> Mapping[str, Look]:
    """A look for each name, no two alike, and those of ``known`` kept; the order of the names does not matter."""
    every = sorted(set(names))
    found = {name: known[name] for name in every if name in known}
    found |= {name: _look(_OWN[name]) for name in every if name in _OWN and name not in found}
    taken = set(found.values())
    free = (look for look in map(_look, count()) if look not in taken)
    return MappingProxyType({name: found[name] if name in found else next(free) for name in every})


def _look(place: int) -> Look:
    again, number = divmod(place, len(_COLOURS))
    return Look(*_COLOURS[number], _LINES[again % len(_LINES)], again > 0)


def label(name: str, longest: int = LONGEST) -> str:
    """``name`` as a figure may write it: no mathematics, no letters that the font lacks, not too long."""
    known = "".join(letter if _has_glyph(letter) else "?" for letter in name)
    short = known if len(known) <= longest else known[: longest - 1] + "…"
    # matplotlib leaves names that begin with "_" out of a legend.
    return (" " + short if short.startswith("_") else short).replace("$", r"\$")


def labels(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    return [label(name, longest) for name in names]


def _has_glyph(letter: str) -> bool:
    return letter.isprintable() and bool(_font().get_char_index(ord(letter)))


@cache
def _font() -> Any:
    manager = require("matplotlib.font_manager", why=WHY)
    return manager.get_font(manager.findfont(manager.FontProperties()))
