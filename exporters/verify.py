"""What torch computes: the reference that an exported file is held against (runtimes/verification.py)."""

from typing import TYPE_CHECKING

import numpy as np

from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.base import Array

if TYPE_CHECKING:
    from torch import nn


def reference(module: "nn.Module", batch: Array) -> Array:
    """What torch computes for ``batch`` (uint8, first axis N)."""
    torch = require("torch", why="exporting")
    with torch.inference_mode():
        result: Array = module(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
    return result
