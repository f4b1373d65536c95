"""The ways to classify a photograph that are compared over a link, and the device process that goes them.

``split``: a variant with one coder, by ``runtimes.device_client.Device``. ``full``: the photograph, or the model's
frame of it, goes as an image file to POST /v1/classify over a connection that is kept. ``local``: the unsplit model
here. One image after the other, one thread for each model; a time is from opening the file to the parsed answer.
"""

import http.client
import io
import json
import re
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import msgspec
import numpy as np
from PIL import Image

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import PlaneEncoder, coder_names
from aecnn_deploy.errors import CodecError
from aecnn_deploy.planning.link import HTTP_BYTES, bytes_on_link
from aecnn_deploy.runtimes.device_client import Device, DeviceSettings
from aecnn_deploy.runtimes.frames import Frame, read_frame
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.sources import SourceImage
from benchmarks.namespaces import PORT, enter
from benchmarks.traffic import named_bundle

FILE = "file"  # the photograph as it is
RAW = "raw"  # an uncompressed BMP of the model's frame
IMAGE_CODINGS = ("jpeg-q75", "jpeg-q30", "webp-q75", RAW, FILE)
LOCAL = "local"

_TIE = 1e-4  # of the largest logit, as in ``benchmarks.traffic``
_TIMEOUT_S = 60.0
_ACKNOWLEDGEMENT_BYTES = 66  # Ethernet, IPv4, TCP and its timestamps


class Arm(msgspec.Struct, frozen=True):
    """One way. ``variant`` and ``coder`` of a split one, ``image_coding`` of full offloading; neither: local."""

    variant: str | None = None
    coder: str | None = None
    image_coding: str | None = None

    @property
    def name(self) -> str:
        if self.variant is not None:
            return f"{short_name(self.variant)}, {self.coder}"
        return LOCAL if self.image_coding is None else f"full, {self.image_coding}"


class Sample(msgspec.Struct, frozen=True):
    """One image: milliseconds, bytes (a split one's INFER message; a body), and the class that was named."""

    photograph: int
    ms: float
    sent_bytes: int
    index: int


class Done(msgspec.Struct, frozen=True):
    """An order's samples, and the bytes of one answer on the downlink, headers included; of an unshaped link only."""

    samples: list[Sample]
    answer_bytes: float


class Order(msgspec.Struct, frozen=True):
    """What a device process is asked for: these photographs, one after the other, by this arm."""

    arm: Arm
    photographs: list[int]


def short_name(variant: str) -> str:
    """A variant's name without its backbone and bits: "l9-strided-z16". Names of others stay as they are."""
    found = re.fullmatch(r"[^-, ]+-(l[0-9]+-[^, ]+)", variant)
    return re.sub(r"-u[0-9]\b", "", found[1]) if found else variant


def link_bytes(arm: Arm, sent_bytes: float) -> float:
    """What an image of the arm is on the uplink, all headers counted."""
    if arm.image_coding is not None:
        return bytes_on_link(sent_bytes, HTTP_BYTES)
    return bytes_on_link(sent_bytes) if arm.variant is not None else 0.0


def all_arms(bundle: Bundle, photographs: list[Path]) -> list[Arm]:
    """Every variant, raw and by the coder that makes the fewest bytes of these photographs; the whole image; local."""
    split = [
        Arm(variant.id, coder)
        for variant in bundle.manifest.variants
        for coder in (smallest_coder(bundle, variant.id, photographs), "raw")
    ]
    return [*split, *(Arm(image_coding=coding) for coding in IMAGE_CODINGS), Arm()]


def smallest_coder(bundle: Bundle, variant: str, photographs: list[Path]) -> str:
    """The coder of single frames with the fewest bytes over the photographs."""
    spec = bundle.variant(variant)
    frames = [read_frame(photograph, bundle.manifest.input) for photograph in photographs]
    with OnnxRuntimeRunner(bundle.file(spec.head), threads=1) as head:
        planes = [head.infer(frame[np.newaxis])[0] for frame in frames]
    sizes = {}
    for coder in coder_names():
        try:
            encoder = PlaneEncoder(spec.planes, spec.bits, coder=coder)
        except CodecError:  # needs a dictionary that the bundle lacks
            continue
        sizes[coder] = sum(len(encoder.encode(each).payload) for each in planes)
    return min(sizes, key=lambda coder: sizes[coder])


def image_bytes(photograph: Path, coding: str, spec: InputSpec) -> bytes:
    """What full offloading sends of a photograph."""
    return photograph.read_bytes() if coding == FILE else encoded(read_frame(photograph, spec), coding)


def encoded(frame: Frame, coding: str) -> bytes:
    """A frame (H, W, 3) as an image file: "raw", "jpeg-q75", "webp-q75" and so on."""
    out = io.BytesIO()
    image = Image.fromarray(frame)
    if coding == RAW:
        image.save(out, "BMP")
    else:
        kind, _, quality = coding.partition("-q")
        image.save(out, kind.upper(), quality=int(quality))
    return out.getvalue()


def right_classes(bundle: Bundle, arms: list[Arm], photographs: list[Path]) -> dict[Arm, list[list[int]]]:
    """Of each arm and photograph the classes that may be the answer: head and tail, or the unsplit model, directly."""
    spec = bundle.manifest.input
    found: dict[Arm, list[list[int]]] = {}
    with OnnxRuntimeRunner(bundle.file(bundle.manifest.full), threads=1) as full:
        for arm in arms:
            if arm.variant is None:
                coding = arm.image_coding or FILE
                frames = [read_frame(image_bytes(each, coding, spec), spec) for each in photographs]
                found[arm] = [_best(full.infer(frame[np.newaxis])[0]) for frame in frames]
                continue
            variant = bundle.variant(arm.variant)
            with (
                OnnxRuntimeRunner(bundle.file(variant.head), threads=1) as head,
                OnnxRuntimeRunner(bundle.file(variant.tails["onnxruntime"]), threads=1) as tail,
            ):
                frames = [read_frame(each, spec) for each in photographs]
                found[arm] = [_best(tail.infer(head.infer(frame[np.newaxis]))[0]) for frame in frames]
    return found


class ImageClient:
    """Full offloading: an image file to POST /v1/classify, over one connection that is kept. A context manager."""

    def __init__(self, edge_url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        address = urlsplit(edge_url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The next image connects again."""
        self._connection.close()

    def abort(self) -> None:
        """Break off what is under way, with what was not sent yet; the next image connects again."""
        if self._connection.sock is not None:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def open(self) -> None:
        """Connect, or again where the edge has closed what was idle. Raises OSError, HTTPException."""
        try:
            self._ask_health()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._ask_health()

    def _ask_health(self) -> None:
        self._connection.request("GET", "/healthz")
        with self._connection.getresponse() as response:
            response.read()

    def classify(self, content: bytes, timeout_s: float | None = None) -> int:
        """The class of an image file. Raises OSError, HTTPException; ValueError: the edge answers no class."""
        if timeout_s is not None:
            self._connection.timeout = timeout_s
            if self._connection.sock is not None:
                self._connection.sock.settimeout(timeout_s)
        self._connection.request("POST", "/v1/classify", content)
        with self._connection.getresponse() as response:
            answer = json.loads(response.read())
        if response.status != 200:
            raise ValueError(f"the edge answers {response.status}: {answer}")
        return int(answer["top"][0]["index"])


def device_process(connection: Connection, namespace: str, bundle: str, edge_url: str, photographs: list[Path]) -> None:
    """A process within ``namespace``: for each ``Order`` a ``Done``."""
    enter(namespace)
    device = _AllArms(named_bundle(bundle), edge_url, photographs)
    with device:
        connection.send("ready")
        while True:
            order: Order = connection.recv()
            if order.arm.image_coding is not None:
                device.images.open()
            before = _received()
            samples = [device.classify(order.arm, each) for each in order.photographs]
            got_bytes, packets = (now - then for now, then in zip(_received(), before, strict=True))
            # Of an image's packets one is the answer; the others acknowledge.
            acknowledging = max(0, packets - len(samples)) * _ACKNOWLEDGEMENT_BYTES
            answered_bytes = 0 if order.arm == Arm() else max(0, got_bytes - acknowledging)
            connection.send(Done(samples, answered_bytes / len(samples)))


def _received() -> tuple[int, int]:
    """Bytes and packets that have come over the link to this thread's namespace."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == PORT:
            fields = counts.split()
            return int(fields[0]), int(fields[1])
    return 0, 0


class _AllArms:
    """Every arm's models and connection, each opened when it is first asked for and kept."""

    def __init__(self, bundle: Bundle, edge_url: str, photographs: list[Path]) -> None:
        self._bundle, self._url, self._photographs = bundle, edge_url, photographs
        self._settings = DeviceSettings(edge_url, threads=1, timeout_s=_TIMEOUT_S)
        self._devices: dict[Arm, Device] = {}
        self._local: LocalModel | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.images = self._stack.enter_context(ImageClient(self._url))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def classify(self, arm: Arm, number: int) -> Sample:
        if arm.variant is not None:
            return self._split(arm, number)
        return self._full(arm.image_coding, number) if arm.image_coding is not None else self._here(number)

    def _split(self, arm: Arm, number: int) -> Sample:
        if arm not in self._devices:
            assert arm.coder is not None
            settings = DeviceSettings(
                self._url, variant=arm.variant, threads=1, coder=arm.coder, timeout_s=_TIMEOUT_S, in_flight=1
            )
            self._devices[arm] = self._stack.enter_context(Device(self._bundle, settings))
        path = self._photographs[number]
        began_s = time.perf_counter()
        report = self._devices[arm].run(SourceImage(path.name, path))
        took_ms = (time.perf_counter() - began_s) * 1e3
        if report.index is None or report.wire_bytes is None:
            raise SystemExit(f"{arm.name}: {path} failed: {report.error}")
        return Sample(number, took_ms, report.wire_bytes, report.index)

    def _full(self, coding: str, number: int) -> Sample:
        began_s = time.perf_counter()
        content = image_bytes(self._photographs[number], coding, self._bundle.manifest.input)
        index = self.images.classify(content)
        return Sample(number, (time.perf_counter() - began_s) * 1e3, len(content), index)

    def _here(self, number: int) -> Sample:
        if self._local is None:
            self._local = self._stack.enter_context(LocalModel(self._bundle, self._settings))
        began_s = time.perf_counter()
        index, _ = self._local.best(read_frame(self._photographs[number], self._bundle.manifest.input))
        return Sample(number, (time.perf_counter() - began_s) * 1e3, 0, index)


def alike(photographs: list[Path], count: int) -> list[Path]:
    """At most ``count`` photographs of the size that most of them have: what a camera gives is of one size."""
    sizes = {photograph: _size(photograph) for photograph in photographs}
    commonest, _ = Counter(sizes.values()).most_common(1)[0]
    return [photograph for photograph, size in sizes.items() if size == commonest][:count]


def _size(photograph: Path) -> tuple[int, int]:
    with Image.open(photograph) as image:
        return image.size


def _best(logits: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> list[int]:
    """The best class, and those that tie with it."""
    classes: list[int] = np.flatnonzero(logits >= logits.max() - _TIE * np.abs(logits).max()).tolist()
    return classes
