"""How accurate each way is, as far as the bundle knows it.

Accuracy against labels and agreement with the unsplit model are two measures, and one ranking never mixes them.
"""

from dataclasses import dataclass
from typing import Literal

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.planning.predict import OfferedImage

Measure = Literal["accuracy", "agreement"]


@dataclass(frozen=True, slots=True)
class Known:
    """``accuracy``: 0 to 1; None: it was not measured. ``at_most``: what it can be no better than, if that is known."""

    accuracy: float | None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Accuracies:
    """The accuracies of a bundle's ways, all by one ``measure``; None: no variant has any."""

    measure: Measure | None
    unsplit: float | None
    _variants: dict[str, float]

    def of_variant(self, variant: str) -> Known:
        return Known(self._variants.get(variant))

    def of_image(self, image: OfferedImage) -> Known:
        """Of the unsplit model on what the edge decodes: the unsplit model's own where nothing is lost on the way.

        What a classifier makes of JPEG or WebP frames is not in a bundle. It is taken for unknown and not for free.
        """
        return Known(self.unsplit) if image.lossless else Known(None, self.unsplit)

    def of_local(self) -> Known:
        return Known(self.unsplit)


def accuracies(manifest: Manifest) -> Accuracies:
    """By labels where every variant has that, else by agreement where every one has it, else what some have."""
    by_labels = {spec.id: spec.accuracy for spec in manifest.variants if spec.accuracy is not None}
    by_unsplit = {spec.id: spec.agreement for spec in manifest.variants if spec.agreement is not None}
    all_variants = len(manifest.variants)
    if len(by_labels) == all_variants or (by_labels and len(by_unsplit) < all_variants):
        return Accuracies("accuracy", _share(manifest.measurements.get("unsplit_accuracy")), by_labels)
    if by_unsplit:
        return Accuracies("agreement", 1.0, by_unsplit)
    return Accuracies(None, None, {})


def _share(value: object) -> float | None:
    """``value`` if it is a number from 0 to 1: measurements are of no fixed form."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return float(value)
