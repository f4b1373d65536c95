"""Layer-wise latency predictors: one regression for each kind of layer and machine, as Neurosurgeon has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from aecnn_deploy.planning.layers import Layer

_LEAST_LAYERS = 5  # of a kind: a regression has three coefficients
_OTHER = "other"
_SMALLEST_MS = 1e-4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerPredictor:
    """Milliseconds of a layer = a + b × multiply-adds + c × bytes written, none of them negative; one for each kind.

    Kinds of which there are few layers share one regression. ``error``: of layers that were left out of the fit, the
    sum of all absolute errors as a share of the sum of the times.
    """

    coefficients: dict[str, tuple[float, float, float]]
    error: float

    @classmethod
    def fit(cls, layers: Sequence[Layer]) -> "LayerPredictor":
        """Fit it to measured ``layers``, at least one; relative errors count, so that small layers do, too."""
        kinds: dict[str, list[Layer]] = {}
        for layer in layers:
            kinds.setdefault(layer.kind, []).append(layer)
        pooled: dict[str, list[Layer]] = {}
        for kind, group in kinds.items():
            pooled.setdefault(kind if len(group) >= _LEAST_LAYERS else _OTHER, []).extend(group)
        missed_ms = sum(
            abs(_predict(_fit([*group[:index], *group[index + 1 :]] or group), layer) - layer.ms)
            for group in pooled.values()
            for index, layer in enumerate(group)
        )
        total_ms = sum(layer.ms for layer in layers)
        return cls({kind: _fit(group) for kind, group in pooled.items()}, missed_ms / total_ms if total_ms > 0 else 0.0)

    def predict_ms(self, layer: Layer) -> float:
        """Milliseconds of ``layer`` by its kind, multiply-adds and bytes alone; what was measured of it is not used."""
        known = self.coefficients.get(layer.kind) or self.coefficients.get(_OTHER)
        return _predict(known, layer) if known is not None else 0.0


def _predict(coefficients: tuple[float, float, float], layer: Layer) -> float:
    constant, by_macs, by_bytes = coefficients
    return constant + by_macs * layer.macs + by_bytes * layer.written_bytes


def _fit(layers: Sequence[Layer]) -> tuple[float, float, float]:
    """Non-negative least squares of relative errors: of three coefficients, every set that may be above 0 is tried."""
    times = np.array([max(layer.ms, _SMALLEST_MS) for layer in layers])
    inputs = np.array([(1.0, layer.macs, layer.written_bytes) for layer in layers])
    scale = np.maximum(inputs.max(axis=0), 1.0)
    weighted = inputs / scale / times[:, None]
    best: Floats = np.zeros(3)
    best_error = float("inf")
    for size in (1, 2, 3):
        for columns in combinations(range(3), size):
            found = np.linalg.lstsq(weighted[:, columns], np.ones(len(layers)), rcond=None)[0]
            if (found < 0).any():
                continue
            candidate = np.zeros(3)
            candidate[list(columns)] = found
            error = float(((weighted @ candidate - 1) ** 2).sum())
            if error < best_error - 1e-12:
                best, best_error = candidate, error
    constant, by_macs, by_bytes = (float(value) for value in best / scale)
    return constant, by_macs, by_bytes
