"""A bundle's manifest and plausible profiles of it, for tests of planning: nothing is run or measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aecnn_deploy.bundle.manifest import InputSpec, Manifest, VariantSpec
from aecnn_deploy.planning.profiles import (
    DeviceProfile,
    EdgeProfile,
    ImageCoding,
    ImageRead,
    LinkProfile,
    Machine,
    PlaneCoding,
    Timing,
)

PI = Machine("aarch64 Cortex-A72, 4 cores", "camera-7")
SERVER = Machine("x86_64 EPYC, 16 cores", "edge-1")

# The paper's Table I at the first split point: ratio -> (accuracy, ms of encoding, ms of decoding)
TABLE_ONE = {
    2: (0.9562, 4.53, 3.03),
    4: (0.9530, 3.25, 2.41),
    8: (0.9468, 1.94, 1.52),
    16: (0.9398, 1.76, 1.37),
    32: (0.9270, 1.03, 0.74),
    64: (0.9147, 0.62, 0.39),
}
UNSPLIT = 0.9584

# width, height -> mean bytes of a JPEG file; ms to read it on the device, to decode it on the edge
PHOTOGRAPHS = {
    (640, 480): (52_000, 9.1, 1.9),
    (1280, 720): (98_000, 22.0, 4.6),
    (1920, 1080): (200_000, 48.0, 9.8),
}


def around(ms: float, spread: float = 0.1, count: int = 50) -> Timing:
    """Measurements about ``ms``: a tenth of them ``spread`` faster, a tenth twice that slower."""
    return Timing(ms * (1 - spread), ms, ms * (1 + 2 * spread), count)


def make_manifest(ratios: Sequence[int] = tuple(TABLE_ONE), **changes: Any) -> Manifest:
    """ResNet-50, split after its stem, with the paper's accuracies."""
    variants = tuple(
        VariantSpec(
            id=f"resnet50-l1-v{ratio}-u8",
            split=1,
            split_name="stem",
            ratio=ratio,
            bits=8,
            planes=(64 // ratio, 56, 56),
            head=f"heads/{ratio}.onnx",
            head_macs=118_013_952 // ratio,
            full_macs=4_089_184_256,
            tails={"onnxruntime": f"tails/{ratio}.onnx"},
            accuracy=TABLE_ONE[ratio][0],
            heads={"fp32": f"heads/{ratio}.onnx", "int8": f"heads/{ratio}.int8.onnx"},
        )
        for ratio in ratios
    )
    manifest = Manifest(
        format=1,
        bundle_id="a" * 64,
        backbone="resnet50",
        labels=("ant", "bee"),
        input=InputSpec(224, 224, 224, "bicubic", (0.0,) * 3, (1.0,) * 3),
        full="full.onnx",
        variants=variants,
        files={},
        measurements={"unsplit_accuracy": UNSPLIT},
    )
    return msgspec.structs.replace(manifest, **changes)


def device_profile(manifest: Manifest, **changes: Any) -> DeviceProfile:
    """A Raspberry Pi 4 by its multiply-adds: 12 a nanosecond in fp32, 17 in int8."""
    profile = DeviceProfile(
        bundle_id=manifest.bundle_id,
        machine=PI,
        versions={"aecnn-deploy": "0.1.0", "onnxruntime": "1.23.2"},
        measured_at="2026-01-01T00:00:00Z",
        took_s=12.0,
        threads=4,
        images=40,
        heads={
            spec.id: {
                name: around(2.0 + spec.head_macs / (12e6 if name == "fp32" else 17e6)) for name in spec.head_files
            }
            for spec in manifest.variants
        },
        local=around(335.0, 0.03),
        coders={spec.id: _plane_codings(spec) for spec in manifest.variants},
        reads=[
            ImageRead(width, height, size, around(read_ms))
            for (width, height), (size, read_ms, _) in PHOTOGRAPHS.items()
        ],
        image_codings=[
            ImageCoding("jpeg-q75", 224, 224, 9_497, encode=around(2.1)),
            ImageCoding("webp-q50", 224, 224, 5_220, encode=around(14.0)),
            ImageCoding("raw", 224, 224, 150_582, encode=around(0.2)),
        ],
        loopback=around(1.2),
    )
    return msgspec.structs.replace(profile, **changes)


def edge_profile(manifest: Manifest, **changes: Any) -> EdgeProfile:
    """A server with a GPU."""
    profile = EdgeProfile(
        bundle_id=manifest.bundle_id,
        machine=SERVER,
        versions={"aecnn-deploy": "0.1.0"},
        measured_at="2026-01-01T00:00:00Z",
        took_s=8.0,
        threads=0,
        runner="tensorrt",
        precision="fp16",
        tails={spec.id: {1: around(2.6), 4: around(4.1)} for spec in manifest.variants},
        full={1: around(3.0)},
        coders={
            spec.id: {name: coding.decode for name, coding in _plane_codings(spec).items()}
            for spec in manifest.variants
        },
        image_codings=[
            ImageCoding("jpeg-q75", 224, 224, 9_497, decode=around(0.8)),
            ImageCoding("webp-q50", 224, 224, 5_220, decode=around(1.5)),
            ImageCoding("raw", 224, 224, 150_582, decode=around(0.1)),
            *(
                ImageCoding("jpeg-q75", width, height, size, decode=around(decode_ms))
                for (width, height), (size, _, decode_ms) in PHOTOGRAPHS.items()
            ),
        ],
        overhead=around(0.4),
        loopback=around(0.6),
    )
    return msgspec.structs.replace(profile, **changes)


def link_profile(manifest: Manifest, rate_bps: Mapping[str, float] | None = None, **changes: Any) -> LinkProfile:
    """Wi-Fi, 10 Mbit/s."""
    profile = LinkProfile(
        bundle_id=manifest.bundle_id,
        machine=PI,
        versions={"aecnn-deploy": "0.1.0"},
        measured_at="2026-01-01T00:00:00Z",
        took_s=3.0,
        edge="ws://edge-1:8765",
        edge_software="aecnn-deploy 0.1.0",
        rate_bps=dict(rate_bps or {"p10": 7e6, "p50": 10e6, "p90": 12e6}),
        fixed=around(4.2, 0.2),
        bytes_sent=400_000,
    )
    return msgspec.structs.replace(profile, **changes)


def _plane_codings(spec: VariantSpec) -> dict[str, PlaneCoding]:
    raw = spec.plane_bytes
    encode_ms, decode_ms = TABLE_ONE[spec.ratio][1:] if spec.ratio in TABLE_ONE else (1.0, 0.5)
    return {
        "raw": PlaneCoding(raw, raw, around(0.02), around(0.01)),
        "zstd": PlaneCoding(0.58 * raw, 0.66 * raw, around(encode_ms), around(decode_ms)),
        "jpegls": PlaneCoding(0.40 * raw, 0.45 * raw, around(2 * encode_ms), around(2 * decode_ms)),
    }
