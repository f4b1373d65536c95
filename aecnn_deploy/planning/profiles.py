"""Latency profiles: what was measured of one bundle on one machine, or over one link. docs/planning.md describes them.

A profile is a JSON document of one of the structs below, told apart by ``kind``. All times are milliseconds of one
image, or of one batch where it says so.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from aecnn_deploy.errors import PlanError

FORMAT = 1

Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Bytes = Annotated[float, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=1)]


class Timing(msgspec.Struct, frozen=True):
    """Percentiles of ``count`` measurements."""

    p10_ms: Milliseconds
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    count: Size


def timing(values_ms: Sequence[float]) -> Timing:
    """The percentiles of ``values_ms``, at least one."""
    p10, p50, p90 = (round(float(value), 4) for value in np.percentile(np.maximum(values_ms, 0.0), (10, 50, 90)))
    return Timing(p10, p50, p90, len(values_ms))


class Machine(msgspec.Struct, frozen=True):
    """Which machine a profile is of. Two are the same where both fields are."""

    processor: str  # architecture, model, number of cores
    host: str  # its name

    def __str__(self) -> str:
        return f"{self.host} ({self.processor})"


class LayerTime(msgspec.Struct, frozen=True):
    """One layer of ``full.onnx`` as ONNX Runtime runs it: a node, or several that it made one of."""

    op: str
    ms: Milliseconds  # median; scaled, so that all layers together take what the unsplit model takes


class PlaneCoding(msgspec.Struct, frozen=True):
    """One variant's planes by one coder; ``bytes`` are the payload's."""

    bytes_mean: Bytes
    bytes_p90: Bytes
    encode: Timing
    decode: Timing  # on this machine


class ImageCoding(msgspec.Struct, frozen=True):
    """A whole image by one image coder: what full offloading sends."""

    coding: str  # "jpeg-q75", "webp-q50", "raw" (an uncompressed BMP)
    width: Size
    height: Size
    bytes_mean: Bytes
    encode: Timing | None = None  # on a device; None: not measured here
    decode: Timing | None = None  # to the model's frame: decoded, resized, cropped; on an edge


class ImageRead(msgspec.Struct, frozen=True):
    """Reading one image file: decoded, resized, cropped to the model's frame."""

    width: Size  # of the file's image
    height: Size
    bytes_mean: Bytes
    read: Timing


class Profile(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What every profile says."""

    format: int = FORMAT
    bundle_id: str
    machine: Machine  # that measured
    versions: dict[str, str]  # of what was measured with: "aecnn-deploy", "onnxruntime", "python", …
    measured_at: str  # ISO 8601, UTC
    took_s: float


class DeviceProfile(Profile, frozen=True, kw_only=True, tag="device"):
    """A device's half."""

    threads: int  # of a head, as ``run-device --threads``; 0: every core
    images: int  # photographs that it was measured with; 0: made-up ones
    heads: dict[str, dict[str, Timing]]  # variant -> precision
    local: Timing | None = None  # the unsplit model
    coders: dict[str, dict[str, PlaneCoding]] = {}  # variant -> coder
    reads: list[ImageRead] = []
    image_codings: list[ImageCoding] = []  # with ``encode``
    loopback: Timing | None = None  # an empty request there and back within this machine: both halves' own code
    layers: dict[str, LayerTime] = {}  # ONNX Runtime's name -> time, in the order in which they run


class EdgeProfile(Profile, frozen=True, kw_only=True, tag="edge"):
    """An edge's half."""

    threads: int
    runner: str  # a target: "onnxruntime", "tensorrt-rtx", …
    precision: str
    tails: dict[str, dict[Size, Timing]]  # variant -> batch size -> time of the batch
    full: dict[Size, Timing] = {}  # the unsplit model, by batch size
    coders: dict[str, dict[str, Timing]] = {}  # variant -> coder -> decoding one payload
    image_codings: list[ImageCoding] = []  # with ``decode``
    overhead: Timing | None = None  # of one request alone: the edge's own total less decoding and tail
    loopback: Timing | None = None  # as in DeviceProfile
    layers: dict[str, LayerTime] = {}


class LinkProfile(Profile, frozen=True, kw_only=True, tag="link"):
    """The link from ``machine``, the device, to one edge."""

    edge: str  # its URL
    edge_software: str
    rate_bps: dict[str, float]  # "p10", "p50", "p90" of the uplink
    fixed: Timing  # an empty request there and back, less the edge's own total: round trip and both halves' own code
    bytes_sent: int  # by the measurement itself


class GraphNode(msgspec.Struct, frozen=True):
    """One node of ``full.onnx`` that depends on the image."""

    op: str  # "depthwise Conv" where every channel has a filter of its own
    tensor: str  # its first output
    output_bytes: int  # of one image, all outputs


class CutFeatures(msgspec.Struct, frozen=True):
    """A place where one tensor alone crosses from the first nodes of ``full.onnx`` to the rest."""

    after: str  # the node that makes the tensor
    tensor: str
    shape: list[int]  # without the batch axis
    macs: int  # multiply-adds of the nodes up to here
    jpeg_bytes: dict[Size, Bytes] = {}  # JPEG quality -> mean bytes of the tensor as a mosaic of 8-bit planes
    jpeg_agreement: dict[Size, float] = {}  # JPEG quality -> top-1 agreement with the unsplit model
    quantised_agreement: float | None = None  # the same of the 8-bit planes without JPEG; None: not measured


class FeatureProfile(Profile, frozen=True, kw_only=True, tag="features"):
    """What every cut of the unsplit model would send; of no machine's speed. ``images``: photographs measured with."""

    images: int
    layer_macs: dict[str, int]  # node of full.onnx -> multiply-adds of one image
    cuts: list[CutFeatures]  # in the order of the graph
    nodes: dict[str, GraphNode] = {}  # by name, in the order of the graph


AnyProfile = DeviceProfile | EdgeProfile | LinkProfile | FeatureProfile


def check_bundle_id(profile: AnyProfile, name: str, bundle_id: str) -> None:
    """Raises PlanError: the ``name`` profile (device, edge, …) was measured with another bundle."""
    if profile.bundle_id != bundle_id:
        raise PlanError(
            f"the {name} profile was measured with bundle {profile.bundle_id[:16]}…, this one is {bundle_id[:16]}…; "
            f"measure again with: aecnn-deploy calibrate {name}"
        )
