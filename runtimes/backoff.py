"""How long to wait before the next attempt at an edge that is away."""

import random

FIRST_S, LONGEST_S = 0.25, 15.0


class Backoff:
    """Pauses between attempts: a ceiling that doubles from ``first_s`` to ``longest_s``, and a draw below it.

    With ``rng`` each pause is drawn between 0 and the ceiling ("full jitter"), so that devices which lost the same edge
    do not come back at the same time; without, it is the ceiling.
    """

    def __init__(
        self, rng: random.Random | None = None, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S
    ) -> None:
        self._rng, self._first_s, self._longest_s = rng, first_s, longest_s
        self._ceiling_s = 0.0

    def reset(self) -> None:
        """The edge is there again."""
        self._ceiling_s = 0.0

    def pause_s(self, *, at_least_s: float = 0.0, final: bool = False) -> float:
        """Seconds until the next attempt, after one more that failed.

        ``at_least_s``: what the edge asked for; nothing shorter is drawn. ``final``: a refusal that another attempt
        will hardly change; the longest pause at once, of which at least half is waited.
        """
        self._ceiling_s = self._longest_s if final else min(max(2 * self._ceiling_s, self._first_s), self._longest_s)
        drawn_s = self._ceiling_s
        if self._rng is not None:
            drawn_s = self._rng.uniform(self._longest_s / 2 if final else 0.0, self._ceiling_s)
        return at_least_s + drawn_s  # what an edge asks all of its devices for is a floor, or they come back together
