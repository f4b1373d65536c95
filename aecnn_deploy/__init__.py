"""Split a trained CNN between a device and an edge (AECNN): train, export, serve, run."""

__version__ = "0.1.0"
