"""``run-device --explain``: how a frame's variant was chosen, in lines of at most 80 columns."""

from collections.abc import Iterator
from typing import Any

_NAME = 16
_COLUMNS = ("head", "code", "send", "queue", "tail", "marg.")


class ChoiceLines:
    """Lines for each image whose choice is another one than that of the image before it, and for the last."""

    def __init__(self) -> None:
        self._before: tuple[object, ...] | None = None
        self._untold: tuple[str, dict[str, Any]] | None = None

    def of(self, source: str, choice: dict[str, Any] | None) -> list[str]:
        """What is to be printed after this image; ``choice``: as in its report."""
        if choice is None:
            return []
        what = choice["variant"], choice["coder"], choice["trial"]
        self._untold = (source, choice)
        if what == self._before:
            return []
        self._before = what
        return self.rest()

    def rest(self) -> list[str]:
        """The last image's, if they were not printed."""
        untold, self._untold = self._untold, None
        return [] if untold is None else list(choice_lines(*untold))


def choice_lines(source: str, choice: dict[str, Any]) -> Iterator[str]:
    """How the variant was chosen for ``source``; ``choice``: as in its report."""
    chosen, link = choice["variant"], choice["link"]
    what = "no variant" if chosen is None else f"{chosen} by {choice['coder']}"
    yield from _wrapped(f"  {source}: {what}{', to see what the link does' if choice['trial'] else ''}")
    yield (
        f"  {choice['elapsed_ms']:.1f} of {choice['deadline_ms']:g} ms spent; link {link['megabits_per_s']:,.3g} "
        f"Mbit/s, {link['fixed_ms']:.1f} ms there and back, {link['backlog_ms']:.1f} ms busy"
    )[:80]
    heads = "".join(f" {name:>5}" for name in _COLUMNS)
    yield f"  {'variant':<{_NAME}} {'acc.':>5}{heads} {'total':>7}  in time"
    for row in choice["candidates"]:
        times = (
            row["head_ms"],
            row["encode_ms"] + row["edge_decode_ms"],
            row["send_ms"],
            row["edge_queue_ms"],
            row["edge_tail_ms"],
            row["margin_ms"],
        )
        name = row["variant"] if len(row["variant"]) <= _NAME else "…" + row["variant"][1 - _NAME :]
        cells = "".join(f" {_short(value):>5}" for value in times)
        verdict = "yes" if row["fits"] else f"{_short(-choice['deadline_ms'] + row['total_ms'])} late"
        mark = ">" if row["chosen"] else " "
        yield f"{mark} {name:<{_NAME}} {row['accuracy']:5.3f}{cells} {_short(row['total_ms']):>7}  {verdict}"[:80]
    yield from _wrapped(f"  {choice['state']}")


def _short(ms: float) -> str:
    """At most five characters for anything below 100 s."""
    return f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}"


def _wrapped(text: str) -> Iterator[str]:
    line = "".join(mark if mark.isprintable() else "?" for mark in text)
    while len(line) > 80:
        cut = line.rfind(" ", 10, 80)
        cut = cut if cut > 0 else 80
        yield line[:cut]
        line = "    " + line[cut:].lstrip()
    yield line
