"""Layer times of one machine, placed in the graph of the unsplit model: what each half of a cut takes."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate

from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.profiles import CutFeatures, FeatureProfile, LayerTime

_BLOCKED = "_nchwc"  # what ONNX Runtime adds to a tensor's name for a convolution in the blocked layout
_FUSED = "Fused"
_OWN = "Reorder"  # how operators begin that change the layout, and are of no node
_DEPTHWISE = "depthwise Conv"
_LEAST_PLACED = 0.9  # of a machine's layer time: below, the layers are another model's


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as it ran. ``place``: index of its last node in the graph; layers of one place ran one after another.

    ``macs`` and ``written_bytes`` are of all nodes that it stands for, for one image.
    """

    name: str
    kind: str
    place: int
    ms: float
    macs: int
    written_bytes: int


class LayerTable:
    """``layers`` of one machine, and ``places``: node -> index in the graph. ``of`` makes it from two profiles."""

    def __init__(self, layers: Sequence[Layer], places: Mapping[str, int]) -> None:
        self.layers, self._places = tuple(layers), places
        ordered = sorted(self.layers, key=lambda layer: layer.place)
        self._ordered_places = [layer.place for layer in ordered]
        self._sums_ms = [0.0, *accumulate(layer.ms for layer in ordered)]

    @classmethod
    def of(cls, layers: Mapping[str, LayerTime], features: FeatureProfile, whose: str) -> "LayerTable":
        """The layers of ``whose`` ("device", "edge") profile in the order of ``features.nodes``.

        ONNX Runtime makes one layer of several nodes and names it after one of them, or after its tensor; what it adds
        by itself (a change of layout) belongs to the layer before. Raises PlanError: there are none, or they are
        another model's.
        """
        places = {name: place for place, name in enumerate(features.nodes)}
        return cls(_placed(layers, features, places, whose), places)

    def timed_by(self, time_ms: Callable[[Layer], float]) -> "LayerTable":
        """The same layers with other times."""
        return LayerTable([replace(layer, ms=time_ms(layer)) for layer in self.layers], self._places)

    @property
    def total_ms(self) -> float:
        return self._sums_ms[-1]

    def up_to_ms(self, cut: CutFeatures) -> float:
        """Milliseconds of all layers up to the cut. Raises PlanError: it is after no node of the graph."""
        if cut.after not in self._places:
            raise PlanError(
                f"the feature profile has a cut after {cut.after!r}, which is none of its nodes; measure again"
            )
        return self._sums_ms[bisect_right(self._ordered_places, self._places[cut.after])]

    def after_ms(self, cut: CutFeatures) -> float:
        """Milliseconds of the rest."""
        return self.total_ms - self.up_to_ms(cut)


def _placed(
    layers: Mapping[str, LayerTime], features: FeatureProfile, places: Mapping[str, int], whose: str
) -> list[Layer]:
    if not layers:
        raise PlanError(f"the {whose} profile has no times of layers; run: aecnn-deploy calibrate {whose}")
    by_tensor = {node.tensor: name for name, node in features.nodes.items()}
    named = {name: _node_of(name, places, by_tensor) for name in layers}
    known_ms = sum(layer.ms for name, layer in layers.items() if named[name] is not None)
    if known_ms < _LEAST_PLACED * sum(layer.ms for layer in layers.values() if not layer.op.startswith(_OWN)):
        raise PlanError(
            f"the {whose} profile's layers are not those of the feature profile's model; measure again with: "
            f"aecnn-deploy calibrate {whose}, aecnn-deploy calibrate features"
        )
    work = _work_of({node for node in named.values() if node is not None}, features)
    found: list[Layer] = []
    place = 0
    for name, layer in layers.items():
        node = named[name]
        kind, macs, written = layer.op.removeprefix(_FUSED), 0, 0
        if node is not None:
            place = places[node]
            macs, written, depthwise = work[node]
            kind = _DEPTHWISE if depthwise else kind
        found.append(Layer(name, kind, place, layer.ms, macs, written))
    return found


def _node_of(layer: str, places: Mapping[str, int], by_tensor: Mapping[str, str]) -> str | None:
    """The node that ``layer`` is named after; None: ONNX Runtime's own."""
    for name in (layer, layer.rpartition("/")[0]):  # "node/MatMulAddFusion"
        if name in places:
            return name
    return by_tensor.get(layer.removesuffix(_BLOCKED))


def _work_of(named: Set[str], features: FeatureProfile) -> dict[str, tuple[int, int, bool]]:
    """Node that a layer is named after -> multiply-adds, bytes written, whether its convolution is depthwise.

    A node that no layer is named after is fused with one that comes after it, or has nothing to multiply.
    """
    found: dict[str, tuple[int, int, bool]] = {}
    macs, depthwise = 0, False
    for name, node in features.nodes.items():
        macs, depthwise = macs + features.layer_macs.get(name, 0), depthwise or node.op == _DEPTHWISE
        if name in named:
            found[name] = (macs, node.output_bytes, depthwise)
            macs, depthwise = 0, False
    return found
