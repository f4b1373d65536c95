"""Which of a bundle's variants a live choice is among, and by which figure one of them is the more accurate."""

from dataclasses import dataclass
from typing import Literal

from aecnn_deploy.bundle.manifest import Manifest, VariantSpec
from aecnn_deploy.errors import SettingsError

Metric = Literal["accuracy", "agreement"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant. ``index``: in the manifest and in HELLO.variants. ``accuracy``: 0 to 1, by one metric for all."""

    variant: str
    index: int
    accuracy: float
    head_macs: int
    tail_macs: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates, the most accurate first; of equally accurate ones the order of the manifest.

    ``unsplit``: the unsplit model by the same metric; None: the bundle does not say.
    """

    metric: Metric
    candidates: tuple[Candidate, ...]
    unsplit: float | None


def ranking(manifest: Manifest, min_accuracy: float | None = None, *, local: bool = False) -> Ranking | None:
    """What a live choice is among; None: not all variants have a figure, and none was asked for.

    ``local``: the unsplit model is a way, too. Raises SettingsError: there are no figures to compare ``min_accuracy``
    with, or nothing is as accurate.
    """
    variants = manifest.variants
    metric: Metric
    if all(spec.accuracy is not None for spec in variants):
        metric = "accuracy"
        told = manifest.measurements.get("unsplit_accuracy")
        unsplit = float(told) if isinstance(told, int | float) else None
    elif all(spec.agreement is not None for spec in variants):
        metric, unsplit = "agreement", 1.0
    elif min_accuracy is None:
        return None
    else:
        names = ", ".join(spec.id for spec in variants)
        raise SettingsError(
            "the bundle states neither accuracy nor agreement for all of its variants, so --min-accuracy cannot be "
            f"kept; fix one of them with --variant: {names}"
        )
    every = [_candidate(index, spec, metric) for index, spec in enumerate(variants)]
    every.sort(key=lambda candidate: -candidate.accuracy)
    enough = tuple(candidate for candidate in every if min_accuracy is None or candidate.accuracy >= min_accuracy)
    if not enough and not (local and (unsplit is None or unsplit >= (min_accuracy or 0.0))):
        best = every[0]
        beside = ""
        if local and unsplit is not None and unsplit > best.accuracy:
            beside = f", and the unsplit model has {unsplit:.4g}"
        raise SettingsError(
            f"--min-accuracy is {min_accuracy:g}, and no variant is as accurate: the best, {best.variant}, has "
            f"{metric} {best.accuracy:.4g}{beside}; ask for less, or export another variant"
        )
    return Ranking(metric, enough, unsplit)


def _candidate(index: int, spec: VariantSpec, metric: Metric) -> Candidate:
    value = spec.accuracy if metric == "accuracy" else spec.agreement
    assert value is not None
    return Candidate(spec.id, index, value, spec.head_macs, max(0, spec.full_macs - spec.head_macs))
