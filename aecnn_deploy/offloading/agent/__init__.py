"""The graph policy: actor, candidates, critics, training and its ONNX file."""
