"""Bytes of real planes of the zoo's heads: the zstd coder against plain zstd at the same level, and the entropy.

    python -m benchmarks.plane_bytes --data $AECNN_DATA/caltech101

The heads of the zoo's bundle run in ONNX Runtime on the photographs of benchmarks/photographs.py; each payload is
decoded and compared with its planes. "Entropy" is order-0, of each image's own values, without the table that a decoder
needs; a coder that looks at neighbouring values can be below it. Payloads alone, without framing.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import DEFAULT_LEVEL, PlaneDecoder, PlaneEncoder
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.training.photographs import Frames, load_photographs
from aecnn_deploy.zoo import zoo_bundle
from benchmarks.machine import describe_machine, write_result
from benchmarks.photographs import split_photographs

RESULTS = Path(__file__).parent / "results" / "plane_bytes.json"
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder caltech101")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args()
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    files, _ = split_photographs(options.data)
    frames = load_photographs(files, bundle.manifest.input).frames
    rows = [_row(bundle, variant, frames) for variant in bundle.manifest.variants]
    document = {
        "benchmark": "plane_bytes",
        "command": ".venv/bin/python -m benchmarks.plane_bytes --data $AECNN_DATA/caltech101",
        "photographs": len(frames),
        "rows": rows,
        **describe_machine(),
    }
    write_result(options.out, document)
    print(f"{'variant':<42} {'raw':>6} {'plain zstd':>11} {'our zstd':>9} {'entropy':>8}")
    for row in rows:
        figures = f"{row['raw']:>6} {row['plain_zstd']:>11.0f} {row['coder']:>9.0f} {row['entropy']:>8.0f}"
        print(f"{row['variant']:<42} {figures}")
    print(f"mean bytes of {len(frames)} photographs, written to {options.out}")


def _row(bundle: Bundle, variant: VariantSpec, frames: Frames) -> dict[str, Any]:
    encoder, decoder = PlaneEncoder(variant.planes, variant.bits), PlaneDecoder(variant.planes, variant.bits)
    plain = zstandard.ZstdCompressor(level=DEFAULT_LEVEL, write_checksum=False)
    sizes: list[tuple[int, int, float]] = []
    with OnnxRuntimeRunner(bundle.file(variant.head)) as head:
        for start in range(0, len(frames), BATCH):
            for planes in head.infer(np.ascontiguousarray(frames[start : start + BATCH])):
                message = encoder.encode(planes)
                assert np.array_equal(decoder.decode(message.coder_id, message.payload), planes)
                counts = np.bincount(planes.reshape(-1)).astype(np.float64)
                shares = counts[counts > 0] / planes.size
                entropy_bytes = -(shares * np.log2(shares)).sum() * planes.size / 8
                sizes.append((len(plain.compress(planes.tobytes())), len(message.payload), float(entropy_bytes)))
    means = np.mean(sizes, axis=0)
    return {
        "variant": variant.id,
        "raw": variant.plane_bytes,
        "plain_zstd": round(float(means[0]), 1),
        "coder": round(float(means[1]), 1),
        "entropy": round(float(means[2]), 1),
    }


if __name__ == "__main__":
    main()
