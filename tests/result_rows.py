"""Rows of a training run that never took place: made by formula, for tests of what reads them."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.models.results import Ranking, ResultRow, write_result

FULL_MACS = 4_000_000_000
SHAPES = {1: (64, 56, 56), 2: (256, 56, 56)}
HEAD_SHARES = {1: 0.03, 2: 0.14}
RATIOS = (2, 4, 8, 16, 32, 64)
SEEDS = (0, 1, 2)
# Points of top-1 that each arm loses at the hardest ratio, and where it is worse at once.
LOSSES = {"aecnn": (3.6, 0.1), "ca-pruned": (4.0, 0.2), "bottlenetpp": (6.0, 2.4), "aecnn-fast": (3.4, 0.1)}


def result_row(**changes: Any) -> ResultRow:
    """One row of AECNN at l = 1, V = 4, 8 bits, with ``changes``."""
    row: dict[str, Any] = {
        "task": "aecnn-l1-v4-8-s0",
        "arm": "aecnn",
        "seed": 0,
        "accuracy": 0.93,
        "test_images": 1695,
        "split": 1,
        "split_shape": SHAPES[1],
        "ratio": 4,
        "bits": 8,
        "planes": (16, 56, 56),
        "wire_bytes": 20000.0,
        "entropy_bits": 5.0,
        "encode_ms": 1.0,
        "decode_ms": 0.5,
        "head_macs": FULL_MACS // 20,
        "full_macs": FULL_MACS,
        "epochs": 30.0,
        "train_s": 100.0,
    }
    return ResultRow(**(row | changes))


def codec_row(**changes: Any) -> ResultRow:
    """One row of a JPEG frame of 224 px at quality 10, with ``changes``."""
    frame = {"split": None, "split_shape": None, "ratio": None, "bits": None, "planes": None, "head_macs": 0}
    codec = {"task": "jpeg-10-224", "arm": "jpeg", "quality": 10, "side": 224, "wire_bytes": 2300.0, "accuracy": 0.88}
    return result_row(**(frame | codec | {"entropy_bits": None} | changes))


def unsplit_row(**changes: Any) -> ResultRow:
    """The whole network: 95.5 %."""
    whole = {"task": "unsplit", "arm": "unsplit", "wire_bytes": None, "accuracy": 0.955, "quality": None, "side": None}
    return codec_row(**(whole | {"encode_ms": None, "decode_ms": None} | changes))


def many_rows() -> list[ResultRow]:
    """About 300 rows: every arm, two split points, six ratios, three numbers of bits, three seeds."""
    rng = np.random.default_rng(7)
    rows = [
        unsplit_row(task=f"unsplit-s{seed}", seed=seed, accuracy=0.9555 + 0.001 * seed, train_s=900.0) for seed in SEEDS
    ]
    rows.append(unsplit_row(task="int8", arm="local-int8", accuracy=0.951, head_macs=FULL_MACS, epochs=0.0))
    for arm in ("bottlenetpp", "ca-pruned", "aecnn"):
        for split in SHAPES:
            for ratio in RATIOS:
                rows += [_split(rng, arm, split, ratio, 8, seed) for seed in SEEDS]
                rows += [_split(rng, arm, split, ratio, bits, 0) for bits in (6, 4)] if ratio >= 8 else []
    for ratio in (4, 16, 64):
        rows += [_split(rng, "aecnn-fast", split, ratio, 8, seed) for split in SHAPES for seed in SEEDS]
        for number, arm in enumerate(("random", "l1", "se", "cbam")):
            rows.append(_split(rng, arm, 1, ratio, 8, 0, worse=2.5 - 0.6 * number))
    for ratio, bits in ((64, 8), (64, 4), (128, 4), (256, 4)):
        rows += [_split(rng, "strided", 2, ratio, bits, seed, share=0.075, size=0.25, worse=1.2) for seed in SEEDS]
    rows += [_split(rng, "jpeg-features", 1, ratio, 8, 0, worse=1.5, size=0.5) for ratio in (4, 16, 64)]
    rows += [_split(rng, "late-split", 2, ratio, 8, 0, share=0.62, size=0.05, worse=0.5) for ratio in (8, 32)]
    for arm, scale in (("jpeg", 1.0), ("webp", 0.62), ("avif", 0.5)):
        for side in (112, 160, 224):
            for quality in (5, 10, 20, 40, 70):
                rows.append(_codec(rng, arm, scale, side, quality))
    rows += [_ablation(rng, label, lost) for label, lost in (("all", 0.0), ("no distillation", 4.4), ("no rate", 0.3))]
    return rows


def rankings(split: int = 1, seed: int = 0, channels: int | None = None) -> list[Ranking]:
    """The importance of a split point's channels by every method; "ca" with three batches."""
    rng = np.random.default_rng(split)
    count = channels or SHAPES[split][0]
    base = rng.gamma(2.0, 0.5, count)
    batches = tuple(tuple(float(v) for v in base + rng.normal(0, 0.08, count)) for _ in range(3))
    found = [
        Ranking(
            task=f"rank-ca-l{split}-s{seed}", method="ca", split=split, seed=seed, importance=tuple(map(float, base)),
            batches=batches, batch_images=256,
        )
    ]  # fmt: skip
    for method, noise in (("l1", 0.6), ("se", 0.3), ("cbam", 0.25), ("random", 9.0)):
        values = tuple(float(v) for v in base + rng.normal(0, noise, count))
        task = f"rank-{method}-l{split}-s{seed}"
        found.append(Ranking(task=task, method=method, split=split, seed=seed, importance=values))
    return found


def write_run(folder: Path, items: list[ResultRow | Ranking], *, backbone: str | None = "resnet50") -> Path:
    """A run's folder with these rows; ``backbone`` None: it has no run.json yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    for item in items:
        write_result(folder, item)
    if backbone is not None:
        frame = InputSpec(
            height=224, width=224, resize_short=256, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )
        record = {
            "format": 1,
            "backbone": backbone,
            "labels": ["cat", "dog"],
            "input": frame,
            "variants": [],
            "settings": {"epochs": 30, "note": "<b>&"},
        }
        (folder / "run.json").write_bytes(msgspec.json.encode(record))
    return folder


def _split(
    rng: np.random.Generator,
    arm: str,
    split: int,
    ratio: int,
    bits: int,
    seed: int,
    *,
    share: float | None = None,
    size: float = 1.0,
    worse: float = 0.0,
) -> ResultRow:
    channels, height, width = SHAPES[split]
    planes = (max(channels // ratio, 1), height, width)
    hardest, at_once = LOSSES.get(arm, LOSSES["ca-pruned"])
    lost = at_once + worse + hardest * (np.log2(ratio) / 6) ** 2 / split + 0.5 * (8 - bits) / 4 + rng.normal(0, 0.15)
    entropy = {8: 4.4, 6: 2.7, 4: 1.2}[bits] + rng.normal(0, 0.03)
    payload = float(np.prod(planes)) * entropy / 8 * size
    return result_row(
        task=f"{arm}-l{split}-v{ratio}-b{bits}-s{seed}",
        arm=arm,
        split=split,
        split_shape=SHAPES[split],
        ratio=ratio,
        bits=bits,
        planes=planes,
        seed=seed,
        accuracy=float(np.round((95.6 - lost) / 100, 4)),
        wire_bytes=payload + 44,
        payload_bytes=payload,
        entropy_bits=float(entropy),
        encode_ms=0.3 + payload / 40000,
        decode_ms=0.2 + payload / 90000,
        head_macs=int(
            FULL_MACS * (share or (HEAD_SHARES[split] * (0.4 + 0.6 / ratio) + (arm == "bottlenetpp") * 0.18))
        ),
        epochs=4.0 if arm == "aecnn-fast" else 30.0,
        train_s=float({"aecnn-fast": 160, "aecnn": 1700}.get(arm, 1100) * rng.uniform(0.8, 1.3)),
    )


def _codec(rng: np.random.Generator, arm: str, scale: float, side: int, quality: int) -> ResultRow:
    size = 44 + scale * (side / 224) ** 1.6 * (900 + 130 * quality)
    lost = 28 * (700 * scale / size) ** 0.8 + 9 * (1 - side / 224) ** 1.3 + abs(rng.normal(0, 0.2))
    return codec_row(
        task=f"{arm}-{side}-{quality}",
        arm=arm,
        side=side,
        quality=quality,
        wire_bytes=float(size),
        accuracy=float(np.round((95.5 - lost) / 100, 4)),
        epochs=3.0,
        train_s=12.0,
    )


def _ablation(rng: np.random.Generator, label: str, lost: float) -> ResultRow:
    row = _split(rng, "strided", 2, 128, 4, 0, share=0.075, size=0.25, worse=1.2 + lost)
    return msgspec.structs.replace(row, task=f"ablation-{label.replace(' ', '-')}", label=label, ablation=True)
