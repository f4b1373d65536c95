"""A training run on disk: the backbone, its trained variants, and photographs to verify exports with.

run.json                     what was trained, how, and what was measured
backbone.safetensors         the unsplit model
variants/<id>.safetensors    kept channels, head, quantiser, recovery (and the tail where it was trained)
frames.npy                   uint8 (n, H, W, 3): real photographs, as a device would see them
"""

import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import RunFormatError, TrainingError
from aecnn_deploy.models.backbones import Backbone, build_backbone
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail, FullModel
from aecnn_deploy.models.macs import count_macs
from aecnn_deploy.models.results import is_litter, write_atomically, write_json
from aecnn_deploy.models.split import Kernel, Kind, SplitDesign, SplitModel, design_id
from aecnn_deploy.models.stepped import FusedHead
from aecnn_deploy.optional import require

RUN_FORMAT = 1
RUN_FILE, SETTINGS_FILE = "run.json", "settings.json"
# All that training, and the calibration of a run, write into its folder.
_RUN_ENTRIES = frozenset(
    (
        *(RUN_FILE, SETTINGS_FILE, "setup.json", "data.json", "tasks", "results", "rankings"),
        *("backbone.safetensors", "variants", "frames.npy", "int8.json"),
    )
)


class VariantRecord(msgspec.Struct, frozen=True):
    """One variant's line in run.json."""

    id: str
    split: int
    split_name: str
    ratio: int
    bits: int
    hidden: int
    repack: bool
    planes: tuple[int, int, int]
    head_macs: int
    full_macs: int
    tail_trained: bool = False
    accuracy: float | None = None
    agreement: float | None = None
    wire_bytes: float | None = None  # mean bytes of a message with its WebSocket frame, on the test split
    kind: Kind = "aecnn"
    kernel: Kernel = 3
    depth: int = 0
    reuse: int = 0
    drop: tuple[int, ...] = ()
    layers: tuple[tuple[int, ...], ...] = ()
    linear: bool = False

    @property
    def design(self) -> SplitDesign:
        """What the network is built from."""
        return SplitDesign(
            kind=self.kind,
            split=self.split,
            planes=self.planes[0],
            bits=self.bits,
            hidden=self.hidden,
            kernel=self.kernel,
            depth=self.depth,
            repack=self.repack,
            reuse=self.reuse,
            drop=self.drop,
            layers=self.layers,
            linear=self.linear,
        )


class RunRecord(msgspec.Struct, frozen=True):
    """run.json."""

    format: int
    backbone: str
    labels: tuple[str, ...]
    input: InputSpec
    variants: tuple[VariantRecord, ...]
    settings: dict[str, Any] = {}
    measurements: dict[str, Any] = {}
    tools: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class TrainedVariant:
    """One trained variant: its record and its network."""

    record: VariantRecord
    model: SplitModel
    input: InputSpec

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def split(self) -> int:
        return self.record.split

    @property
    def split_name(self) -> str:
        return self.record.split_name

    @property
    def ratio(self) -> int:
        return self.record.ratio

    @property
    def bits(self) -> int:
        return self.record.bits

    @property
    def planes(self) -> tuple[int, int, int]:
        return self.record.planes

    @property
    def head_macs(self) -> int:
        return self.record.head_macs

    @property
    def full_macs(self) -> int:
        return self.record.full_macs

    @property
    def accuracy(self) -> float | None:
        return self.record.accuracy

    @property
    def agreement(self) -> float | None:
        return self.record.agreement

    def head(self, *, fold: bool = True) -> DeviceHead | FusedHead:
        """The device's half, ready to export; ``fold`` false is what exports are compared with."""
        if not fold or self.record.kind == "bottlenetpp":  # whose planes are a sigmoid's
            return DeviceHead(self.model, self.input, fold=fold)
        return FusedHead(self.model, self.input)

    def tail(self, *, half: bool = False, fold: bool = True) -> EdgeTail:
        """The edge's half, ready to export; ``fold`` false is what exports are compared with."""
        return EdgeTail(self.model, half=half, fold=fold)


@dataclass(frozen=True, slots=True)
class Run:
    """A loaded run."""

    path: Path
    record: RunRecord
    backbone: Backbone
    variants: tuple[TrainedVariant, ...]
    frames: npt.NDArray[np.uint8]

    @property
    def backbone_name(self) -> str:
        return self.record.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        return self.record.labels

    @property
    def input(self) -> InputSpec:
        return self.record.input

    @property
    def measurements(self) -> dict[str, Any]:
        return self.record.measurements

    def full(self, *, fold: bool = True) -> FullModel:
        """The unsplit model, ready to export; ``fold`` false is what exports are compared with."""
        return FullModel(self.backbone, fold=fold)


def describe_variant(backbone: Backbone, model: SplitModel, ratio: int, **measured: Any) -> VariantRecord:
    """The record of a trained network; ``measured`` sets agreement, accuracy, wire_bytes or tail_trained."""
    point, design = backbone.split_point(model.split), model.design
    shape = (1, 3, backbone.input.height, backbone.input.width)
    return VariantRecord(
        id=design_id(backbone.name, design, ratio),
        split=model.split,
        split_name=point.name,
        ratio=ratio,
        bits=model.bits,
        kind=design.kind,
        hidden=design.hidden,
        kernel=design.kernel,
        depth=design.depth,
        repack=design.repack,
        reuse=design.reuse,
        drop=design.drop,
        layers=design.layers,
        linear=design.linear,
        planes=model.planes_shape,
        head_macs=count_macs(model.head, shape),
        full_macs=count_macs(backbone, shape),
        **measured,
    )


def check_run_target(out: Path, *, replace: bool) -> None:
    """Raises TrainingError: ``out`` cannot be written, or exists and may not be replaced. Called before the work.

    A run, finished or begun, is replaced where ``replace`` says so, but not what lies in its folder besides.
    """
    if not is_folder(out):
        if os.path.lexists(out):
            what = "not a folder" if out.exists() else "a link to nowhere"
            raise TrainingError(f"{out} is {what}: not replaced; choose another --out")
        _check_parents(out)
        return
    try:
        held = sorted(path.name for path in out.iterdir())
    except OSError as exc:
        raise TrainingError(f"cannot read the folder {out}: {exc.strerror}; choose another --out") from None
    if held and RUN_FILE not in held and SETTINGS_FILE not in held:
        raise TrainingError(f"{out} exists and holds no run: not replaced; choose another --out")
    if not replace:
        raise TrainingError(f"{out} exists; choose another --out, or add --force to replace it")
    foreign = [name for name in held if name not in _RUN_ENTRIES and not is_litter(name)]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise TrainingError(
            f"{out} holds {foreign[0]}{more} besides a run: not replaced; move that away, or choose another --out"
        )


def _check_parents(out: Path) -> None:
    """Raises TrainingError: the folders above ``out`` can neither be made nor written to."""
    above = next(parent for parent in out.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise TrainingError(f"cannot write {out}: {above} is not a folder; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise TrainingError(f"cannot write {out}: {above} may not be written to; choose another --out")


def is_folder(out: Path) -> bool:
    """Whether ``out`` is there as a folder. Raises TrainingError: nothing can be, by this name."""
    try:
        return out.is_dir()
    except OSError as exc:
        raise TrainingError(f"cannot write {str(out)[:100]}: {exc.strerror}; choose another --out") from None


def save_run(
    out: Path,
    record: RunRecord,
    backbone: Backbone,
    models: dict[str, SplitModel],
    frames: npt.NDArray[np.uint8],
    *,
    replace: bool = False,
) -> None:
    """Write a run beside its place and rename it; ``models`` by variant id. Raises TrainingError: cannot be written."""
    check_run_target(out, replace=replace)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=parent))
        try:
            partial.chmod(0o755)
            write_run_files(partial, record, backbone, models, frames)
            if out.exists():
                old = partial.with_name(partial.name + ".old")
                out.rename(old)
                partial.rename(out)
                shutil.rmtree(old)
            else:
                partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as exc:
        raise TrainingError(f"cannot write {out}: {exc.strerror}") from None


def write_run_files(
    folder: Path,
    record: RunRecord,
    backbone: Backbone,
    models: dict[str, SplitModel],
    frames: npt.NDArray[np.uint8],
) -> None:
    """The same into a folder that stands, each file beside its place and renamed; run.json comes last.

    Raises TrainingError: the disk refuses.
    """
    write_atomically(folder / "backbone.safetensors", dump_tensors(backbone.state_dict()))
    for variant in record.variants:
        state = _state_of(models[variant.id], variant)
        write_atomically(folder / "variants" / f"{variant.id}.safetensors", dump_tensors(state))
    content = io.BytesIO()
    np.save(content, frames)
    write_atomically(folder / "frames.npy", content.getvalue())
    write_json(folder / RUN_FILE, record)


def _state_of(model: SplitModel, variant: VariantRecord) -> dict[str, Tensor]:
    state = model.state_dict()
    if variant.tail_trained:
        return state
    return {key: value for key, value in state.items() if not key.startswith("tail.")}


def dump_tensors(state: Mapping[str, Tensor]) -> bytes:
    """The tensors as the bytes of a safetensors file."""
    safetensors = require("safetensors.torch", why="writing a training run")
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    content: bytes = safetensors.save(copies)
    return content


def load_run(path: Path | str) -> Run:
    """The run at ``path``. Raises RunFormatError: no run, one of another format, or a damaged one."""
    path = Path(path)
    safetensors = require("safetensors.torch", why="reading a training run")
    record = read_record(path)
    try:
        backbone = build_backbone(record.backbone, len(record.labels))
        backbone.load_state_dict(safetensors.load_file(path / "backbone.safetensors"))
        variants = tuple(
            TrainedVariant(item, _load_variant(backbone, path, item, safetensors), record.input)
            for item in record.variants
        )
        frames = np.load(path / "frames.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        raise RunFormatError(f"{path} is a damaged run: {str(exc).strip().partition(chr(10))[0][:200]}") from None
    except Exception as exc:
        if type(exc).__name__ != "SafetensorError":  # shares no base with the ones above
            raise
        raise RunFormatError(f"{path} is a damaged run: {exc}") from None
    expected = (record.input.height, record.input.width, 3)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != expected or len(frames) < 1:
        raise RunFormatError(f"{path}: frames.npy holds {frames.dtype} {frames.shape}, expected uint8 (n, *{expected})")
    return Run(path, record, backbone, variants, frames)


def read_record(path: Path) -> RunRecord:
    """run.json alone. Raises RunFormatError."""
    source = path / RUN_FILE
    if not source.is_file() and (path / "settings.json").is_file():
        raise RunFormatError(f"{path} is a run that is not finished; go on with it: aecnn-deploy train … --resume")
    if not source.is_file():
        raise RunFormatError(f"{path} is not a training run: it has no {RUN_FILE}; make one with: aecnn-deploy train")
    try:
        record = msgspec.json.decode(source.read_bytes(), type=RunRecord)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise RunFormatError(f"{source} is not valid: {exc}") from None
    if record.format != RUN_FORMAT:
        raise RunFormatError(f"{path} has run format {record.format}, this version reads format {RUN_FORMAT}")
    return record


def _load_variant(backbone: Backbone, path: Path, item: VariantRecord, safetensors: Any) -> SplitModel:
    state = safetensors.load_file(path / "variants" / f"{item.id}.safetensors")
    model = SplitModel(backbone, item.design, state["kept"])
    if not item.tail_trained:
        state |= {f"tail.{key}": value for key, value in model.tail.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()
