"""The tiny model that doctor runs in a process of its own: the package holds the file, here is what is in it.

python -m tests.probe_model      writes the file again
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aecnn_deploy.runtimes.diagnosis.onnxruntime_child import MODEL, SHAPE


def probe_model() -> onnx.ModelProto:
    """Ones through a 3x3 float convolution (9 everywhere), divided by 9 to uint8, through a 1x1 int8 one: 8."""
    nodes = [
        helper.make_node("Conv", ["x", "ones"], ["floats"]),
        helper.make_node("QuantizeLinear", ["floats", "nine", "zero"], ["bytes"]),
        helper.make_node(
            "QLinearConv", ["bytes", "one", "zero", "kernel", "one", "kernel_zero", "one", "zero"], ["planes"]
        ),
    ]
    constants = {
        "ones": np.ones((8, 1, 3, 3), np.float32),
        "kernel": np.ones((8, 8, 1, 1), np.int8),
        "one": np.float32(1),
        "nine": np.float32(9),
        "zero": np.uint8(0),
        "kernel_zero": np.int8(0),
    }
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("planes", TensorProto.UINT8, (1, 8, 6, 6))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    onnx.save(probe_model(), str(MODEL))
