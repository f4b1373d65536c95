"""Training settings: a TOML file, checked when it is read."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from aecnn_deploy.errors import SettingsError

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0)]


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
    match_weight: Annotated[float, Meta(ge=0)] = 0.5  # how much of the first phase's loss stays


class LabelFreeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training from unlabelled photographs: rank, prune, match the split tensor, then distil by option."""

    method: Literal["label-free"] = "label-free"
    backbone: str = "efficientnet_lite0"
    weights: str | None = None  # None: the backbone's default source
    split: Positive = 6
    ratios: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (2, 4)
    bits: Annotated[int, Meta(ge=1, le=8)] = 6
    hidden: Positive = 128  # channels inside feature recovery
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


def read_settings(path: Path) -> LabelFreeSettings:
    """The settings in a TOML file. Raises SettingsError: no such file, not TOML, an unknown key, a bad value."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not valid TOML: {exc}") from None
    _check_keys(path, document, LabelFreeSettings, "")
    try:
        return msgspec.convert(document, LabelFreeSettings)
    except msgspec.ValidationError as exc:
        raise SettingsError(f"{path}: {exc}") from None


def _check_keys(path: Path, table: dict[str, Any], struct: type[msgspec.Struct], prefix: str) -> None:
    """Refuse an unknown key by name, with the nearest known one."""
    known = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise SettingsError(f"{path}: unknown key {prefix + key!r}; {hint}")
        inner = known[key]
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _check_keys(path, value, inner, f"{prefix}{key}.")
