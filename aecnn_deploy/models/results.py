"""What a training run measured: one JSON file for each task, read by ``evaluate`` and ``report``.

results/<task>.json     one ``ResultRow``: an arm, its settings, accuracy, bytes on the wire, multiply-adds
rankings/<task>.json    one ``Ranking``: the importance of every channel at a split point
"""

import errno
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import RunFormatError, TrainingError

_T = TypeVar("_T")
_PARTIAL = re.compile(r"\..+\.(json|npy|safetensors)\.[a-z0-9_]{8}")

ARMS = (
    "unsplit",  # the whole network, float32
    "local-int8",  # the whole network, int8, on the device: nothing is sent
    "aecnn",  # pruned head, feature recovery: Algorithm 1 as written
    "ca-pruned",  # the same without feature recovery
    "aecnn-fast",  # such a network by the faster path: its own ranking, matching, then distillation
    "strided",  # a purpose-made strided head that feeds feature recovery
    "bottlenetpp",  # BottleNet++ (Shao & Zhang)
    "random",  # CA-Pruned with another ranking of the channels, and so on
    "l1",
    "se",
    "cbam",
    "jpeg-features",  # planes coded as JPEG (Ko et al.)
    "late-split",  # the unpruned tensor, quantised, at a late split point
    "jpeg",  # full offloading of the resized frame
    "webp",
    "avif",
)

# Besides the payload: our message header and the WebSocket frame that carries it (2 + 2 extended length + 4 mask).
MESSAGE_HEADER_BYTES = 36
WEBSOCKET_FRAME_BYTES = 8
FRAMING_BYTES = MESSAGE_HEADER_BYTES + WEBSOCKET_FRAME_BYTES


ShareOfOne = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ResultRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured point. Accuracies are shares (0 to 1) of the test split; bytes are means over its images."""

    task: str  # unique within its run
    arm: str  # one of ARMS
    seed: int
    accuracy: ShareOfOne
    validation_accuracy: ShareOfOne | None = None
    test_images: int
    test_set: str | None = None  # names the test photographs and their order: rows of equal ones compare image by image
    correct: str | None = None  # by test image, as ``pack_correct`` writes it
    variant: str | None = None  # id of the variant that an export of the run would hold
    split: int | None = None
    split_shape: tuple[int, int, int] | None = None  # C, H, W of the unsplit network's tensor
    ratio: int | None = None
    bits: int | None = None
    planes: tuple[int, int, int] | None = None  # C', h, w as sent
    quality: int | None = None  # of an image codec
    side: int | None = None  # pixels of the frame that an image codec codes
    wire_bytes: float | None = None  # whole message with its WebSocket frame; None: nothing is sent
    payload_bytes: float | None = None
    entropy_bits: float | None = None  # order-0 entropy of the quantised values, bits a value
    encode_ms: float | None = None  # median, on the machine that evaluated
    decode_ms: float | None = None
    head_macs: int = 0  # multiply-adds on the device
    full_macs: int
    epochs: float = 0.0  # passes over the training split, all stages of this row together
    train_s: float = 0.0  # wall-clock of those
    device: str = "cpu"  # what it was trained on
    label: str = ""  # distinguishes rows of one arm, e.g. which trick was left out
    ablation: bool = False  # an ablation row: shown in its own table, not in the figures


class Ranking(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Importance of the channels at a split point; ``batches``: the same from random batches of ``batch_images``."""

    task: str
    method: str  # "ca", "se", "cbam", "l1", "random"
    split: int
    seed: int
    importance: tuple[float, ...]
    batches: tuple[tuple[float, ...], ...] = ()
    batch_images: int = 0


def pack_correct(correct: npt.NDArray[np.bool_]) -> str:
    """Which test images were classified correctly, bool (N,): hexadecimal, the first image in the highest bit."""
    return np.packbits(correct).tobytes().hex()


def unpack_correct(text: str, images: int) -> npt.NDArray[np.bool_]:
    """What ``pack_correct`` was given for ``images``: bool (N,). Raises ValueError: it is not of so many."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    if len(bits) != -(-images // 8) * 8:
        raise ValueError(f"{len(bits)} bits are not those of {images} images")
    return bits[:images].astype(np.bool_)


def write_result(run: Path, item: ResultRow | Ranking) -> None:
    """Write one row into the run, beside its place and renamed. Raises TrainingError: the disk refuses."""
    folder = run / ("results" if isinstance(item, ResultRow) else "rankings")
    write_json(folder / f"{item.task}.json", item)


def write_json(path: Path, document: Any) -> None:
    """``document`` as indented JSON, written beside ``path`` and renamed. Raises TrainingError: the disk refuses."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    write_atomically(path, text)


def write_atomically(path: Path, content: bytes) -> None:
    """``content`` written beside ``path``, synced and renamed. Raises TrainingError: the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o644)
            Path(partial).rename(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "take out of the way what hinders it"
        raise TrainingError(f"cannot write {path}: {exc.strerror}; {remedy} and go on with --resume") from None


def is_litter(name: str) -> bool:
    """A file that nobody wants: what a killed process of ours, a Mac or a network file system has left."""
    return bool(_PARTIAL.fullmatch(name)) or name == ".DS_Store" or name.startswith((".shared-", ".nfs"))


def remove_partial(run: Path) -> None:
    """Remove what ``write_atomically`` had begun below ``run`` when its process was killed."""
    for path in run.rglob(".*.????????"):
        if _PARTIAL.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def read_results(run: Path) -> tuple[ResultRow, ...]:
    """All rows of a run, by task. Raises RunFormatError: a damaged file."""
    return tuple(_read(path, ResultRow) for path in sorted((run / "results").glob("*.json")))


def read_rankings(run: Path) -> tuple[Ranking, ...]:
    """All rankings of a run, by task. Raises RunFormatError: a damaged file."""
    return tuple(_read(path, Ranking) for path in sorted((run / "rankings").glob("*.json")))


def read_ranking(run: Path, task: str) -> Ranking:
    """One ranking. Raises RunFormatError: missing or damaged."""
    return _read(run / "rankings" / f"{task}.json", Ranking)


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as exc:
        raise RunFormatError(
            f"{path} is not a {kind.__name__}: {exc}; train its task again: remove it and the task's folder in "
            f"{path.parent.with_name('tasks')}, and go on with --resume"
        ) from None
