"""What reads recovered channels takes their order into its weights: the tail's logits stay, its copies go."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.models.deploy import EdgeTail
from aecnn_deploy.models.split import SplitDesign, SplitModel
from tests.int8_runs import backbone_of, network, normalised

LITE0, RESNET18, RESNET50 = "efficientnet_lite0", "resnet18", "resnet50"
# A downsampling block, identity skips in a row, a depthwise block without and with expansion, the classifier itself.
TAILS = (
    (RESNET50, 1),
    (RESNET50, 2),
    (RESNET50, 17),
    (RESNET18, 1),
    (RESNET18, 5),
    (LITE0, 1),
    (LITE0, 3),
    (LITE0, 4),
    (LITE0, 6),
    (LITE0, 17),
)


def recovered(name: str, split: int, kind: str) -> SplitModel:
    """A network whose kept channels are not the first ones, and whose recovery makes something."""
    channels = backbone_of(name).split_point(split).channels
    model = network(name, SplitDesign(kind=kind, split=split, planes=channels // 4, bits=8, hidden=16))
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in model.recovery.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.normal_(0, 0.05)
    if kind == "ca-pruned":
        kept = torch.arange(2, channels, 4)[: channels // 4]
        model = SplitModel(backbone_of(name), model.design, kept)
        with torch.no_grad():
            model.quantiser.calibrate(model.head(normalised(backbone_of(name))))
    return model


@pytest.mark.parametrize("kind", ["aecnn", "ca-pruned"])
@pytest.mark.parametrize(("name", "split"), TAILS)
def test_the_order_goes_into_the_weights(name: str, split: int, kind: str) -> None:
    model = recovered(name, split, kind)
    plain, folded = EdgeTail(model, fold=False), EdgeTail(model)
    planes = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *model.planes_shape), np.uint8))
    with torch.no_grad():
        expected, got = plain(planes), folded(planes)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=float(1e-4 * expected.abs().max()))
    assert plain.recovery.order.tolist() != sorted(plain.recovery.order.tolist())
    if kind == "aecnn":
        assert folded.recovery.in_order
    else:  # channels that are left out need no convolution; where the input is also added, they do
        block = next(iter(model.tail.children()))
        adds = getattr(block, "has_skip", False) or getattr(block, "downsample", 0) is None
        depthwise = type(block).__name__ == "DepthwiseSeparableConv"
        assert folded.recovery.received_alone is not (adds or depthwise)


def test_an_exported_tail_gathers_nothing(tmp_path: Path) -> None:
    model = recovered(RESNET18, 5, "aecnn")
    for number, tail in enumerate((EdgeTail(model), EdgeTail(model, fold=False))):
        # Batch norms that are left would be refused: those of the plain tail are folded by hand.
        path = tmp_path / f"{number}.onnx"
        if number:
            tail.recovery, tail.tail = (fold(module) for fold, module in ((_fold, tail.recovery), (_fold, tail.tail)))
        export_onnx(tail, "tail", path, input_shape=model.planes_shape, output_shape=(1000,), properties={})
        operators = [node.op_type for node in onnx.load(str(path)).graph.node]
        assert operators.count("Gather") == number
        assert operators.count("Concat") == 1


def _fold(module: torch.nn.Module) -> torch.nn.Module:
    from aecnn_deploy.models.deploy import fold_batch_norm

    return fold_batch_norm(module).requires_grad_(False)
