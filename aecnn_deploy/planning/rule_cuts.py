"""Two more rules for the unsplit model's cuts: JPEG-coded features, and the late split.

JPEG-coded features: Ko, Na, Amir, Mukhopadhyay, "Edge-Host Partitioning of Deep Neural Networks with Feature Space
Encoding for Resource-Constrained Internet-of-Things Platforms", AVSS 2018. The tensor at a cut is quantised to 8 bits
and coded as JPEG. As in the paper: network unchanged, cut and quality chosen together, within a loss of accuracy.
What differs: the least completion time is looked for, not the throughput or the energy of the device; the loss is that
of top-1 agreement on photographs without labels; and the coder's time is estimated from a photograph's, by pixels.

Late split: what AECNN (section II) says is left without compression. The tensors of the first layers are larger than
the image, so that a split by size alone comes late.
"""

from collections.abc import Iterator, Mapping
from math import prod

from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.partitions import Partition, Situation, float_bytes, nearest_jpeg
from aecnn_deploy.planning.profiles import CutFeatures, ImageCoding, Timing
from aecnn_deploy.planning.rule_outcome import RuleChoice, choice

_RANGE_BYTES = 8  # the least and the greatest value of a tensor that goes in 8 bits


def jpeg_features(rule: str, situation: Situation) -> RuleChoice:
    """The fastest cut and quality within the loss; if there is none, the most accurate one. Raises PlanError."""
    coded = list(coded_cuts(situation))
    if not coded:
        raise PlanError("no cut was run through JPEG; run: aecnn-deploy calibrate features")
    least = 1 - situation.max_loss
    within = [(partition, agreement) for partition, agreement in coded if agreement >= least]
    if within:
        best, agreement = min(within, key=lambda item: item[0].total_ms)
        why = f"the fastest of {len(within)} cuts and qualities with an agreement of {least:.1%} or more"
    else:
        best, agreement = min(coded, key=lambda item: (-item[1], item[0].total_ms))
        why = f"none of {len(coded)} cuts and qualities agrees for {least:.1%}: the one that agrees most"
    why += f"; it agrees with the unsplit model for {agreement:.1%}"
    if best.accuracy is not None:
        why += ", from which its accuracy is estimated"
    return choice(rule, situation, best, why)


def coded_cuts(situation: Situation) -> Iterator[tuple[Partition, float]]:
    """Every measured cut and quality, with its agreement. Raises PlanError: a half has no time of JPEG or of layers."""
    for cut in situation.cuts:
        for quality, payload_bytes in cut.jpeg_bytes.items():
            agreement, unsplit = cut.jpeg_agreement.get(quality), situation.unsplit_accuracy
            if agreement is None:
                continue
            yield (
                situation.at_cut(
                    cut,
                    payload_bytes,
                    f"as JPEG of quality {quality}",
                    accuracy=None if unsplit is None else unsplit * agreement,
                    encode_ms=prod(cut.shape) * _jpeg_ms_per_pixel(_encodes(situation), quality, "device"),
                    decode_ms=prod(cut.shape) * _jpeg_ms_per_pixel(_decodes(situation), quality, "edge"),
                ),
                agreement,
            )


def late_split(rule: str, situation: Situation) -> RuleChoice:
    """The first cut whose float32 tensor (eq. 1) is smaller than the raw frame. Raises PlanError: there is none."""
    limit = situation.raw_frame_bytes
    cut = _first(situation, {cut.tensor: float_bytes(cut) for cut in situation.cuts}, limit, "the raw frame")
    best = situation.at_cut(cut, float_bytes(cut), "float32", accuracy=situation.unsplit_accuracy)
    why = f"the first cut with fewer bytes than the raw frame's {limit:,}: {float_bytes(cut):,}"
    return choice(rule, situation, best, why)


def late_split_u8(rule: str, situation: Situation) -> RuleChoice:
    """The first cut whose tensor, in 8 bits, is smaller than the frame as JPEG. Raises PlanError: there is none."""
    image = _usual_jpeg(situation)
    cut = _first(
        situation,
        {cut.tensor: prod(cut.shape) + _RANGE_BYTES for cut in situation.cuts},
        image.bytes_mean,
        f"the frame as {image.coding}",
    )
    accuracy, told = situation.unsplit_accuracy, "; what 8 bits cost was not measured at this cut"
    if cut.quantised_agreement is not None:
        accuracy = None if accuracy is None else accuracy * cut.quantised_agreement
        told = f"; in 8 bits it agrees with the unsplit model for {cut.quantised_agreement:.1%}"
    sent_bytes = prod(cut.shape) + _RANGE_BYTES
    best = situation.at_cut(cut, sent_bytes, "in 8 bits", accuracy=accuracy)
    why = f"the first cut with fewer bytes than the {image.bytes_mean:,.0f} of {image.coding}: {sent_bytes:,}{told}"
    return choice(rule, situation, best, why)


def _usual_jpeg(situation: Situation) -> ImageCoding:
    images = {item.coding: item for item in situation.frame_codings}
    name = nearest_jpeg(images)
    if name is None:
        raise PlanError("the device profile has no JPEG of the model's frame; run: aecnn-deploy calibrate device")
    return images[name]


def _first(situation: Situation, sizes: Mapping[str, int], limit_bytes: float, what: str) -> CutFeatures:
    for cut in situation.cuts:
        if sizes[cut.tensor] < limit_bytes:
            return cut
    raise PlanError(
        f"no cut has fewer than the {limit_bytes:,.0f} bytes of {what}; the least is {min(sizes.values()):,}"
    )


def _encodes(situation: Situation) -> dict[str, tuple[ImageCoding, Timing]]:
    return {item.coding: (item, item.encode) for item in situation.device.image_codings if item.encode is not None}


def _decodes(situation: Situation) -> dict[str, tuple[ImageCoding, Timing]]:
    return {item.coding: (item, item.decode) for item in situation.edge.image_codings if item.decode is not None}


def _jpeg_ms_per_pixel(times: Mapping[str, tuple[ImageCoding, Timing]], quality: int, whose: str) -> float:
    """Of a photograph in colour, which has half again as many values a pixel as a mosaic, and fewer bits in each."""
    name = nearest_jpeg(times, quality)
    if name is None:
        raise PlanError(f"the {whose} profile has no times of JPEG; run: aecnn-deploy calibrate {whose}")
    item, timing = times[name]
    return timing.p50_ms / (item.width * item.height)
