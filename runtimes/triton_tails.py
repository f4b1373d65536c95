"""Tails on a Triton server, as an edge sees them: one connection, a runner for each model, an eye on all of them."""

import logging
import threading
import time
import weakref

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.triton_channel import TritonChannel
from aecnn_deploy.runtimes.triton_metrics import UpstreamMetrics
from aecnn_deploy.runtimes.triton_model import FULL, needs_of
from aecnn_deploy.runtimes.triton_runner import TritonRunner, Upstream
from aecnn_deploy.runtimes.triton_settings import UpstreamSettings

logger = logging.getLogger("aecnn_deploy.edge")

_PROBE_S = 1.0  # between two looks at the models in use
_ASK_S = 2.0
_PROMPT_S = 2.0  # that a model gets when the wait for the server is over


class TritonTails:
    """RemoteTails of ``settings.url``; a WatchedRemote. Raises what TritonChannel raises.

    Every second each model in use is looked at, since a server may go, come back as another one, or load other models
    under the same names, while nobody asks for an image.
    """

    def __init__(self, settings: UpstreamSettings) -> None:
        self.target = str(settings.address)
        self.metrics = UpstreamMetrics(lambda: self.away() is None)
        self._upstream = Upstream(
            settings, TritonChannel(settings.address, settings.ca), self.metrics, threading.Event(), self._used
        )
        self._begun_s = time.monotonic()
        self._lock = threading.Lock()  # guards what follows
        self._runners: weakref.WeakSet[TritonRunner] = weakref.WeakSet()
        self._watch: threading.Thread | None = None
        self._warned = False

    def runner(self, bundle: Bundle, variant: VariantSpec | None) -> TritonRunner | None:
        """A runner on the server; None for the unsplit model where the server has none.

        Raises UpstreamError: the server cannot be asked for the unsplit model.
        """
        name = self._upstream.settings.model_name(FULL if variant is None else variant.id, bundle.id)
        if variant is None and not self._upstream.channel.model_ready(name, _ASK_S):
            logger.info("%s has no model %s: whole images run on this machine", self.target, name)
            return None
        runner = TritonRunner(needs_of(bundle, variant, name), self._upstream)
        # A server may load one model after the other; later, one that is not there does not come by itself.
        runner.patient_s = max(self._begun_s + runner.patient_s - time.monotonic(), min(runner.patient_s, _PROMPT_S))
        return runner

    def away(self) -> str | None:
        """Why no model in use can be run, if so for longer than batches are tried again."""
        reasons = [runner.outage.away for runner in self._in_use()]
        return None if None in reasons or not reasons else reasons[0]

    def close(self) -> None:
        """End all waiting and trying again, the watch, and the connection. Twice does no harm."""
        self._upstream.closing.set()
        self._upstream.channel.close()

    def _used(self, runner: TritonRunner, active: bool) -> None:
        with self._lock:
            if not active:
                self._runners.discard(runner)
                return
            self._runners.add(runner)
            warn = not (runner.says_bundle or self._warned)
            self._warned = self._warned or warn
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="upstream watch", daemon=True)
                self._watch.start()
        if warn:
            logger.warning(
                "%s does not say which bundle its models are of: only their names, types and shapes are compared",
                self.target,
            )

    def _in_use(self) -> list[TritonRunner]:
        with self._lock:
            return list(self._runners)

    def _look(self) -> None:
        while not self._upstream.closing.wait(_PROBE_S):
            for runner in self._in_use():
                runner.probe()
