"""What a half remembers of a stream's planes, and what a bundle says of coding them."""

import threading
from collections import OrderedDict

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import NO_PREDICTOR, PREDICTORS, PlaneDictionary, Planes
from aecnn_deploy.errors import BundleError


class KeptPlanes:
    """On the edge: the planes of the ``most`` newest answered requests of one variant in one session.

    A device that counts its requests up by 1 finds every one of the last ``most`` ids here that was answered.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._planes: OrderedDict[int, Planes] = OrderedDict()
        self._lock = threading.Lock()  # batches that run at once end on threads of their own

    def get(self, request_id: int) -> Planes | None:
        """The planes of that request, if it was answered and is among the newest."""
        return self._planes.get(request_id)

    def keep(self, request_id: int, planes: Planes) -> None:
        """``request_id`` is being answered by a RESULT."""
        with self._lock:
            self._planes.pop(request_id, None)
            self._planes[request_id] = planes
            if len(self._planes) > self._most:
                self._planes.popitem(last=False)


def plane_dictionary(bundle: Bundle, variant: VariantSpec) -> PlaneDictionary | None:
    """The variant's zstd dictionary, None where the bundle has none. Raises BundleError: it cannot be read."""
    coding = variant.coding
    if coding is None or coding.dictionary is None:
        return None
    file = bundle.file(coding.dictionary)
    try:
        return PlaneDictionary(coding.predictor or NO_PREDICTOR, file.read_bytes())
    except OSError as exc:
        raise BundleError(f"cannot read {file}: {exc.strerror or exc}") from None


def useful_coders(variant: VariantSpec, names: tuple[str, ...]) -> tuple[str, ...]:
    """``names`` less those that the bundle's calibration found to be no use: predictions that another one beats."""
    coding = variant.coding
    if coding is None or coding.predictor is None:
        return names
    beaten = {f"{predictor}-zstd" for predictor in PREDICTORS if predictor != coding.predictor}
    return tuple(name for name in names if name not in beaten)
