"""The published test set of DROO: wireless powered devices that compute or offload all of a slot's bits."""
