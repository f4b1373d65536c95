"""The edge's side of its replicas: who is there with which models, and whose turn it is to run a batch."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from aecnn_deploy.errors import RunnerError
from aecnn_deploy.runtimes.ray_wire import (
    Introduction,
    Inventory,
    ModelInfo,
    Orders,
    challenge,
    receive,
    send,
    tune,
)

logger = logging.getLogger("aecnn_deploy.edge")

_HANDSHAKE_S = 5.0
_LOOK_AGAIN_S = 0.25
_AT_ONCE = 5  # one in so many replicas that serve load or free models at the same time


@dataclass(slots=True, eq=False)
class Replica:
    """One replica: ``idle`` are its connections that carry no batch now."""

    name: str
    node: str
    pid: int
    inventory: Inventory = field(default_factory=Inventory)
    control: socket.socket | None = None
    idle: list[socket.socket] = field(default_factory=list)
    busy: int = 0
    told: tuple[str, ...] | None = None  # the models that it was told to have
    used_s: float = 0.0  # when it was given a batch last

    @property
    def follows(self) -> bool:
        """Whether it has done what it was told."""
        inventory = self.inventory
        return self.told is not None and {*inventory.loaded, *inventory.failed} == set(self.told)

    def can(self, key: str) -> bool:
        """Whether it can be given a batch of the model now."""
        there = self.control is not None and not self.inventory.leaving
        return there and bool(self.idle) and key in self.inventory.loaded


@dataclass(frozen=True, slots=True, eq=False)
class Lent:
    """A replica's connection, for one batch."""

    replica: Replica
    connection: socket.socket
    waiting: float  # this replica's share of the batches that wait for any


class ReplicaDesk:
    """Listens for replicas and lends their connections: the replica with the least to do first.

    Called from any thread. ``host``: the address that the nodes reach this machine at. Raises OSError: it is none of
    this machine's.
    """

    def __init__(self, host: str, secret: bytes) -> None:
        self._secret = secret
        self._changed = threading.Condition()
        self._replicas: dict[str, Replica] = {}
        self._wanted: tuple[str, ...] = ()
        self._waiting = 0
        self._closed = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=1024)
        self.host, self.port = host, int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="ray replicas", daemon=True).start()

    @property
    def replicas(self) -> list[Replica]:
        """Those that are connected."""
        with self._changed:
            return [replica for replica in self._replicas.values() if replica.control is not None]

    def want(self, models: Iterable[str]) -> None:
        """Have every replica load ``models`` and free all others: some replicas after the others. Returns at once."""
        with self._changed:
            self._wanted = tuple(models)
            self._roll()

    def borrow(self, key: str, limit_s: float) -> Lent:
        """A free connection of a replica that has the model. Raises RunnerError: none within ``limit_s`` seconds."""
        end_s = time.monotonic() + limit_s
        with self._changed:
            self._waiting += 1
            try:
                while not self._closed:
                    free = [replica for replica in self._replicas.values() if replica.can(key)]
                    if free:
                        return self._lend(min(free, key=lambda replica: (replica.busy, replica.used_s)))
                    left_s = end_s - time.monotonic()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
            finally:
                self._waiting -= 1
            having = sum(key in replica.inventory.loaded for replica in self._replicas.values())
        raise RunnerError(
            f"no replica on the Ray cluster took the batch within {limit_s:g} s; {len(self.replicas)} are connected, "
            f"{having} have the model: see 'ray status' and 'serve status'"
        )

    def give_back(self, lent: Lent) -> None:
        """The batch was answered."""
        with self._changed:
            lent.replica.busy -= 1
            if self._replicas.get(lent.replica.name) is lent.replica:
                lent.replica.idle.append(lent.connection)
                self._changed.notify()
            else:
                lent.connection.close()

    def lost(self, lent: Lent) -> None:
        """The connection broke under the batch; the replica makes another one, if it lives."""
        lent.connection.close()
        with self._changed:
            lent.replica.busy -= 1

    def wait_for(self, found: Callable[[], bool], limit_s: float) -> bool:
        """Wait until ``found``, which is asked after each change and four times a second; whether it came true."""
        end_s = time.monotonic() + limit_s
        while not found():
            if self._closed or time.monotonic() > end_s:
                return False
            with self._changed:
                self._changed.wait(_LOOK_AGAIN_S)
        return True

    def info(self, key: str) -> ModelInfo | None:
        """What a replica that has loaded the model says of it; None: none has."""
        return next((one.inventory.loaded[key] for one in self.replicas if key in one.inventory.loaded), None)

    def failures(self, key: str) -> Mapping[str, str]:
        """Node -> why its replica could not load the model."""
        return {one.node: one.inventory.failed[key] for one in self.replicas if key in one.inventory.failed}

    def close(self) -> None:
        """Close every connection; whoever waits is told."""
        with self._changed:
            self._closed = True
            gone = list(self._replicas.values())
            self._replicas.clear()
            self._changed.notify_all()
        self._listener.close()
        for replica in gone:
            for connection in (*replica.idle, *([replica.control] if replica.control else [])):
                _end(connection)

    def _lend(self, replica: Replica) -> Lent:
        replica.busy += 1
        replica.used_s = time.monotonic()
        return Lent(replica, replica.idle.pop(), (self._waiting - 1) / len(self._replicas))

    def _roll(self) -> None:
        """Tell the next replicas what is wanted, called with the lock held after each change.

        A model that loads takes the cores of its node. Those that serve nothing yet are told at once.
        """
        there = [replica for replica in self._replicas.values() if replica.control is not None]
        serving = [replica for replica in there if replica.told is not None and replica.inventory.loaded]
        at_it = sum(not replica.follows for replica in serving)
        for replica in there:
            if replica.told == self._wanted:
                continue
            if replica in serving and replica.follows:
                if at_it >= max(1, len(there) // _AT_ONCE):
                    continue
                at_it += 1
            replica.told = self._wanted
            with suppress(OSError):  # it is gone, which its connection's thread hears
                assert replica.control is not None
                send(replica.control, Orders(self._wanted))

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._welcome, args=(connection,), name="ray replica", daemon=True).start()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_HANDSHAKE_S)
            tune(connection)
            challenge(connection, self._secret)
            words, _ = receive(connection, Introduction)
            connection.settimeout(None)
        except OSError as exc:
            connection.close()
            logger.debug("not a replica: %s", exc)
            return
        with self._changed:
            if self._closed:
                connection.close()
                return
            replica = self._replicas.get(words.replica)
            if replica is None:
                replica = self._replicas[words.replica] = Replica(words.replica, words.node, words.pid)
            if words.data:
                replica.idle.append(connection)
                self._changed.notify_all()
                return
            replica.control, replica.told = connection, None
            self._roll()
        self._listen(replica, connection)

    def _listen(self, replica: Replica, control: socket.socket) -> None:
        """Hear what the replica has loaded, until the connection ends, which is the replica's end."""
        logger.info("replica %s on %s is connected, process %d", replica.name, replica.node, replica.pid)
        try:
            while True:
                inventory, _ = receive(control, Inventory)
                with self._changed:
                    replica.inventory = inventory
                    self._roll()
                    self._changed.notify_all()
        except OSError:
            pass
        control.close()
        with self._changed:
            if replica.control is not control:
                return  # it has another one by now
            self._replicas.pop(replica.name, None)
            replica.control = None
            idle, replica.idle = replica.idle, []
            self._roll()
            self._changed.notify_all()
        for connection in idle:
            _end(connection)
        if not self._closed:
            logger.info("replica %s on %s is gone", replica.name, replica.node)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
