"""Split a trained CNN between a device and an edge (AECNN): train, export, serve, run."""

import os

__version__ = "0.1.0"

# ONNX Runtime's Linux wheels (1.32, at the latest) write a telemetry database into the user's cache and send it to
# their maker. Set here, before anything imports it and for child processes too; a value of the user's own stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
