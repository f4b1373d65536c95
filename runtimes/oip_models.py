"""What the Open Inference Protocol calls a bundle's models, their inputs and outputs, and how it describes them."""

from dataclasses import dataclass
from math import prod

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import PlaneLayout

FULL_MODEL = "full"
VERSION = "1"  # the only one: which bundle it is, is told by its id

# The names that the bundle's ONNX files have inside: a client can be pointed at a server that runs those.
PLANES, FRAMES, LOGITS = "planes", "frames", "logits"
UINT8, FP32, BYTES = "UINT8", "FP32", "BYTES"
BUNDLE_KEY, VARIANT_KEY = "aecnn_bundle_id", "aecnn_variant"  # parameters

_PLATFORMS = {"tensorrt": "tensorrt_plan", "tensorrt-rtx": "tensorrt_rtx_plan"}
_ONNX_PLATFORM = "onnxruntime_onnx"

Document = dict[str, object]  # of JSON


@dataclass(frozen=True, slots=True)
class TensorModel:
    """One model as clients see it: uint8 (rows, *item_shape) in, float32 (rows, classes) out."""

    name: str
    bundle_id: str
    input_name: str
    item_shape: tuple[int, ...]
    largest: int  # value that an element may have
    labels: tuple[str, ...]
    max_rows: int

    @property
    def item_bytes(self) -> int:
        return prod(self.item_shape)

    @property
    def parameters(self) -> dict[str, str]:
        """What ties this model to a bundle, for those who have the other half."""
        return {BUNDLE_KEY: self.bundle_id, VARIANT_KEY: self.name}

    def metadata(self, runner: str) -> Document:
        """The answer to ``GET /v2/models/NAME``; ``runner`` runs it, "" while it is not loaded."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": _platform(runner),
            "inputs": [{"name": self.input_name, "datatype": UINT8, "shape": [-1, *self.item_shape]}],
            "outputs": [{"name": LOGITS, "datatype": FP32, "shape": [-1, len(self.labels)]}],
            "parameters": self.parameters,
        }

    def config(self, runner: str, batch_wait_ms: float) -> Document:
        """The same in the form of Triton's model configuration."""
        return {
            "name": self.name,
            "platform": _platform(runner),
            "version_policy": {"specific": {"versions": [int(VERSION)]}},
            "max_batch_size": self.max_rows,
            "input": [
                {
                    "name": self.input_name,
                    "data_type": f"TYPE_{UINT8}",
                    "format": "FORMAT_NHWC" if self.name == FULL_MODEL else "FORMAT_NCHW",
                    "dims": list(self.item_shape),
                }
            ],
            "output": [{"name": LOGITS, "data_type": f"TYPE_{FP32}", "dims": [len(self.labels)]}],
            "dynamic_batching": {"max_queue_delay_microseconds": round(batch_wait_ms * 1e3)},
            "parameters": {key: {"string_value": value} for key, value in self.parameters.items()},
        }


def tensor_models(bundle: Bundle, max_rows: int) -> dict[str, TensorModel]:
    """By name: every variant's tail, and the unsplit model."""
    manifest = bundle.manifest
    models = [
        TensorModel(
            name=variant.id,
            bundle_id=bundle.id,
            input_name=PLANES,
            item_shape=tuple(variant.planes),
            largest=PlaneLayout(variant.planes, variant.bits).mask,
            labels=manifest.labels,
            max_rows=max_rows,
        )
        for variant in manifest.variants
    ]
    models.append(
        TensorModel(
            name=FULL_MODEL,
            bundle_id=bundle.id,
            input_name=FRAMES,
            item_shape=(manifest.input.height, manifest.input.width, 3),
            largest=255,
            labels=manifest.labels,
            max_rows=max_rows,
        )
    )
    return {model.name: model for model in models}


def _platform(runner: str) -> str:
    return _PLATFORMS.get(runner, _ONNX_PLATFORM)
