"""Tails on a Ray cluster: an edge keeps its devices, queues and decoding; replicas on other nodes run the models."""

import logging
import secrets
import threading
import time
from collections import Counter

import numpy as np

from aecnn_deploy.bundle.manifest import MANIFEST, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import RunnerError, ServeError
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.ray_address import LOCAL
from aecnn_deploy.runtimes.ray_app import RayApp
from aecnn_deploy.runtimes.ray_desk import Lent, ReplicaDesk
from aecnn_deploy.runtimes.ray_files import files_of, model_key, read_file
from aecnn_deploy.runtimes.ray_metrics import RayMetrics
from aecnn_deploy.runtimes.ray_settings import IN_FLIGHT, RaySettings
from aecnn_deploy.runtimes.ray_wire import SECRET_BYTES, BatchHead, LogitsHead, receive, send, tensor_of

logger = logging.getLogger("aecnn_deploy.edge")

_BUILD_S = 1800.0  # for a model whose engine may have to be built first
_WATCH_S = 2.0
_LOOPBACK = "127.0.0.1"


class RayTails:
    """The ``RemoteTails`` of a Ray cluster. ``start`` it before the edge, ``close`` it after."""

    target = "ray"

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.metrics = RayMetrics(self._count)
        self._app = RayApp(settings)
        self._desk: ReplicaDesk | None = None
        self._models: Counter[str] = Counter()  # key -> runners that are active
        self._lock = threading.Lock()
        self._wanted = 0
        self._closed, self._closing, self._left = threading.Event(), threading.Lock(), False
        self._alone_s: float | None = None  # since when no replica is connected

    def start(self) -> None:
        """Join the cluster, start the replicas and wait for the first.

        Raises SettingsError, ServeError: there is no such cluster, or it has no room for a replica within ``start_s``.
        """
        settings = self.settings
        host = self._app.connect()
        if settings.address == LOCAL:
            host = _LOOPBACK
        secret = secrets.token_bytes(SECRET_BYTES)
        try:
            desk = self._desk = ReplicaDesk(host, secret)
        except OSError as exc:
            raise ServeError(f"cannot listen for replicas on {host}: {exc.strerror}; is it this machine's?") from None
        self._app.deploy(host, desk.port, secret)
        if not desk.wait_for(lambda: bool(desk.replicas), settings.start_s):
            _, wrong = self._app.state()
            raise ServeError(
                f"no replica started on the Ray cluster within {settings.start_s:g} s: {self._app.explain_missing()}"
                + (f"; Serve says: {' '.join(wrong.split())[-300:]}" if wrong else "")
                + "; free some, or give less in --ray-cpus and --ray-gpus"
            )
        threading.Thread(target=self._watch, name="ray status", daemon=True).start()

    def runner(self, bundle: Bundle, variant: VariantSpec | None) -> Runner:
        """A runner for the variant's tail, or the unsplit model; its ``activate`` waits for a replica to load it."""
        return RayRunner(self, bundle, variant)

    def away(self) -> str | None:
        """Why no model that is loaded can be run: there has been no replica for longer than a batch waits for one."""
        since_s, limit_s = self._alone_s, self.settings.replica_wait_s
        if since_s is None or not self._models or time.monotonic() - since_s < limit_s:
            return None
        return f"no replica has been connected for over {limit_s:g} s"

    def close(self) -> None:
        """End the replicas and leave the cluster, within half a minute; twice does no harm."""
        self._closed.set()
        with self._closing:  # who comes second waits: the process may end when this returns
            if not self._left:
                self._left = True
                self._app.close()
                if self._desk is not None:
                    self._desk.close()

    @property
    def desk(self) -> ReplicaDesk:
        """Once it is started."""
        assert self._desk is not None, "start() comes first"
        return self._desk

    def take(self, bundle: Bundle, variant: str | None) -> None:
        """Have replicas load a model. Raises ServeError: Ray does not take it."""
        names = files_of(bundle.manifest, variant, gpu=self.settings.gpus > 0)
        files = {name: read_file(bundle.root / name) for name in (MANIFEST, *names)}
        self._app.put(bundle.id, files)
        with self._lock:
            self._models[model_key(bundle.id, variant)] += 1
            self.desk.want(sorted(self._models))

    def release(self, bundle: Bundle, variant: str | None) -> None:
        """Have replicas free a model that nobody else uses."""
        key = model_key(bundle.id, variant)
        with self._lock:
            self._models[key] -= 1
            if self._models[key] > 0:
                return
            del self._models[key]
            if self._closed.is_set():
                return
            self.desk.want(sorted(self._models))
            if not any(other.startswith(f"{bundle.id}/") for other in self._models):
                self._app.drop(bundle.id)

    def _count(self) -> tuple[int, int]:
        return (len(self._desk.replicas) if self._desk is not None else 0), self._wanted

    def _watch(self) -> None:
        """Ask Serve now and then what it wants, so that nobody who asks for metrics waits for it."""
        said = ""
        while not self._closed.wait(_WATCH_S):
            try:
                self._wanted, wrong = self._app.state()
            except ServeError as exc:
                wrong = str(exc)
            self._alone_s = None if self.desk.replicas else self._alone_s or time.monotonic()
            if self._closed.is_set():
                return
            if wrong and wrong != said:
                logger.warning("on the Ray cluster: %s", " ".join(wrong.split())[:500])
            said = wrong


class RayRunner(Runner):
    """Runs a model's batches on whichever replica has it and is free."""

    name = "ray"

    def __init__(self, tails: RayTails, bundle: Bundle, variant: VariantSpec | None) -> None:
        super().__init__()
        self._tails, self._bundle = tails, bundle
        self._variant = None if variant is None else variant.id
        self._key = model_key(bundle.id, self._variant)
        self.concurrency = IN_FLIGHT * tails.settings.max_replicas

    def _activate(self) -> None:
        tails, desk, settings = self._tails, self._tails.desk, self._tails.settings
        tails.take(self._bundle, self._variant)
        limit_s = settings.start_s if settings.engines is None or not settings.gpus else _BUILD_S
        desk.wait_for(lambda: desk.info(self._key) is not None or self._refused(), limit_s)
        info = desk.info(self._key)
        if info is None:
            failures = desk.failures(self._key)
            tails.release(self._bundle, self._variant)
            if failures:
                node, why = next(iter(failures.items()))
                raise RunnerError(f"Ray node {node} cannot load {self._key.partition('/')[2] or 'full'}: {why}")
            raise RunnerError(
                f"no replica loaded {self._key.partition('/')[2] or 'full'} within {limit_s:g} s, "
                f"{len(desk.replicas)} are connected; see 'serve status', or raise --ray-start-s"
            )
        self.input_shape, self.output_shape = info.input_shape, info.output_shape
        self.input_dtype, self.output_dtype = np.dtype(info.input_dtype), np.dtype(info.output_dtype)
        if settings.gpus and info.target == "onnxruntime":
            logger.warning("%s runs on its node's CPU: it has no engine for the GPU", self._key)

    def _refused(self) -> bool:
        """Whether every replica that is there could not load it."""
        return 0 < len(self._tails.desk.replicas) <= len(self._tails.desk.failures(self._key))

    def _infer(self, batch: Array) -> Array:
        tails, desk, settings = self._tails, self._tails.desk, self._tails.settings
        attempts = 0
        while True:
            began_s = time.perf_counter()
            try:
                lent = desk.borrow(self._key, settings.replica_wait_s)
            except RunnerError:
                tails.metrics.failed()
                raise
            lent_s = time.perf_counter()
            try:
                head, body = self._ask(lent, batch)
                logits = tensor_of(body, self.output_dtype.name, head.shape) if not head.error else None
            except OSError as exc:  # its replica or its node died, or the network to it
                desk.lost(lent)
                attempts += 1
                if attempts >= settings.attempts:
                    tails.metrics.failed()
                    raise RunnerError(
                        f"a batch of {len(batch)} was lost with {attempts} replicas, the last on {lent.replica.node}: "
                        f"{exc or type(exc).__name__}; see the log of that node"
                    ) from None
                tails.metrics.retried()
                continue
            desk.give_back(lent)
            if head.absent:
                continue  # it freed the model meanwhile, and says so on its other connection
            if logits is None:
                tails.metrics.failed()
                raise RunnerError(f"on Ray node {lent.replica.node}: {head.error}")
            if logits.shape != (len(batch), *self.output_shape):
                raise RunnerError(f"Ray node {lent.replica.node} gave logits {logits.shape} for {len(batch)} images")
            tails.metrics.ran(lent_s - began_s, time.perf_counter() - lent_s, head.run_s)
            return logits

    def _ask(self, lent: Lent, batch: Array) -> tuple[LogitsHead, bytearray]:
        connection = lent.connection
        connection.settimeout(self._tails.settings.batch_s)
        send(connection, BatchHead(self._key, batch.shape, lent.waiting), batch)
        return receive(connection, LogitsHead)

    def _deactivate(self) -> None:
        self._tails.release(self._bundle, self._variant)
