"""BottleNet++ (Shao & Zhang, ICC Workshops 2020), the paper's baseline: a learned resizing of the split tensor.

Encoder, on the device after the whole head: 3×3 convolution of stride 1 to C' channels, batch norm, sigmoid. Decoder,
on the edge: 3×3 convolution to C channels, batch norm, ReLU. The sigmoid's range is cut into 2^bits levels.
"""

from torch import nn


def bottlenet_encoder(channels: int, planes: int) -> nn.Sequential:
    """(N, C, H, W) → (N, C', H, W), each value in (0, 1)."""
    return nn.Sequential(nn.Conv2d(channels, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes), nn.Sigmoid())


def bottlenet_decoder(channels: int, planes: int, *, linear: bool = False) -> nn.Sequential:
    """(N, C', H, W) → (N, C, H, W).

    ``linear`` leaves the last ReLU out: with it, a tensor that has negative values (the linear bottlenecks of
    MobileNetV2's and EfficientNet's blocks) cannot be made again.
    """
    layers: list[nn.Module] = [nn.Conv2d(planes, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers, *([] if linear else [nn.ReLU(inplace=True)]))
