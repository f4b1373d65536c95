"""What neighbouring frames of a moving camera save: differences of planes, and zstd with the last frame as its past.

    python -m benchmarks.temporal_bytes --data $AECNN_DATA/caltech101

Sequences of 25 frames are made by panning and zooming over photographs (bicubic, at sub-pixel positions): slow is half
a pixel of the 224×224 frame and 0.1 % a frame, fast two pixels and 0.4 %, still is the same frame with other sensor
noise (standard deviation 2 of 255 a value, in all three). The zoo's heads run on every frame. Mean payload of all
frames but each sequence's first, which has no past; in "smallest" the first counts, too: what a device sends by
default, each frame by the coder that is expected to make the fewest bytes. Every payload is decoded and compared.
Without framing.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from PIL import Image

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.codec import DeltaEncoder, PlaneDecoder, PlaneEncoder, coder_names, delta_names
from aecnn_deploy.runtimes.coder_choice import CoderChoice, Reference
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.zoo import zoo_bundle
from benchmarks.machine import describe_machine, write_result
from benchmarks.photographs import split_photographs

RESULTS = Path(__file__).parent / "results" / "temporal_bytes.json"
SEQUENCES, FRAMES, NOISE = 12, 25, 2.0
SPEEDS = {"still": (0.0, 0.0), "slow": (0.5, 0.001), "fast": (2.0, 0.004)}  # pixels, and share of the size, a frame
Planes = npt.NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder caltech101")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args()
    files, _ = split_photographs(options.data)
    files = files[:: len(files) // SEQUENCES][:SEQUENCES]
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    rows: list[dict[str, Any]] = []
    for speed, (pixels, zoom) in SPEEDS.items():
        sequences = [moving(file, pixels, zoom, np.random.default_rng(index)) for index, file in enumerate(files)]
        for variant in bundle.manifest.variants:
            with OnnxRuntimeRunner(bundle.file(variant.head)) as head:
                planes = [np.concatenate([head.infer(frame[None]) for frame in frames]) for frames in sequences]
            rows.append({"motion": speed, "variant": variant.id, **measure(planes, variant.bits)})
            print(rows[-1], flush=True)
    write_result(
        options.out,
        {
            "benchmark": "temporal_bytes",
            "command": ".venv/bin/python -m benchmarks.temporal_bytes --data $AECNN_DATA/caltech101",
            "rows": rows,
            **describe_machine(),
        },
    )


def moving(file: Path, pixels: float, zoom: float, rng: np.random.Generator) -> list[npt.NDArray[np.uint8]]:
    """Frames of 224×224 of a crop that moves to the right and down and closes in."""
    image = Image.open(file).convert("RGB")
    whole = image.resize([round(side * 280 / min(image.size)) for side in image.size], Image.Resampling.BICUBIC)
    frames = []
    for index in range(FRAMES):
        side = 224 * (1 - zoom * index)
        left, top = 2 + pixels * index * 0.9, 2 + pixels * index * 0.4
        crop = whole.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        noisy = np.asarray(crop, np.float32) + rng.normal(0, NOISE, (224, 224, 3))
        frames.append(noisy.round().clip(0, 255).astype(np.uint8))
    return frames


def measure(sequences: list[Planes], bits: int) -> dict[str, float]:
    """Mean bytes a frame of each way, over all frames that have one before them."""
    shape = (sequences[0].shape[1], sequences[0].shape[2], sequences[0].shape[3])
    alone = {name: PlaneEncoder(shape, bits, coder=name) for name in ("zstd", "jpegls")}
    deltas = {name: DeltaEncoder(shape, bits, coder=name) for name in delta_names()}
    decoder = PlaneDecoder(shape, bits)

    def delta(name: str, now: Planes, before: Planes) -> int:
        encoded = deltas[name].encode(now, before, 1)
        assert np.array_equal(decoder.decode(encoded.coder_id, encoded.payload, {1: before}.get), now)
        return len(encoded.payload)

    ways: dict[str, Callable[[Planes, Planes], int]] = {
        **{name: partial(lambda coder, now, _: len(coder.encode(now).payload), alone[name]) for name in alone},
        **{name: partial(delta, name) for name in deltas},
        "zstd with the last frame as its past": with_past,
    }
    pairs = [(frames[i], frames[i - 1]) for frames in sequences for i in range(1, len(frames))]
    means = {way: round(float(np.mean([size(now, before) for now, before in pairs])), 1) for way, size in ways.items()}
    means["smallest"] = round(float(np.mean([smallest(frames, bits) for frames in sequences])), 1)
    means["values that change"] = round(float(np.mean([np.mean(now != before) for now, before in pairs])), 3)
    return means


def smallest(frames: Planes, bits: int) -> float:
    """Mean payload of a device's stream, its first frame included."""
    shape = (frames.shape[1], frames.shape[2], frames.shape[3])
    choice = CoderChoice(shape, bits, (*coder_names(), *delta_names()), objective="bytes")
    decoder, before, sizes = PlaneDecoder(shape, bits), None, []
    for planes in frames:
        _, encoded = choice.encode(planes, 0.0, Reference(before, 1) if before is not None else None)
        assert np.array_equal(decoder.decode(encoded.coder_id, encoded.payload, {1: before}.get), planes)
        sizes.append(len(encoded.payload))
        before = planes
    return float(np.mean(sizes))


def with_past(now: Planes, before: Planes) -> int:
    """The smaller of two frames, as our coder makes them, with the last planes as a raw dictionary."""
    past = zstandard.ZstdCompressionDict(before.tobytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    matching = zstandard.ZstdCompressor(level=3, dict_data=past, write_checksum=False)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, min_match=7, strategy=zstandard.STRATEGY_FAST, write_content_size=1, write_checksum=0
    )
    long_only = zstandard.ZstdCompressor(compression_params=parameters, dict_data=past)
    content = min((matching.compress(now.tobytes()), long_only.compress(now.tobytes())), key=len)
    assert zstandard.ZstdDecompressor(dict_data=past).decompress(content) == now.tobytes()
    return len(content)


if __name__ == "__main__":
    main()
