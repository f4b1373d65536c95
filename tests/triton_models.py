"""Triton's own eyes on a model repository: its schema, and what its ONNX Runtime backend compares when it loads."""

from pathlib import Path

import msgspec
import onnx
from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from aecnn_deploy.bundle.manifest import EngineSpec
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.exporters.half_tail import half_tail
from tests.bundles import make_bundle

TYPES = {TensorProto.UINT8: "TYPE_UINT8", TensorProto.FLOAT: "TYPE_FP32"}


def config_of(model: Path) -> ModelConfig:
    """The model's config.pbtxt as Triton's schema reads it: an unknown field or a wrong type is an error."""
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def check_model(model: Path, source: Path | None = None) -> ModelConfig:
    """What Triton checks when it loads ``model``, against its ONNX file or, for a plan, the ``source`` behind it."""
    config = config_of(model)
    assert config.name == model.name
    assert (config.backend, config.platform) in (("onnxruntime", "onnxruntime_onnx"), ("tensorrt", "tensorrt_plan"))
    graph = onnx.load(str(source or model / "1" / "model.onnx")).graph
    for tensors, values in ((config.input, graph.input), (config.output, graph.output)):
        assert [tensor.name for tensor in tensors] == [value.name for value in values]
        for tensor, value in zip(tensors, values, strict=True):
            kind = value.type.tensor_type
            assert DataType.Name(tensor.data_type) == TYPES[kind.elem_type]
            batch, *sizes = kind.shape.dim
            assert batch.dim_param  # open, which max_batch_size > 0 needs
            assert list(tensor.dims) == [size.dim_value for size in sizes]
    assert config.max_batch_size > 0
    assert all(1 <= size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size)
    for sample in config.model_warmup:
        assert 1 <= sample.batch_size <= config.max_batch_size
        assert list(sample.inputs) == [config.input[0].name]
        warm = sample.inputs[config.input[0].name]
        assert (warm.data_type, warm.dims) == (config.input[0].data_type, config.input[0].dims)
        assert warm.zero_data
    labels = (model / config.output[0].label_filename).read_bytes().decode().split("\n")
    assert len(labels) == config.output[0].dims[0] + 1
    assert labels[-1] == ""
    for name in config.cc_model_filenames.values():
        assert (model / "1" / name).is_file()
    return config


def with_engines(folder: Path, engines: tuple[EngineSpec, ...]) -> Bundle:
    """A tiny bundle whose first variant has a half tail too, and lists ``engines``: words, which nobody runs here."""
    make_bundle(folder / "plain")
    plain = open_bundle(folder / "plain")
    with BundleWriter(folder / "bundle") as writer:
        for name in plain.manifest.files:
            writer.copy(plain.file(name), name)
        for engine in engines:
            writer.path(engine.file).write_text(f"engine {engine.file}")
        first, *others = plain.manifest.variants
        named = {f"target-{number}": engine for number, engine in enumerate(engines)}
        half = f"tails/{first.id}.fp16.onnx"
        half_tail(plain.file(first.tails["onnxruntime"]), writer.path(half))
        tails = first.tails | {"onnx-fp16": half}
        variants = (msgspec.structs.replace(first, engines=named, tails=tails), *others)
        writer.commit_changed(plain.manifest, variants=variants)
    return open_bundle(folder / "bundle")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
