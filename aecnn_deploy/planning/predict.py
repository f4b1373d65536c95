"""Completion times from what was measured of both halves and of the link (AECNN, eq. 1 to 4 with measured terms).

Every time begins with an image file that is opened, as in ``run-device``, and ends with the result on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, isfinite
from types import MappingProxyType

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.link import (
    HTTP_BYTES,
    RESPONSE_LINK_BYTES,
    RESULT_LINK_BYTES,
    WEBSOCKET_BYTES,
    Link,
    bytes_on_link,
)
from aecnn_deploy.planning.prediction import FULL, LOCAL, NO_TIME, SEND, SPLIT, Part, Prediction
from aecnn_deploy.planning.profiles import (
    DeviceProfile,
    EdgeProfile,
    ImageRead,
    LinkProfile,
    Timing,
    check_bundle_id,
)
from aecnn_deploy.wire.header import HEADER_BYTES

FILE = "file"  # the image coding of a file that is sent as it is
_LOSSLESS = frozenset({"raw", "png", "webp-lossless", FILE})

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True, slots=True)
class LinkSpread:
    """How far a link strays from what a ``Link`` says of it; rates as shares of the median."""

    rate_p10: float = 1.0
    rate_p90: float = 1.0
    fixed: Part = NO_TIME  # of it: only how far the percentiles lie from the median

    @classmethod
    def of(cls, profile: LinkProfile, *, rate: bool = True, fixed: bool = True) -> "LinkSpread":
        """That of ``profile``; ``rate``, ``fixed``: whether they are the profile's, and not given by somebody."""
        middle = profile_rate(profile)
        low, high = (profile.rate_bps.get(name, middle) / middle if rate else 1.0 for name in ("p10", "p90"))
        # A measured rate of 0 would be a time without end; a tenth of the median says as much.
        return cls(min(max(low, 0.1), 1.0), max(high, 1.0), _part(profile.fixed) if fixed else NO_TIME)


STEADY = LinkSpread()


@dataclass(frozen=True, slots=True)
class OfferedImage:
    """A way to send a whole image that both halves were measured with.

    ``lossless``: the edge's frame is the one that the device would have made.
    """

    name: str  # "jpeg-q75" of the model's frame, "jpeg-q75@1280x720" of another size
    coding: str
    size: Size
    message_bytes: float
    encode: Timing | None  # None: the file is sent as it is, neither read nor encoded
    decode: Timing
    lossless: bool


class Predictor:
    """Completion times of one bundle between one device and one edge.

    ``image_size``: of the camera's images, one that the device's profile has in ``reads``; None is the first there.
    Raises PlanError: a profile is of another bundle, or the size was not measured.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: DeviceProfile,
        edge: EdgeProfile,
        *,
        image_size: Size | None = None,
        spread: LinkSpread = STEADY,
    ) -> None:
        for name, profile in (("device", device), ("edge", edge)):
            check_bundle_id(profile, name, manifest.bundle_id)
        self.manifest, self.device, self.edge = manifest, device, edge
        self._spread = spread
        self.read = _choose_read(device.reads, image_size)
        self.images: Mapping[str, OfferedImage] = MappingProxyType(self._offered_images())

    def coders(self, variant: str) -> list[str]:
        """The coders that both halves were measured with for ``variant``."""
        there = self.edge.coders.get(variant, {})
        return [name for name in self.device.coders.get(variant, {}) if name in there]

    def head(self, variant: str) -> tuple[str, Timing]:
        """The precision that ``run-device`` takes and its time: the faster. Raises PlanError: none was measured."""
        try:
            known = self.manifest.variant(variant).head_files
        except KeyError:
            names = ", ".join(spec.id for spec in self.manifest.variants)
            raise PlanError(f"the bundle has no variant {variant!r}; it has {names}") from None
        times = {name: time for name, time in self.device.heads.get(variant, {}).items() if name in known}
        if not times:
            raise PlanError(f"the device profile has no head of {variant}; run: aecnn-deploy calibrate device")
        return min(times.items(), key=lambda item: item[1].p50_ms)

    def split(self, variant: str, coder: str, link: Link) -> Prediction:
        """``variant`` with its planes coded by ``coder``. Raises PlanError: one of its parts was not measured."""
        precision, head = self.head(variant)
        tail = self.edge.tails.get(variant, {}).get(1)
        if tail is None:
            raise PlanError(f"the edge profile has no tail of {variant} alone; run: aecnn-deploy calibrate edge")
        planes = self.device.coders.get(variant, {}).get(coder)
        decode = self.edge.coders.get(variant, {}).get(coder)
        if planes is None or decode is None:
            lacks = "device" if planes is None else "edge"
            raise PlanError(
                f"the {lacks} profile has no coder {coder} of {variant}; run: aecnn-deploy calibrate {lacks}"
            )
        mean = HEADER_BYTES + planes.bytes_mean
        stages = self._read() | {
            "head": _part(head),
            "encode": _part(planes.encode),
            SEND: self._send(mean, HEADER_BYTES + max(planes.bytes_p90, planes.bytes_mean), WEBSOCKET_BYTES, link),
            **self._there_and_back(link, RESULT_LINK_BYTES),
            "decode": _part(decode),
            "tail": _part(tail),
        }
        return Prediction(
            SPLIT,
            MappingProxyType(stages),
            variant=variant,
            coder=coder,
            head=precision,
            sent_bytes=mean,
            link_bytes=bytes_on_link(mean),
        )

    def best_coder(self, variant: str, link: Link) -> str:
        """The coder with the least of encoding, sending and decoding; ``raw`` where coding saves less than it takes.

        Raises PlanError: both halves have no coder in common.
        """
        coders = self.coders(variant)
        if not coders:
            raise PlanError(
                f"the device and the edge profile have no coder of {variant} in common; measure both again with: "
                "aecnn-deploy calibrate device, aecnn-deploy calibrate edge"
            )
        return min(coders, key=lambda name: self.split(variant, name, link).total_ms)

    def full(self, image_coding: str, link: Link) -> Prediction:
        """The whole image goes to the edge; ``image_coding``: a key of ``images``. Raises PlanError: not measured."""
        image = self.images.get(image_coding)
        if image is None:
            known = ", ".join(self.images) or "none"
            raise PlanError(f"no image coding {image_coding!r} was measured on both halves, only: {known}")
        whole = self.edge.full.get(1)
        if whole is None:
            raise PlanError("the edge profile has no time of the unsplit model; run: aecnn-deploy calibrate edge")
        stages = {} if image.encode is None else self._read() | {"encode": _part(image.encode)}
        stages[SEND] = self._send(image.message_bytes, image.message_bytes, HTTP_BYTES, link)
        stages |= {
            **self._there_and_back(link, RESPONSE_LINK_BYTES),
            "decode": _part(image.decode),
            "full": _part(whole),
        }
        return Prediction(
            FULL,
            MappingProxyType(stages),
            image_coding=image_coding,
            sent_bytes=image.message_bytes,
            link_bytes=bytes_on_link(image.message_bytes, HTTP_BYTES),
        )

    def local(self) -> Prediction:
        """The unsplit model on the device. Raises PlanError: it was not measured."""
        if self.device.local is None:
            raise PlanError("the device profile has no time of the unsplit model; run: aecnn-deploy calibrate device")
        return Prediction(LOCAL, MappingProxyType(self._read() | {"local": _part(self.device.local)}))

    @property
    def image_size(self) -> Size | None:
        """Of the images that are read; None: reading was not measured."""
        return None if self.read is None else (self.read.width, self.read.height)

    def with_image_size(self, size: Size) -> "Predictor":
        """The same for images of another size. Raises PlanError: it was not measured."""
        return Predictor(self.manifest, self.device, self.edge, image_size=size, spread=self._spread)

    def unknown(self) -> list[str]:
        """What was not measured, in words: it counts as 0 ms, or keeps a way out of the plan."""
        gaps = []
        if (size := self.image_size) is not None and f"{FILE}@{size[0]}x{size[1]}" not in self.images:
            gaps.append(
                f"the edge was not timed with JPEG files as large as {size[0]}x{size[1]}: sending them is left out"
            )
        if self.read is None:
            gaps.append("reading an image was not measured on the device and counts as 0 ms")
        if self.edge.overhead is None:
            gaps.append("the edge's own time beside decoding and tail was not measured and counts as 0 ms")
        return gaps

    def _read(self) -> dict[str, Part]:
        return {} if self.read is None else {"read": _part(self.read.read)}

    def _there_and_back(self, link: Link, answer_link_bytes: int) -> dict[str, Part]:
        strays = self._spread.fixed
        parts = {"fixed": Part(link.fixed_ms, min(strays.below_ms, link.fixed_ms), strays.above_ms)}
        if self.edge.overhead is not None:
            parts["overhead"] = _part(self.edge.overhead)
        if link.downlink_bps is not None:
            parts["answer"] = Part(link.answer_ms(answer_link_bytes))
        return parts

    def _send(self, mean_bytes: float, p90_bytes: float, around: int, link: Link) -> Part:
        """Sending ``mean_bytes``; the 10th percentile is taken to lie as far below the mean as the 90th above it."""
        ms = link.send_ms(mean_bytes, around)
        more_ms = link.send_ms(p90_bytes, around) - ms
        slower_ms, faster_ms = ms / self._spread.rate_p10 - ms, ms - ms / self._spread.rate_p90
        return Part(ms, min(ms, hypot(more_ms, faster_ms)), hypot(more_ms, slower_ms))

    def _offered_images(self) -> dict[str, OfferedImage]:
        """Every way to send a whole image of the size that is read: those of the model's frame first."""
        spec = self.manifest.input
        frame = (spec.width, spec.height)
        own = self.image_size
        decodes = {
            (item.coding, (item.width, item.height)): item.decode
            for item in self.edge.image_codings
            if item.decode is not None
        }
        found: list[OfferedImage] = []
        for item in self.device.image_codings:
            size = (item.width, item.height)
            decode = decodes.get((item.coding, size))
            resized = size == frame or min(size) == spec.resize_short
            if item.encode is None or decode is None or not (resized or size == own):
                continue
            # The edge resizes what it gets: only an image that this leaves as it is becomes the same frame there.
            lossless = item.coding in _LOSSLESS and (not resized or min(size) == spec.resize_short)
            name = item.coding if size == frame else f"{item.coding}@{size[0]}x{size[1]}"
            found.append(OfferedImage(name, item.coding, size, item.bytes_mean, item.encode, decode, lossless))
        found.sort(key=lambda item: item.size != frame)
        if self.read is not None and own is not None:
            measured: dict[Size, Timing] = {}  # of each size's codings the slowest: that of the finest JPEG
            for (coding, size), time in decodes.items():
                if coding.startswith("jpeg") and (size not in measured or time.p50_ms > measured[size].p50_ms):
                    measured[size] = time
            if (decode := _decode_of(measured, own)) is not None:
                name = f"{FILE}@{own[0]}x{own[1]}"
                found.append(OfferedImage(name, FILE, own, self.read.bytes_mean, None, decode, True))
        return {item.name: item for item in found}


def profile_rate(profile: LinkProfile) -> float:
    """The median rate of the uplink, bits a second. Raises PlanError: the profile has none, or one that is no rate."""
    rate_bps = profile.rate_bps.get("p50", 0.0)
    if not (rate_bps > 0 and isfinite(rate_bps)):
        raise PlanError(
            f"the link profile to {profile.edge} has no rate; measure again with: aecnn-deploy calibrate link"
        )
    return rate_bps


def link_of(
    device: DeviceProfile,
    edge: EdgeProfile,
    *,
    rate_bps: float,
    rtt_ms: float = 0.0,
    profile: LinkProfile | None = None,
    downlink_bps: float | None = None,
) -> Link:
    """The link that both halves see: ``profile``'s time of an empty request, or ``rtt_ms`` and both halves' own code.

    Raises SettingsError: the rate is not positive, or the round trip negative.
    """
    if profile is not None:
        return Link(rate_bps, profile.fixed.p50_ms, downlink_bps)
    checked = Link(rate_bps, rtt_ms, downlink_bps)
    own = [half.loopback.p50_ms for half in (device, edge) if half.loopback is not None]
    return replace(checked, fixed_ms=checked.fixed_ms + (sum(own) / len(own) if own else 0.0))


def _decode_of(measured: Mapping[Size, Timing], size: Size) -> Timing | None:
    """Decoding a JPEG of ``size``: measured, or by its pixels between the sizes that were. None: larger than those.

    What is smaller than all takes as long as the smallest.
    """
    if size in measured:
        return measured[size]
    pixels = size[0] * size[1]
    known = sorted(((width * height, time) for (width, height), time in measured.items()), key=lambda item: item[0])
    above = next((index for index, (more, _) in enumerate(known) if more >= pixels), None)
    if above is None:
        return None
    if above == 0:
        return known[0][1]
    (less, low), (more, high) = known[above - 1], known[above]
    share = (pixels - less) / (more - less)
    p10, p50, p90 = (
        start + share * (end - start)
        for start, end in ((low.p10_ms, high.p10_ms), (low.p50_ms, high.p50_ms), (low.p90_ms, high.p90_ms))
    )
    return Timing(p10, p50, p90, min(low.count, high.count))


def _choose_read(reads: Sequence[ImageRead], wanted: Size | None) -> ImageRead | None:
    if wanted is None:
        return reads[0] if reads else None
    for read in reads:
        if (read.width, read.height) == wanted:
            return read
    sizes = ", ".join(f"{read.width}x{read.height}" for read in reads) or "none"
    raise PlanError(
        f"reading an image of {wanted[0]}x{wanted[1]} was not measured on the device, only: {sizes}; measure it with: "
        "aecnn-deploy calibrate device"
    )


def _part(time: Timing) -> Part:
    middle = time.p50_ms
    return Part(middle, max(0.0, middle - time.p10_ms), max(0.0, time.p90_ms - middle))
