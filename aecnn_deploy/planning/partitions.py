"""Where a model may be cut between a device and an edge, and what an image then takes: what every rule chooses from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from types import MappingProxyType

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.planning.layer_predictor import LayerPredictor
from aecnn_deploy.planning.layers import LayerTable
from aecnn_deploy.planning.link import HTTP_BYTES, RESPONSE_LINK_BYTES, RESULT_LINK_BYTES, WEBSOCKET_BYTES, Link
from aecnn_deploy.planning.powers import DevicePowers
from aecnn_deploy.planning.profiles import (
    CutFeatures,
    DeviceProfile,
    EdgeProfile,
    FeatureProfile,
    ImageCoding,
    Timing,
    check_bundle_id,
)
from aecnn_deploy.wire.header import HEADER_BYTES

ON_DEVICE = "all on the device"
ON_EDGE = "all on the edge"
_LOSSLESS_IMAGES = frozenset({"raw", "png", "webp-lossless"})
_JPEG = "jpeg-q"
_USUAL_QUALITY = 75


@dataclass(frozen=True, slots=True)
class Partition:
    """One way to divide the work. ``parts``: stage -> milliseconds, with the names that ``planning.predict`` has.

    ``sent_bytes``: the message, without the headers of packets. ``accuracy``: top-1; None: not known.
    """

    where: str
    parts: Mapping[str, float]
    sent_bytes: float = 0.0
    accuracy: float | None = None

    @property
    def total_ms(self) -> float:
        return sum(self.parts.values())


class Situation:
    """A bundle, its profiles and a link: what the rules are given.

    ``features`` None: the model was not cut. ``deadline_ms`` None: any time will do. ``powers`` None: energy is not
    told. ``max_loss``: of top-1 agreement with the unsplit model, as a share, for rules that code with loss.
    Raises PlanError: a profile is of another bundle. SettingsError: the deadline or the loss is out of range.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: DeviceProfile,
        edge: EdgeProfile,
        features: FeatureProfile | None,
        link: Link,
        *,
        deadline_ms: float | None,
        powers: DevicePowers | None,
        max_loss: float,
    ) -> None:
        for name, profile in (("device", device), ("edge", edge), ("features", features)):
            if profile is not None:
                check_bundle_id(profile, name, manifest.bundle_id)
        if deadline_ms is not None and not (isfinite(deadline_ms) and deadline_ms > 0):
            raise SettingsError(f"the deadline is {deadline_ms:g} ms, expected a positive number")
        if not 0 <= max_loss <= 1:
            raise SettingsError(f"the loss of agreement is {max_loss:g}, expected a share of 0 to 1")
        self.manifest, self.device, self.edge, self.link = manifest, device, edge, link
        self.deadline_ms, self.powers, self.max_loss = deadline_ms, powers, max_loss
        self._features = features

    @property
    def cuts(self) -> list[CutFeatures]:
        """The cuts of the unsplit model, at least one. Raises PlanError: there is none, or none was looked for."""
        if self._features is None:
            raise PlanError(
                "the unsplit model's cuts are not known; measure them with 'aecnn-deploy calibrate features'"
            )
        if not self._features.cuts:
            raise PlanError("the unsplit model has no place where one tensor alone crosses")
        return self._features.cuts

    @cached_property
    def device_layers(self) -> LayerTable:
        """Raises PlanError: the device's layers were not timed, or are another model's."""
        return self._table(self.device, "device")

    @cached_property
    def edge_layers(self) -> LayerTable:
        """The same of the edge."""
        return self._table(self.edge, "edge")

    @cached_property
    def predicted_layers(self) -> tuple[LayerTable, LayerTable, float]:
        """Both machines' layers with predicted times, and the larger of the predictors' errors. Raises PlanError."""
        device, edge = self.device_layers, self.edge_layers
        predictors = [LayerPredictor.fit(table.layers) for table in (device, edge)]
        error = max(predictor.error for predictor in predictors)
        return device.timed_by(predictors[0].predict_ms), edge.timed_by(predictors[1].predict_ms), error

    @cached_property
    def unsplit_accuracy(self) -> float | None:
        """Top-1 of the unsplit model; None: the bundle does not say."""
        known = self.manifest.measurements.get("unsplit_accuracy")
        return float(known) if isinstance(known, int | float) else None

    @property
    def raw_frame_bytes(self) -> int:
        """Bytes of the model's own input, uint8 RGB."""
        return self.manifest.input.height * self.manifest.input.width * 3

    @property
    def frame_codings(self) -> list[ImageCoding]:
        """The device's image codings of the model's own input."""
        size = (self.manifest.input.width, self.manifest.input.height)
        return [item for item in self.device.image_codings if (item.width, item.height) == size]

    @property
    def read(self) -> dict[str, float]:
        """The stage in which the device reads an image; nothing where it was not measured."""
        return {"read": self.device.reads[0].read.p50_ms} if self.device.reads else {}

    @property
    def local_ms(self) -> float | None:
        """The unsplit model on the device; None: not measured."""
        return self.device.local.p50_ms if self.device.local is not None else None

    @property
    def full_ms(self) -> float | None:
        """The unsplit model on the edge, one image; None: not measured."""
        return self.edge.full[1].p50_ms if 1 in self.edge.full else None

    def ends(
        self, *, local_ms: float | None, edge_ms: float | None, accuracy: float | None, stage: str = "full"
    ) -> list[Partition]:
        """A whole model in one place: ``edge_ms`` on the edge, as its ``stage``, or ``local_ms`` on the device.

        The edge gets the model's frame as it is: raw, or as the file that it was, for which a JPEG of the usual quality
        stands, whose accuracy is not known. What was not measured (None, or a coding on one half only) is left out.
        """
        found: list[Partition] = []
        decodes = {_key(item): item.decode for item in self.edge.image_codings if item.decode is not None}
        usual = nearest_jpeg(item.coding for item in self.frame_codings)
        for item in self.frame_codings if edge_ms is not None else ():
            decode, lossless = decodes.get(_key(item)), item.coding in _LOSSLESS_IMAGES
            if item.encode is None or decode is None or not (lossless or item.coding == usual):
                continue
            there_ms = self.link.send_ms(item.bytes_mean, HTTP_BYTES)
            sent = self._sent(item.encode.p50_ms, there_ms, decode.p50_ms, answer_link_bytes=RESPONSE_LINK_BYTES)
            parts = {**sent, stage: edge_ms or 0.0}
            known = accuracy if lossless else None
            found.append(Partition(f"{ON_EDGE}, {item.coding}", MappingProxyType(parts), item.bytes_mean, known))
        if local_ms is not None:
            found.append(Partition(ON_DEVICE, MappingProxyType({**self.read, "local": local_ms}), 0.0, accuracy))
        return found

    def split(
        self,
        where: str,
        payload_bytes: float,
        *,
        head_ms: float,
        tail_ms: float,
        accuracy: float | None,
        encode_ms: float = 0.0,
        decode_ms: float = 0.0,
    ) -> Partition:
        """``payload_bytes`` cross the link as an INFER message between the two halves of a model."""
        sent_bytes = HEADER_BYTES + payload_bytes
        parts = self._sent(encode_ms, self.link.send_ms(sent_bytes, WEBSOCKET_BYTES), decode_ms)
        stages = {"read": parts.pop("read")} if "read" in parts else {}
        return Partition(
            where, MappingProxyType({**stages, "head": head_ms, **parts, "tail": tail_ms}), sent_bytes, accuracy
        )

    def at_cut(
        self,
        cut: CutFeatures,
        payload_bytes: float,
        what: str,
        *,
        accuracy: float | None,
        tables: tuple[LayerTable, LayerTable] | None = None,
        encode_ms: float = 0.0,
        decode_ms: float = 0.0,
    ) -> Partition:
        """The unsplit model divided at ``cut``; ``tables``: other times of the device's and the edge's layers."""
        device, edge = tables or (self.device_layers, self.edge_layers)
        return self.split(
            f"after {cut.after}, {'×'.join(map(str, cut.shape))} {what}",
            payload_bytes,
            head_ms=device.up_to_ms(cut),
            tail_ms=edge.after_ms(cut),
            accuracy=accuracy,
            encode_ms=encode_ms,
            decode_ms=decode_ms,
        )

    def float_cuts(self, tables: tuple[LayerTable, LayerTable] | None = None) -> list[Partition]:
        """The unsplit model divided at every cut, the tensor sent as it is. Raises PlanError, as ``cuts``."""
        accuracy = self.unsplit_accuracy
        return [self.at_cut(cut, float_bytes(cut), "float32", accuracy=accuracy, tables=tables) for cut in self.cuts]

    def energy_mj(self, partition: Partition) -> float | None:
        """Millijoules of the device; None: its powers are not known."""
        return self.powers.energy_mj(partition.parts) if self.powers is not None else None

    def remarks(self, partition: Partition) -> str:
        """What to say of a choice beside its reason: a loss that is not known, a deadline that is missed."""
        said = ""
        if f"{ON_EDGE}, {_JPEG}" in partition.where:
            said = "; what JPEG costs in accuracy was not measured"
        if self.deadline_ms is not None and partition.total_ms > self.deadline_ms:
            said += f"; it misses the deadline of {self.deadline_ms:g} ms, which this rule does not know"
        return said

    def _sent(
        self, encode_ms: float, send_ms: float, decode_ms: float, *, answer_link_bytes: int = RESULT_LINK_BYTES
    ) -> dict[str, float]:
        overhead = {"overhead": self.edge.overhead.p50_ms} if self.edge.overhead is not None else {}
        between = {"encode": encode_ms, "send": send_ms, "fixed": self.link.fixed_ms}
        answer = {"answer": self.link.answer_ms(answer_link_bytes)} if self.link.downlink_bps is not None else {}
        return {**self.read, **between, **overhead, **answer, "decode": decode_ms}

    def _table(self, profile: DeviceProfile | EdgeProfile, whose: str) -> LayerTable:
        if self._features is None:
            raise PlanError(
                "the unsplit model's cuts are not known; measure them with 'aecnn-deploy calibrate features'"
            )
        return LayerTable.of(profile.layers, self._features, whose)


def float_bytes(cut: CutFeatures) -> int:
    """Bytes of the tensor at ``cut`` as float32 (AECNN, eq. 1: S = 4·C·H·W)."""
    return 4 * prod(cut.shape)


def nearest_jpeg(codings: Iterable[str], quality: int = _USUAL_QUALITY) -> str | None:
    """Of the names of image codings, the JPEG of the quality nearest to ``quality``; None: there is none."""
    known = {int(name.removeprefix(_JPEG)): name for name in codings if name.removeprefix(_JPEG).isdecimal()}
    return known[min(known, key=lambda each: (abs(each - quality), each))] if known else None


def fastest_ms(times: Mapping[str, Timing]) -> float | None:
    """The least median of ``times``; None: there is none."""
    return min((time.p50_ms for time in times.values()), default=None)


def _key(item: ImageCoding) -> tuple[str, int, int]:
    return item.coding, item.width, item.height
