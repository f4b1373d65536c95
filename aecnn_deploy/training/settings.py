"""Training settings: a TOML file, checked when it is read."""

import difflib
import re
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import SettingsError

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, le=1e38)]  # float32 holds no more
Weight = Annotated[float, Meta(ge=0, le=1e38)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Bits = Annotated[int, Meta(ge=1, le=8)]
Kernel = Literal[1, 3]


class MatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first phase: the recovered tensor is trained to match the original one; no tail is run."""

    epochs: Positive = 10
    batch: Positive = 32
    learning_rate: Rate = 0.02


class DistilSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The second phase, by option: the unsplit model's logits, through the frozen tail."""

    epochs: NotNegative = 0
    batch: Positive = 32
    learning_rate: Rate = 3e-3
    temperature: Rate = 2.0
    match_weight: Weight = 0.5  # how much of the first phase's loss stays


class LabelFreeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training from unlabelled photographs: rank, prune, match the split tensor, then distil by option."""

    method: Literal["label-free"] = "label-free"
    backbone: str = "efficientnet_lite0"
    weights: str | None = None  # None: the backbone's default source
    split: Positive = 6
    ratios: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (2, 4)
    bits: Annotated[int, Meta(ge=1, le=8)] = 6
    hidden: Positive = 128  # channels inside feature recovery
    kernel: Kernel = 3  # of its last convolution: 1 or 3
    repack: bool = True  # recovery may correct the received channels too; false is the paper's FR
    trainable_stages: NotNegative = 1  # the head's last stages that are trained
    projection_only: bool = False  # of those, only the very last convolution and its batch norm
    photos: Positive = 2000  # at most so many are used
    seed: NotNegative = 0
    match: MatchSettings = MatchSettings()
    distil: DistilSettings = DistilSettings()

    def __post_init__(self) -> None:
        if len(set(self.ratios)) != len(self.ratios):
            raise ValueError(f"ratios {list(self.ratios)} name one ratio twice")
        if self.projection_only and not self.trainable_stages:
            raise ValueError("projection_only needs trainable_stages of at least 1")
        if self.trainable_stages > self.split:
            raise ValueError(f"trainable_stages {self.trainable_stages} is more than the head's {self.split} stages")


class FitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of training."""

    epochs: NotNegative = 10
    batch: Positive = 32
    learning_rate: Rate = 1e-3
    patience: NotNegative = 0  # epochs without better validation accuracy before the stage ends; 0: never


class DistilLossSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the end-to-end stage of the faster path minimises."""

    temperature: Rate = 2.0
    labels: Weight = 0.5  # weight of the labels' cross-entropy beside the distillation
    match: Weight = 0.5  # weight of the matching loss at the start; it falls to zero
    rate: Weight = 2.0  # a kilobyte over target_bytes costs so much


class DataSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The split of the data set: stratified by category, drawn with ``seed``."""

    validation: Share = 0.1
    test: Share = 0.15
    seed: NotNegative = 0
    train_limit: NotNegative = 0  # at most so many training images, of each category its share; 0: all

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise ValueError(
                f"the shares validation {self.validation:g} and test {self.test:g} leave a part empty; both must be "
                "above 0, and their sum below 1"
            )


Arm = Literal["aecnn", "aecnn-fast", "bottlenetpp", "random", "l1", "se", "cbam", "jpeg-features"]


class SweepSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arms trained for every combination; combinations that two sweeps name are trained once."""

    arms: Annotated[tuple[Arm, ...], Meta(min_length=1)] = ("aecnn",)
    splits: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (6,)
    ratios: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (4,)
    bits: Annotated[tuple[Bits, ...], Meta(min_length=1)] = (8,)
    seeds: Annotated[tuple[NotNegative, ...], Meta(min_length=1)] = (0,)


class StridedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One purpose-made strided head, by the faster path."""

    name: Annotated[str, Meta(pattern="^[a-z0-9-]+$")]
    split: Positive = 9  # the tail begins after this split point
    planes: Positive = 8
    bits: Bits = 4
    reuse: NotNegative = 0  # so many stages of the backbone come first
    drop: tuple[Positive, ...] = ()  # but these of them, which keep their tensor's shape: residual ones
    layers: tuple[tuple[Positive, ...], ...] = ()  # [channels, kernel, stride] or with a fourth number: expansion
    hidden: Positive = 128
    depth: NotNegative = 2
    target_bytes: NotNegative = 0  # bytes a frame that the rate term aims at; 0: no rate term
    train_tail: bool = True
    epochs: NotNegative = 0  # of the end-to-end stage; 0: as [distil] says
    match_epochs: NotNegative | None = None  # of the first stage; not given: as [match] says
    fresh_views: bool = False  # new random views in every epoch, whatever [views] says
    distillation: bool = True  # false: the labels alone in the second stage
    seeds: Annotated[tuple[NotNegative, ...], Meta(min_length=1)] = (0,)
    ablation: str = ""  # what this one leaves out: a row of the ablation table only


class CodecSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Full offloading of the resized frame; the classifier is fine-tuned on frames of this codec and side."""

    codecs: Annotated[tuple[Literal["jpeg", "webp", "avif"], ...], Meta(min_length=1)] = ("jpeg", "webp", "avif")
    sides: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (224, 160, 112, 80)
    seeds: Annotated[tuple[NotNegative, ...], Meta(min_length=1)] = (0,)


class Algorithm1Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Algorithm 1 with labels, its faster path, and the baselines, on one data set."""

    method: Literal["algorithm1"]
    backbone: str = "efficientnet_lite0"
    weights: str | None = None  # None: the backbone's default source
    resize_short: Positive | None = None  # pixels of a photograph's shorter side before the centre crop
    freeze: NotNegative = 0  # so many first stages keep their pretrained weights in every network
    train_tail: bool = True  # aecnn-fast: the tail learns too in the end-to-end stage
    views: NotNegative = 0  # random views of each image that are kept; 0: new ones in every epoch
    shared_unsplit: bool = False  # all seeds begin with the first seed's unsplit network
    augment: Literal["none", "flip", "crop"] = "crop"
    label_smoothing: Share = 0.1
    hidden: Positive = 64  # channels inside feature recovery
    kernel: Kernel = 3  # of its last convolution: 1 or 3
    bottlenet_linear: bool = False  # BottleNet++ without its decoder's ReLU, where split tensors have negative values
    data: DataSettings = DataSettings()
    unsplit: FitSettings = FitSettings()  # fine-tune the unsplit network
    attention: FitSettings = FitSettings()  # with channel attention inserted; for SE and CBAM too
    prune: FitSettings = FitSettings()  # CA_Pruned; for BottleNet++ its module with a frozen base
    recover: FitSettings = FitSettings()  # AECNN; for BottleNet++ the joint phase
    match: FitSettings = FitSettings(learning_rate=0.01)  # faster path: the tensor at the split, no tail is run
    distil: FitSettings = FitSettings()  # faster path: end to end, from the unsplit model
    distil_loss: DistilLossSettings = DistilLossSettings()
    codec: FitSettings = FitSettings()  # the classifier on coded frames
    recovery_depth: NotNegative = 0  # residual blocks inside the faster path's feature recovery
    sweep: tuple[SweepSettings, ...] = ()
    strided: tuple[StridedSettings, ...] = ()
    codecs: tuple[CodecSettings, ...] = ()
    late_splits: tuple[Positive, ...] = ()
    late_bits: tuple[Bits, ...] = (8, 4)
    local_int8: bool = False

    def __post_init__(self) -> None:
        if self.augment == "none" and self.views > 1:
            raise ValueError('augment = "none" has one view of each image; set views to 0 or 1')
        if self.match.patience:
            raise ValueError("match runs no tail, there is no accuracy to stop by: set its patience to 0")
        names = [item.name for item in self.strided]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two strided heads are named {name!r}")

    def input_spec(self, spec: InputSpec) -> InputSpec:
        """The backbone's own preparation of a photograph, with what these settings change."""
        if self.resize_short is None:
            return spec
        if self.resize_short < spec.height:
            raise SettingsError(f"resize_short {self.resize_short} is below the {spec.height} pixels of the crop")
        return msgspec.structs.replace(spec, resize_short=self.resize_short)


def seeds_of(settings: Algorithm1Settings) -> tuple[int, ...]:
    """All seeds that the settings name, ascending; 0 where they name none."""
    groups: tuple[SweepSettings | StridedSettings | CodecSettings, ...]
    groups = (*settings.sweep, *settings.strided, *settings.codecs)
    return tuple(sorted({seed for group in groups for seed in group.seeds})) or (0,)


Settings = LabelFreeSettings | Algorithm1Settings
_METHODS: dict[str, type[Settings]] = {"label-free": LabelFreeSettings, "algorithm1": Algorithm1Settings}


def read_settings(path: Path) -> Settings:
    """The settings in a TOML file. Raises SettingsError: no such file, not TOML, an unknown key, a bad value."""
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # an editor may have put a byte order mark
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not valid TOML: {exc}") from None
    method = document.get("method", "label-free")
    if not isinstance(method, str) or method not in _METHODS:
        raise SettingsError(f"{path}: unknown method {method!r}; choose one of {', '.join(_METHODS)}")
    kind = _METHODS[method]
    _check_keys(path, document, kind, "")
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as exc:
        raise SettingsError(f"{path}: {_told(str(exc), document, kind)}") from None


def _check_keys(path: Path, table: dict[str, Any], struct: type[msgspec.Struct], prefix: str) -> None:
    """Refuse an unknown key by name, with the nearest known one."""
    known = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            other = next((name for name, kind in _METHODS.items() if key in kind.__struct_fields__), None)
            if not prefix and other is not None:
                hint = f'it goes with method = "{other}", which this file does not say'
            raise SettingsError(f"{path}: unknown key {prefix + key!r}; {hint}")
        inner = known[key]
        items = value if isinstance(value, list) else [value]
        if get_origin(inner) is tuple:  # an array of tables
            inner = get_args(inner)[0]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            for item in items:
                if isinstance(item, dict):
                    _check_keys(path, item, inner, f"{prefix}{key}.")


def _told(said: str, document: dict[str, Any], kind: Any) -> str:
    """What msgspec ``said`` of a value of ``document``: what it is, where, and what is expected, in TOML's words."""
    problem, at, place = said.rstrip("`").partition(" - at `$")
    if not at:
        return said  # a check of ours
    got: Any = document
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place):
        got = got[name] if name else got[int(index)]
        kind = _inner(kind, name)
    where = place.removeprefix(".")
    if not problem.startswith(("Expected", "Invalid enum")):  # a key is missing, or a check of ours
        return f"{where}: {problem}"
    if get_origin(kind) is Literal:
        expected = f"one of {', '.join(map(str, get_args(kind)))}"
    elif problem.startswith("Expected `array`") and isinstance(got, dict):
        return f"{where} is one table, expected several; write [[{where}]] in the place of [{where}]"
    else:
        expected = problem.removeprefix("Expected ").partition(", got")[0]
        for word, plain in _TOML_WORDS.items():
            expected = expected.replace(f"`{word}`", plain)
    return f"{where} is {repr(got)[:100]}, expected {expected}"


_TOML_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "str | null": "a string",
    "int | null": "a whole number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def _inner(kind: Any, name: str) -> Any:
    """The type of a struct's field, or of a tuple's items where ``name`` is empty."""
    if name:
        kind = next(field.type for field in msgspec.structs.fields(kind) if field.name == name)
    else:
        kind = get_args(kind)[0]
    while get_origin(kind) is Annotated or isinstance(kind, UnionType):
        kind = get_args(kind)[0]
    return kind
