"""Planning: what was measured of a bundle's halves and of the link between them, and what follows for a choice.

No torch and no ONNX Runtime here: a device plans, too.
"""
