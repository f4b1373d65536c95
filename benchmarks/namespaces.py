"""A device and an edge on one machine with a link of a stated rate between them: two network namespaces and ``tc tbf``.

    device ── veth, tbf of the uplink ─────────► edge
           ◄─── tbf of the downlink, veth ──

Needs root, iproute2 and a kernel with network namespaces, veth and tbf; ``why_not`` says what is missing. There
is no delay and no loss beside the rate's.

A token bucket lets through at line speed what its bucket holds, at least one packet: after an idle moment the first
1,514 bytes of a message would take no time, where a real link of 1 Mbit/s takes 12 ms for them. So the bucket is kept
empty as a synchronous line is kept busy: a thread sends idle frames, which wait behind everything else (in the last
band of ``pfifo_fast``) and which nobody receives. What goes first is then at most one idle frame's worth, about a
millisecond's. Above ``_IDLE_FRAMES_UNTIL_BPS`` there are none: what the bucket holds is a millisecond's worth there.
"""

import ctypes
import fcntl
import itertools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

Side = Literal["device", "edge"]
SIDES: tuple[Side, Side] = ("device", "edge")
ADDRESSES: dict[Side, str] = {"device": "10.171.0.1", "edge": "10.171.0.2"}  # within the namespaces, so free always

MTU = 1500
PORT = "port0"  # what each namespace calls its end of the link
_PACKET = MTU + 14  # and its Ethernet header: the least that a bucket must hold
_BURST_S = 1e-3  # of the rate, in the bucket: a timer that is late by less loses nothing
_QUEUE_PACKETS = 4000  # that wait for the link; nothing that is measured here fills it, so nothing is lost
_IDLE_FRAMES_HZ = 1000.0
_IDLE_FRAMES_UNTIL_BPS = 30e6  # sending thousands a second would take the models' time
_DRAIN_S = 0.5  # for those that wait, when they are to be smaller
_IDLE_FRAMES_WAITING = 64  # about as many milliseconds that their thread may sleep
_IDLE_ETHERTYPE = 0x88B5  # IEEE 802's for local experiments
_IDLE_PRIORITY = 2  # of a packet: what pfifo_fast puts into its last band; all others are in bands before it
_NAME = re.compile(r"aecnn-(?P<pid>[0-9]+)-[0-9]+-(?:device|edge)")
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_TIMEOUT_S = 20.0

_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(RuntimeError):
    """``ip`` or ``tc`` refuse, or the kernel does; says which command and why."""


class Link:
    """Two namespaces that ``linked`` made, and the link between them.

    ``downlink``: the rate from the edge to the device, as a multiple of the other direction's.
    """

    def __init__(self, name: str, downlink: float = 1.0) -> None:
        self.names: dict[Side, str] = {side: f"{name}-{side}" for side in SIDES}
        self.rate_bps: float | None = None  # of the uplink
        self._downlink = downlink
        self._shaped = False
        self._idling: dict[Side, _IdleFrames] = {}

    def shape(self, rate_bps: float | None) -> None:
        """Give the link this rate, bits a second with Ethernet headers; None: as fast as the machine is.

        What waits for the link keeps its place. Raises NamespaceError.
        """
        if rate_bps == self.rate_bps:
            return
        if rate_bps is None:
            self._end_idling()
            for side in SIDES:
                self._tc(side, "qdisc", "del", "dev", PORT, "root")
        else:
            for side, side_bps in (("device", rate_bps), ("edge", rate_bps * self._downlink)):
                self._shape_side(side, side_bps)
        self._shaped, self.rate_bps = rate_bps is not None, rate_bps

    def _shape_side(self, side: Side, rate_bps: float) -> None:
        frame_bytes = idle_frame_bytes(rate_bps)
        if not frame_bytes and side in self._idling:
            self._idling.pop(side).end()
        elif side in self._idling and frame_bytes < self._idling[side].frame_bytes:
            self._idling[side].drain()
        verb = "change" if self._shaped else "add"
        bucket = ["rate", f"{rate_bps:.0f}bit", "burst", str(burst_bytes(rate_bps))]
        queue = ["limit", str(_QUEUE_PACKETS * _PACKET)]
        self._tc(side, "qdisc", verb, "dev", PORT, "root", "handle", "1:", "tbf", *bucket, *queue)
        if not self._shaped:
            self._tc(side, "qdisc", "add", "dev", PORT, "parent", "1:1", "handle", "2:", "pfifo_fast")
        if frame_bytes and side not in self._idling:
            self._idling[side] = _IdleFrames(self.names[side], frame_bytes)
        elif frame_bytes:
            self._idling[side].go_on(frame_bytes)

    def process(self, side: Side, argv: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """``argv`` as a process within a namespace, which ends with this one. ``options`` are subprocess.Popen's."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[side], *argv], text=True, preexec_fn=_die_with_parent, **options
        )

    def close(self) -> None:
        """Take all of it down; what still runs in a namespace is killed."""
        self._end_idling()
        for name in self.names.values():
            _remove(name)

    def _end_idling(self) -> None:
        for idling in self._idling.values():
            idling.end()
        self._idling = {}

    def _tc(self, side: Side, *arguments: str) -> None:
        _run("tc", "-n", self.names[side], *arguments)


@contextmanager
def linked(*, downlink: float = 1.0) -> Iterator[Link]:
    """A pair of namespaces, not shaped yet; taken down at the end. Leftovers of killed runs are removed before.

    ``downlink``: as in ``Link``.
    Raises NamespaceError: they cannot be had here.
    """
    remove_leftovers()
    name = f"aecnn-{os.getpid()}-{next(_numbers)}"
    link = Link(name, downlink)
    with ExitStack() as stack:
        stack.callback(link.close)
        for side in SIDES:
            _run("ip", "netns", "add", link.names[side])
        device, edge = (link.names[side] for side in SIDES)
        _run("ip", "-n", device, "link", "add", PORT, "type", "veth", "peer", "name", PORT, "netns", edge)
        for side in SIDES:
            inside = ["ip", "-n", link.names[side]]
            _run(*inside, "address", "add", f"{ADDRESSES[side]}/30", "dev", PORT)
            _run(*inside, "link", "set", "lo", "up")
            # One packet at a time, as the wire has them: tbf would cut larger ones up, but only where it shapes.
            wire = ["mtu", str(MTU), "txqueuelen", str(_QUEUE_PACKETS), "gso_max_segs", "1"]
            _run(*inside, "link", "set", PORT, *wire, "up")
            _run("ip", "netns", "exec", link.names[side], "sysctl", "-q", "-w", *_tcp_settings())
        yield link


def why_not() -> str | None:
    """Why there can be no such link here, or None where there can. Tries it."""
    if os.geteuid() != 0:
        return "network namespaces and tc need root"
    if missing := [tool for tool in ("ip", "tc", "sysctl") if shutil.which(tool) is None]:
        return f"there is no {' and no '.join(missing)}; install iproute2 and procps"
    try:
        with linked() as link:
            link.shape(1e6)
    except (NamespaceError, OSError) as exc:
        return str(exc)
    return None


def remove_leftovers() -> list[str]:
    """Remove the namespaces of runs that were killed, and what runs in them. Their names."""
    found = []
    for name in _run("ip", "netns", "list").splitlines():
        match = _NAME.match(name)
        if match and not Path("/proc", match["pid"]).exists():
            _remove(match[0])
            found.append(match[0])
    return found


def enter(name: str) -> None:
    """Move the calling thread, and the threads and processes that it starts, into a namespace. Raises OSError."""
    with Path("/run/netns", name).open() as place:
        if _libc.setns(place.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter the network namespace {name}: {os.strerror(number)}")


def burst_bytes(rate_bps: float) -> int:
    """What the bucket holds at this rate."""
    return max(2 * _PACKET, round(rate_bps / 8 * _BURST_S))


def idle_frame_bytes(rate_bps: float) -> int:
    """The size of the idle frames at this rate; 0: there are none."""
    if rate_bps > _IDLE_FRAMES_UNTIL_BPS:
        return 0
    return min(_PACKET, max(60, round(rate_bps / 8 / _IDLE_FRAMES_HZ)))


class _IdleFrames:
    """A thread that keeps frames waiting in the last band of one side's queue."""

    def __init__(self, namespace: str, frame_bytes: int) -> None:
        self.frame_bytes = frame_bytes
        self._namespace, self._ended, self._wanted = namespace, threading.Event(), threading.Event()
        self._wanted.set()
        self._line: socket.socket | None = None
        self._thread = threading.Thread(target=self._send, name=f"idle frames of {namespace}", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Send none, and wait until none waits: at a lower rate, large ones would let the bucket fill up meanwhile."""
        self._wanted.clear()
        end_s = time.monotonic() + _DRAIN_S
        while self._line is not None and time.monotonic() < end_s:
            waiting = struct.unpack("i", fcntl.ioctl(self._line, termios.TIOCOUTQ, b"\0" * 4))[0]
            if not waiting:
                return
            time.sleep(0.001)

    def go_on(self, frame_bytes: int) -> None:
        """Send frames of this size from now on."""
        self.frame_bytes = frame_bytes
        self._wanted.set()

    def end(self) -> None:
        self._ended.set()
        self._wanted.set()
        self._thread.join()

    def _send(self) -> None:
        enter(self._namespace)
        line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with line, suppress(OSError):  # the namespace was removed
            line.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _IDLE_PRIORITY)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _IDLE_FRAMES_WAITING * 1024)
            line.settimeout(0.2)
            line.bind((PORT, 0))
            head = b"\x02" * 12 + _IDLE_ETHERTYPE.to_bytes(2, "big")  # to and from nobody
            self._line = line
            while not self._ended.is_set():
                self._wanted.wait()
                with suppress(TimeoutError):
                    line.send(head.ljust(self.frame_bytes, b"\0"))


def _tcp_settings() -> list[str]:
    """A common stack's, whatever this machine's are: a model of the path (bbr) would measure itself."""
    return ["net.ipv4.tcp_congestion_control=reno", "net.ipv4.tcp_no_metrics_save=1"]


def _remove(name: str) -> None:
    """Remove a namespace, if it is there, and kill what runs in it."""
    if not Path("/run/netns", name).exists():
        return
    with suppress(NamespaceError):
        for pid in _run("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    with suppress(NamespaceError):  # its end of the pair goes at once, and the pair with it
        _run("ip", "-n", name, "link", "del", PORT)
    with suppress(NamespaceError):
        _run("ip", "netns", "del", name)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(*argv: str) -> str:
    """Its stdout. Raises NamespaceError: it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        why = " ".join((done.stderr or done.stdout).split())
        raise NamespaceError(f"{' '.join(argv)} ended with {done.returncode}: {why}")
    return done.stdout
