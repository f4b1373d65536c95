"""The link's rate as a device's own messages show it: steady while it is steady, quick where it changes."""

import time
from collections import deque
from dataclasses import dataclass, field

from aecnn_deploy.planning.link import bytes_on_link

GUESS_MS = 0.0008  # a byte, before anything was measured: 10 Mbit/s
FASTEST_MS = 8e-7  # a byte: 10 Gbit/s, beyond which nothing is told apart

_WINDOW = 32  # messages that the rate stands on
_WINDOW_S = 2.5  # and how old they may be,
_ALWAYS = 8  # but for so many of the newest
_SPAN = 8  # messages of a busy link that are measured together: what arrives late makes the next one seem early
_SLOWER, _FASTER = 1.8, 1.6  # times the present rate: what may be another one
_SLOWER_MS, _FASTER_MS = 2.0, 1.0  # and by so much at least: processes are late by as much
_SLOWER_FOR, _FASTER_FOR = 3, 2  # messages one after the other; then it is another one
_SLOWER_SURELY = 4  # messages one after the other, however far those before them lay apart,
_BEYOND = 1.25  # or a little slower than nine in ten of those
_LONG_MS = 300.0  # that suspects took beyond the present rate: one lost packet costs 200
_STALE_S = 5.0  # without a message: the first one that differs is believed
_FIXED_S = 180.0  # an empty message's time counts for so long


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    ms: float  # without "fixed"; of a queued message less than none, where the one before it was late
    link_bytes: float
    ms_per_byte: float  # of the span that it ends


@dataclass(slots=True)
class LinkRate:
    """The uplink's rate, from what messages of known size took beyond one without content ("fixed").

    What disturbs a message, another process or a lost packet, only makes it longer: the rate is the lower quartile over
    the last 32 messages and 2.5 s, of spans of up to 8 where the link was busy without a gap. Where three messages one
    after the other are far slower than that, and than it was unsteady, or four are slower than nearly all before them,
    or two far faster, the link is another one now, and what was before is forgotten: a tenfold drop is known within 5
    messages, and before that from how long the oldest message has been without an answer (``waiting``); a tenfold rise
    within 3 s. A burst of answers after one that was held up is not a rise, as all of them are measured together.

    A byte is one *on the link*: ``bytes_on_link`` of a message, with the headers of all its packets. Not resolved is
    what passes in a time near the jitter: with messages of 1.3 kB and answers that are late by up to 2 ms the rate is
    off by 3 % at 1 Mbit/s, 6 % at 2, 16 % at 5 and 40 % at 10 in the mean, where a message takes 1.1 ms. To predict
    messages of the same size it serves all the same: what "fixed" has too little the rate has too much.
    ``spread_ms_per_byte`` says how much that is. Calls but ``pinged`` are one thread's.
    """

    _pings: tuple[tuple[float, float], ...] = field(default=(), init=False)  # seconds, milliseconds
    _shortest: deque[tuple[float, float]] = field(default_factory=deque, init=False)  # the same; rising in both
    _window: deque[_Sample] = field(default_factory=lambda: deque(maxlen=_WINDOW), init=False)
    _suspects: list[_Sample] = field(default_factory=list, init=False)  # all slower, or all faster
    _suspected_slower: bool = field(default=False, init=False)
    _beyond: list[_Sample] = field(default_factory=list, init=False)  # the last ones, all far slower than the rate
    _run: deque[_Sample] = field(default_factory=lambda: deque(maxlen=_SPAN), init=False)  # without a gap
    _at_least: float = field(default=0.0, init=False)  # ms a byte, while a message is without an answer
    _estimate: float = field(default=GUESS_MS, init=False)
    _heard_s: float | None = field(default=None, init=False)

    @property
    def fixed_ms(self) -> float | None:
        """There and back for an empty message: the least of the last minutes; None before one was sent.

        Never more than a message with content took in all.
        """
        if not self._pings:
            return None
        fixed_ms = min(took_ms for _, took_ms in self._pings)
        return min(fixed_ms, self._shortest[0][1]) if self._shortest else fixed_ms

    @property
    def ms_per_byte(self) -> float:
        """Milliseconds a byte on the link, at least that of 10 Gbit/s; of 10 Mbit/s before anything was measured."""
        return max(self._estimate, self._at_least, FASTEST_MS)

    @property
    def rate_bps(self) -> float:
        """The same as bits a second, headers included."""
        return 8e3 / self.ms_per_byte

    @property
    def spread_ms_per_byte(self) -> float:
        """Between the quartiles of what the rate stands on; 0 before there are two messages."""
        return _spread(self._window)

    @property
    def frames(self) -> int:
        """How many messages it stands on."""
        return len(self._window)

    def silent_s(self, now_s: float | None = None) -> float:
        """Seconds since the last message that was measured; infinite before the first."""
        return float("inf") if self._heard_s is None else _now(now_s) - self._heard_s

    def pinged(self, took_ms: float, now_s: float | None = None) -> None:
        """An empty message went there and back. From any thread."""
        at_s = _now(now_s)
        self._pings = (*(ping for ping in self._pings if at_s - ping[0] <= _FIXED_S), (at_s, took_ms))

    def heard(self, wire_bytes: int, link_ms: float, now_s: float | None = None, *, queued: bool = False) -> None:
        """A message of ``wire_bytes`` took ``link_ms`` on the link, "fixed" included, its answer's way too.

        ``queued``: it was sent before the one that was told last was through, and its time begins then. ``now_s``: when
        the answer came; None: now.
        """
        at_s = _now(now_s)
        fixed_ms = self.fixed_ms
        if fixed_ms is None:
            return
        if not queued:
            self._follow_shortest(at_s, link_ms)
            self._run.clear()
        silent_s, self._heard_s, self._at_least = self.silent_s(at_s), at_s, 0.0
        link_bytes, ms = bytes_on_link(wire_bytes), link_ms - fixed_ms
        # The means of the last messages together, 1 to 8 of them.
        spans, sum_ms, sum_bytes = [max(0.0, ms / link_bytes)], ms, link_bytes
        for before in reversed(self._run):
            sum_ms, sum_bytes = sum_ms + before.ms, sum_bytes + before.link_bytes
            if len(spans) < _SPAN:
                spans.append(max(0.0, sum_ms / sum_bytes))
        sample = _Sample(at_s, ms, link_bytes, spans[-1])
        self._run.append(sample)
        self._judge(sample, spans, stale=silent_s > _STALE_S)
        self._estimate = self._estimated(at_s)

    def waiting(self, wire_bytes: int, waited_ms: float, now_s: float | None = None) -> None:
        """A message has been under way for ``waited_ms``, as far as the link may be why: the rate is at most so much.

        Holds until the next call, or until a message was measured. Of no message (``wire_bytes`` 0) nothing is known.
        """
        self._at_least = 0.0
        fixed_ms = self.fixed_ms
        if not wire_bytes or fixed_ms is None or not self._window:
            return
        link_bytes, ms = bytes_on_link(wire_bytes), waited_ms - fixed_ms
        if ms > self._slower_ms(link_bytes):
            self._at_least = (ms - _SLOWER_MS) / link_bytes

    def _follow_shortest(self, at_s: float, link_ms: float) -> None:
        shortest = self._shortest
        while shortest and shortest[-1][1] >= link_ms:
            shortest.pop()
        shortest.append((at_s, max(0.0, link_ms)))
        while at_s - shortest[0][0] > _FIXED_S:
            shortest.popleft()

    def _slower_ms(self, link_bytes: float) -> float:
        """What no message of this size takes at the present rate, but for a disturbance."""
        usual = _quartile(self._window)
        return _SLOWER * usual * link_bytes + max(_SLOWER_MS, 2 * _spread(self._window) * link_bytes)

    def _beyond_ms(self, link_bytes: float) -> float:
        """What hardly a message took before those that are suspected, and not several one after the other."""
        since_s = self._beyond[0].at_s if self._beyond else float("inf")
        before = [sample for sample in self._window if sample.at_s < since_s] or list(self._window)
        return min(_SLOWER * _quartile(before), _BEYOND * _ninth_decile(before)) * link_bytes + _SLOWER_MS

    def _faster_ms(self, link_bytes: float) -> float:
        """What all are above."""
        usual = _quartile(self._window)
        return usual * link_bytes / _FASTER - max(_FASTER_MS, _spread(self._window) * link_bytes)

    def _judge(self, sample: _Sample, spans: list[float], *, stale: bool) -> None:
        """Into the window with it, or among the suspects, or it makes them the window."""
        if not self._window:
            self._window.append(sample)
            return
        # On its own: what was before it on the link passed at another rate.
        alone = _Sample(sample.at_s, sample.ms, sample.link_bytes, spans[0])
        if sample.ms > self._beyond_ms(sample.link_bytes):
            self._beyond.append(alone)
        else:
            self._beyond.clear()
        slower = sample.ms > self._slower_ms(sample.link_bytes)
        if len(self._beyond) >= _SLOWER_SURELY:
            self._suspects[:] = self._beyond
            self._adopt()
            return
        if not slower and not max(spans) * sample.link_bytes < self._faster_ms(sample.link_bytes):
            self._window.extend((*self._suspects, sample))
            self._suspects.clear()
            return
        if slower is not self._suspected_slower:
            self._window.extend(self._suspects)
            self._suspects.clear()
            self._suspected_slower = slower
        self._suspects.append(alone)
        if stale or len(self._suspects) >= (_SLOWER_FOR if slower else _FASTER_FOR):
            self._adopt()

    def _adopt(self) -> None:
        """The suspects are what the link is now."""
        self._window.clear()
        self._window.extend(self._suspects)
        while len(self._run) > len(self._suspects):
            self._run.popleft()
        self._suspects.clear()
        self._beyond.clear()

    def _estimated(self, at_s: float) -> float:
        window = self._window
        while len(window) > _ALWAYS and at_s - window[0].at_s > _WINDOW_S:
            window.popleft()
        usual = _quartile(window)
        if self._suspects and self._suspected_slower:
            beyond_ms = sum(sample.ms - usual * sample.link_bytes for sample in self._suspects)
            if len(self._suspects) > 1 or beyond_ms > _LONG_MS:  # until the next one says otherwise
                return _quartile(self._suspects)
        return usual


def _quartile(samples: "deque[_Sample] | list[_Sample]") -> float:
    """The lower quartile of milliseconds a byte; of less than 8 the median."""
    values = sorted(sample.ms_per_byte for sample in samples)
    return values[len(values) // 4 if len(values) >= _ALWAYS else (len(values) - 1) // 2]


def _ninth_decile(samples: "list[_Sample]") -> float:
    """Of milliseconds a byte."""
    values = sorted(sample.ms_per_byte for sample in samples)
    return values[len(values) * 9 // 10]


def _spread(samples: "deque[_Sample]") -> float:
    values = sorted(sample.ms_per_byte for sample in samples)
    return values[len(values) * 3 // 4] - values[len(values) // 4] if len(values) > 1 else 0.0


def _now(now_s: float | None) -> float:
    return time.perf_counter() if now_s is None else now_s
