"""What the stages of training minimise."""

import torch.nn.functional as F
from torch import Tensor


def match_loss(recovered: Tensor, original: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error, each channel times ``scale`` (C,): one over its standard deviation."""
    difference = (recovered.float() - original.float()) * scale[:, None, None]
    return difference.square().mean()


def distil_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher at ``temperature``, times its square (Hinton et al., 2015)."""
    t = temperature
    divergence = F.kl_div(
        F.log_softmax(logits.float() / t, dim=1),
        F.log_softmax(teacher / t, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return t * t * divergence


def label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with label smoothing."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
