"""The models that the Open Inference Protocol shows of an edge: those of the current bundle, and of the one before."""

from collections import defaultdict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.edge_generation import Generation
from aecnn_deploy.runtimes.edge_lane import Lane
from aecnn_deploy.runtimes.edge_service import EdgeService
from aecnn_deploy.runtimes.edge_view import FULL, SPLIT
from aecnn_deploy.runtimes.oip_failures import NOT_FOUND, unknown
from aecnn_deploy.runtimes.oip_models import FULL_MODEL, TensorModel, tensor_models
from aecnn_deploy.runtimes.oip_statistics import ModelStatistics
from aecnn_deploy.wire import FailureCode


@dataclass(frozen=True, slots=True)
class Served:
    """One model with its lane."""

    model: TensorModel
    lane: Lane
    generation: Generation

    @property
    def path(self) -> str:
        """How metrics and the status page call what it does."""
        return FULL if self.model.name == FULL_MODEL else SPLIT


class Catalogue:
    """What can be asked for. Lives on the event loop."""

    def __init__(self, service: EdgeService) -> None:
        self._service = service
        self._of_generation: WeakKeyDictionary[Generation, dict[str, TensorModel]] = WeakKeyDictionary()
        self.statistics: dict[str, ModelStatistics] = defaultdict(ModelStatistics)
        settings = service.settings
        # A request of more rows would find no place even in an edge that does nothing else.
        self.max_rows = min(
            settings.open_inference.max_rows,
            settings.max_queue,
            settings.max_in_flight,
            settings.guard.limits.in_flight,
        )

    @property
    def names(self) -> list[str]:
        """Of the current bundle's models: each variant's id, and ``full``."""
        return [*self._service.current.tails, FULL_MODEL]

    def find(self, name: str, bundle_id: str | None = None) -> Served:
        """The model ``name`` of the bundle ``bundle_id``, without one of the current bundle.

        Raises RequestFailedError: there is no such bundle, or no such model in it.
        """
        generation = self._service.current if bundle_id is None else self._service.generation(bundle_id)
        if generation is None:
            assert bundle_id is not None
            raise RequestFailedError(NOT_FOUND, unknown("bundle", bundle_id, [self._service.bundle.id]))
        models = self._of_generation.get(generation)
        if models is None:
            models = self._of_generation[generation] = tensor_models(generation.bundle, self.max_rows)
        model = models.get(name)
        if model is None:
            raise RequestFailedError(NOT_FOUND, unknown("model", name, models))
        return Served(model, generation.full if name == FULL_MODEL else generation.tails[name], generation)

    def refusal(self, served: Served) -> str:
        """Why the edge takes no request for ``served`` now; "": it does."""
        if self._service.draining or not self._service.ready:
            return "the edge is shutting down" if self._service.draining else "the edge is still loading its models"
        error = self._service.pool.failed_lately(served.lane)
        return "" if error is None else str(error)

    def check_loaded(self) -> None:
        """Raises RequestFailedError: the edge is not ready yet."""
        if not self._service.ready:
            why = "the edge is still loading its models; try again"
            raise RequestFailedError(FailureCode.OVERLOADED, why, 1.0)
