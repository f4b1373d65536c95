"""A split network: pruned head, quantiser, feature recovery, tail."""

import copy

from torch import Tensor, nn

from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.pruning import prune_head
from aecnn_deploy.models.quantiser import PlaneQuantiser
from aecnn_deploy.models.recovery import FeatureRecovery


class SplitModel(nn.Module):
    """One variant: ``head`` → ``quantiser`` → ``recovery`` → ``tail``.

    Input: float (N, 3, H, W), normalised. Output: logits (N, classes). ``kept``: the channels that are sent, int64,
    ascending. The head and the tail are copies: training them leaves the backbone as it was.
    """

    kept: Tensor

    def __init__(
        self, backbone: Backbone, split: int, kept: Tensor, bits: int, *, hidden: int = 64, repack: bool = False
    ) -> None:
        super().__init__()
        point = backbone.split_point(split)
        self.split, self.bits = split, bits
        self.hidden, self.repack = hidden, repack
        self.register_buffer("kept", kept.clone())
        self.head = prune_head(backbone.head(split), kept)
        self.quantiser = PlaneQuantiser(len(kept), bits)
        self.recovery = FeatureRecovery(point.channels, kept, hidden=hidden, repack=repack)
        self.tail = copy.deepcopy(backbone.tail(split))
        self.planes_shape = (len(kept), point.height, point.width)
        self.eval()

    def forward(self, x: Tensor, *, quantised: bool = True) -> Tensor:
        logits: Tensor = self.tail(self.recover(x, quantised=quantised))
        return logits

    def recover(self, x: Tensor, *, quantised: bool = True) -> Tensor:
        """The tensor (N, C, H, W) that the tail works on; ``quantised`` false leaves the rounding out."""
        sent: Tensor = self.head(x)
        recovered: Tensor = self.recovery(self.quantiser(sent) if quantised else sent)
        return recovered


def variant_id(backbone: str, split: int, ratio: int, bits: int) -> str:
    """The name of a variant in bundles and on the wire, e.g. ``resnet50-l1-v16-u8``."""
    return f"{backbone}-l{split}-v{ratio}-u{bits}"
