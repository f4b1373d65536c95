"""One model's ``config.pbtxt`` and ``labels.txt``."""

from collections.abc import Iterator

from aecnn_deploy.bundle.manifest import ONNXRUNTIME
from aecnn_deploy.exporters.triton_models import FULL, TritonModel
from aecnn_deploy.exporters.triton_settings import GPU, TENSORRT, TritonSettings
from aecnn_deploy.exporters.triton_signature import Tensor
from aecnn_deploy.exporters.triton_text import Message, Symbol, Value, entry, message, render

CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "1"  # as Triton calls the files and the folder of a model
BUNDLE_KEY, VARIANT_KEY = "aecnn_bundle_id", "aecnn_variant"  # of the parameters; a client checks both

_PLATFORMS = {ONNXRUNTIME: "onnxruntime_onnx", TENSORRT: "tensorrt_plan"}


def config_text(model: TritonModel, settings: TritonSettings, bundle_id: str) -> str:
    """The ``config.pbtxt`` of ``model``. Raises ExportError: a name that text format has no form for."""
    return render(Message(tuple(_fields(model, settings, bundle_id))))


def labels_text(labels: tuple[str, ...]) -> str:
    """One label a line, in the order of the logits. Triton reads line by line: a label's own line breaks are spaces."""
    return "".join(" ".join(label.splitlines()) + "\n" for label in labels)


def _fields(model: TritonModel, settings: TritonSettings, bundle_id: str) -> Iterator[tuple[str, Value]]:
    signature = model.signature
    yield "name", model.served_name
    yield "backend", model.backend
    yield "platform", _PLATFORMS[model.backend]
    yield "max_batch_size", model.max_batch
    yield "version_policy", message(latest=message(num_versions=1))
    yield "input", _tensor(signature.input)
    yield "output", _tensor(signature.output, label_filename=LABELS)
    for capability, name in model.capabilities.items():
        yield "cc_model_filenames", entry(capability, name)
    yield "instance_group", _instances(model, settings)
    yield "dynamic_batching", _batching(settings)
    yield "response_cache", message(enable=False)
    if settings.warm_up:
        for batch in sorted({1, model.max_batch}):
            yield "model_warmup", _warm_up(signature.input, batch)
    for key, value in _parameters(model, settings, bundle_id):
        yield "parameters", entry(key, message(string_value=value))


def _tensor(tensor: Tensor, **more: Value) -> Message:
    """Without the batch axis, which ``max_batch_size`` stands for."""
    return message(name=tensor.name, data_type=Symbol(tensor.data_type), dims=tensor.dims, **more)


def _instances(model: TritonModel, settings: TritonSettings) -> Message:
    on_gpu = model.backend == TENSORRT or settings.device == GPU
    fields: dict[str, Value] = {"count": settings.instances, "kind": Symbol("KIND_GPU" if on_gpu else "KIND_CPU")}
    if on_gpu and settings.gpus:
        fields["gpus"] = settings.gpus
    return message(**fields)


def _batching(settings: TritonSettings) -> Message:
    policy: dict[str, Value] = {"timeout_action": Symbol("REJECT"), "max_queue_size": settings.max_queue}
    if settings.queue_timeout_us:
        policy["default_timeout_microseconds"] = settings.queue_timeout_us
    fields: dict[str, Value] = {"max_queue_delay_microseconds": settings.queue_delay_us}
    if settings.preferred_batches:
        fields["preferred_batch_size"] = settings.preferred_batches
    return message(**fields, default_queue_policy=message(**policy))


def _warm_up(tensor: Tensor, batch: int) -> Message:
    zeros = message(data_type=Symbol(tensor.data_type), dims=tensor.dims, zero_data=True)
    return message(name=f"zeros at batch {batch}", batch_size=batch, inputs=entry(tensor.name, zeros))


def _parameters(model: TritonModel, settings: TritonSettings, bundle_id: str) -> Iterator[tuple[str, str]]:
    """What tells a client which bundle it talks to, and what ONNX Runtime's backend reads."""
    yield BUNDLE_KEY, bundle_id
    yield VARIANT_KEY, model.name
    yield "aecnn_precision", model.precision
    if model.name != FULL:
        yield "aecnn_bits", str(model.bits)
    if model.backend == ONNXRUNTIME:
        yield "intra_op_thread_count", str(settings.threads)
        yield "inter_op_thread_count", "1"
        yield "execution_mode", "0"  # one operator after the other, as everywhere here
    else:
        yield "aecnn_tensorrt", str(model.tensorrt)
