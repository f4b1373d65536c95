"""Layer times of one machine, placed in the graph of the unsplit model: what each half of a cut takes."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.profiles import CutFeatures, FeatureProfile, LayerTime

_BLOCKED = "_nchwc"  # what ONNX Runtime adds to a tensor's name for a convolution in the blocked layout
_FUSED = "Fused"
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
    """``layers`` of one machine's profile in the order of ``features.nodes``.

    ONNX Runtime makes one layer of several nodes and names it after one of them, or after its tensor; what it adds by
    itself (a change of layout) belongs to the layer before. Raises PlanError: the profiles are of different models.
    """

    def __init__(self, layers: Mapping[str, LayerTime], features: FeatureProfile, whose: str) -> None:
        self._places = {name: place for place, name in enumerate(features.nodes)}
        self._by_tensor = {node.tensor: name for name, node in features.nodes.items()}
        self.layers = self._place(layers, features, whose)
        ordered = sorted(self.layers, key=lambda layer: layer.place)
        self._ordered_places = [layer.place for layer in ordered]
        self._sums_ms = [0.0, *accumulate(layer.ms for layer in ordered)]

    @property
    def total_ms(self) -> float:
        return self._sums_ms[-1]

    def up_to_ms(self, cut: CutFeatures) -> float:
        """Milliseconds of all layers up to the cut."""
        return self._sums_ms[bisect_right(self._ordered_places, self._places[cut.after])]

    def after_ms(self, cut: CutFeatures) -> float:
        """Milliseconds of the rest."""
        return self.total_ms - self.up_to_ms(cut)

    def _place(self, layers: Mapping[str, LayerTime], features: FeatureProfile, whose: str) -> list[Layer]:
        placed = {name: self._node_of(name) for name in layers}
        known_ms = sum(layer.ms for name, layer in layers.items() if placed[name] is not None)
        if known_ms < _LEAST_PLACED * sum(layer.ms for layer in layers.values()) or not layers:
            raise PlanError(
                f"the {whose} profile's layers are not those of the feature profile's model; measure again with: "
                f"aecnn-deploy calibrate {whose}, aecnn-deploy calibrate features"
            )
        macs = self._macs_of_layers({node for node in placed.values() if node is not None}, features)
        found: list[Layer] = []
        last: str | None = None
        for name, layer in layers.items():
            node = placed[name]
            last = node or last
            place = self._places[last] if last is not None else 0
            kind, work, written = layer.op.removeprefix(_FUSED), 0, 0
            if node is not None:
                work, written, depthwise = macs[node]
                kind = "depthwise Conv" if depthwise else kind
            found.append(Layer(name, kind, place, layer.ms, work, written))
        return found

    def _node_of(self, layer: str) -> str | None:
        """The node that ``layer`` is named after; None: ONNX Runtime's own."""
        for name in (layer, layer.rpartition("/")[0]):  # "node/MatMulAddFusion"
            if name in self._places:
                return name
        return self._by_tensor.get(layer.removesuffix(_BLOCKED))

    def _macs_of_layers(self, named: set[str], features: FeatureProfile) -> dict[str, tuple[int, int, bool]]:
        """Node that a layer is named after -> multiply-adds and bytes written, with those of nodes fused into it.

        A node that multiplies is fused with what comes after it; another one with what comes before.
        """
        found: dict[str, tuple[int, int, bool]] = {}
        waiting, waits_depthwise = 0, False
        for name, node in features.nodes.items():
            work, depthwise = features.layer_macs.get(name, 0), node.op.startswith("depthwise")
            if name not in named:
                waiting, waits_depthwise = waiting + work, waits_depthwise or depthwise
                continue
            found[name] = (work + waiting, node.output_bytes, depthwise or waits_depthwise)
            waiting, waits_depthwise = 0, False
        return found
