"""What suits a variant's planes: the prediction that zstd makes most of, and a zstd dictionary where one pays."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from aecnn_deploy.bundle.manifest import CodingSpec, Manifest, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.codec import DEFAULT_LEVEL, PREDICTORS, PlaneDictionary, PlaneEncoder, PlaneLayout
from aecnn_deploy.codec.prediction import residuals
from aecnn_deploy.errors import CodecError

MOST_IMAGES = 400
_FEWEST_FOR_DICTIONARY = 24  # images; of fewer a dictionary learns these images and no others
_HELD_OUT = 3  # of so many images one measures, the rest train
_DICTIONARY_BYTES = (512, 2048, 8192)
_FAST = ("left", "up", "paeth")  # the median is undone diagonal by diagonal, some twenty times slower
_MEDIAN_PAYS = 0.95  # of the bytes of the better of the fast ones
_PAYS = 0.98  # of the bytes without it, on images that it was not trained on

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PlaneCoding:
    """``sizes``: mean payload bytes of the images that measured (all of them where no dictionary was tried)."""

    predictor: str
    dictionary: PlaneDictionary | None
    sizes: dict[str, float]
    images: int

    def measurements(self) -> dict[str, object]:
        """For a manifest."""
        sizes = {name: round(size, 1) for name, size in self.sizes.items()}
        return {"images": self.images, "payload_bytes": sizes}


def calibrate_coding(planes: Array, bits: int) -> PlaneCoding:
    """Choose for ``planes``, uint8 (N, C, H, W) of N images, with values below 2**``bits``.

    The median prediction, which takes longer to undo, is chosen where it saves 5 %. A dictionary is trained on two
    thirds of the images, and kept where the others are coded at least 2 % smaller with it than by any prediction, or
    none, without it. The same planes give the same choice. Raises CodecError: no image, planes of another kind, or a
    value over ``bits``.
    """
    if planes.dtype != np.uint8 or planes.ndim != 4 or not len(planes):
        raise CodecError(f"planes are uint8 (N, C, H, W) of at least one image, got {planes.dtype} {planes.shape}")
    shape = (planes.shape[1], planes.shape[2], planes.shape[3])
    layout = PlaneLayout(shape, bits)
    layout.check_values(planes)
    planes = np.ascontiguousarray(planes)
    enough = len(planes) >= _FEWEST_FOR_DICTIONARY
    measured = planes[::_HELD_OUT] if enough else planes
    names = ("zstd", *(f"{predictor}-zstd" for predictor in PREDICTORS))
    sizes = {name: _mean_bytes(PlaneEncoder(shape, bits, coder=name), measured) for name in names}
    predictor = min(_FAST, key=lambda name: sizes[f"{name}-zstd"])
    if sizes["median-zstd"] <= _MEDIAN_PAYS * sizes[f"{predictor}-zstd"]:
        predictor = "median"
    dictionary = None
    if enough:
        training = np.delete(planes, np.s_[::_HELD_OUT], axis=0)
        samples: list[bytes | bytearray | memoryview] = [
            residuals(layout, image, predictor).tobytes() for image in training
        ]
        without = min(sizes.values())
        for size in _DICTIONARY_BYTES:
            content = _trained(samples, size)
            if content is None:
                continue
            tried = PlaneDictionary(predictor, content)
            encoder = PlaneEncoder(shape, bits, coder="zstd-dict", dictionary=tried)
            got = _mean_bytes(encoder, measured)
            if got <= _PAYS * without and got < sizes.get("zstd-dict", np.inf):
                dictionary, sizes["zstd-dict"] = tried, got
    return PlaneCoding(predictor, dictionary, sizes, len(planes))


def calibrate_bundle(bundle: Bundle, planes_of: Callable[[VariantSpec], Array], writer: BundleWriter) -> Manifest:
    """Write ``bundle`` again with the coding of every variant calibrated on the planes that ``planes_of`` gives for it.

    All else stays as it is, but for the bundle id. Use it within the writer's context. Raises CodecError, BundleError.
    """
    manifest = bundle.manifest
    old = {spec.coding.dictionary for spec in manifest.variants if spec.coding}
    for name in manifest.files:
        if name not in old:
            writer.copy(bundle.file(name), name)
    variants, measured = [], {}
    for spec in manifest.variants:
        coding = calibrate_coding(planes_of(spec), spec.bits)
        measured[spec.id] = coding.measurements()
        variants.append(msgspec.structs.replace(spec, coding=write_coding(writer, spec.id, coding)))
    return writer.commit_changed(
        manifest, variants=tuple(variants), measurements={**manifest.measurements, "coding": measured}
    )


def write_coding(writer: BundleWriter, variant: str, coding: PlaneCoding) -> CodingSpec:
    """The manifest's entry; the dictionary becomes a file of the bundle."""
    if coding.dictionary is None:
        return CodingSpec(coding.predictor)
    name = f"dictionaries/{variant}.zdict"
    writer.path(name).write_bytes(coding.dictionary.content)
    return CodingSpec(coding.predictor, name)


def _mean_bytes(encoder: PlaneEncoder, planes: Array) -> float:
    return float(np.mean([len(encoder.encode(image).payload) for image in planes]))


def _trained(samples: list[bytes | bytearray | memoryview], size: int) -> bytes | None:
    """None: zstd finds too little in the samples for a dictionary of this size."""
    try:
        return zstandard.train_dictionary(size, samples, level=DEFAULT_LEVEL, dict_id=1).as_bytes()
    except zstandard.ZstdError:
        return None
