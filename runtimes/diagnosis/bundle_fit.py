"""The bundle: whether it is whole, and which of its heads and engines suit this machine."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from aecnn_deploy.bundle.manifest import INT8, EngineSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import (
    AecnnError,
    BundleDamagedError,
    BundleError,
    BundleFormatError,
    NotABundleError,
)
from aecnn_deploy.runtimes.cuda_worker import gpu_architecture
from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, problem, warning
from aecnn_deploy.runtimes.diagnosis.onnxruntime_probe import installed_version
from aecnn_deploy.runtimes.diagnosis.processor import read_processor
from aecnn_deploy.runtimes.diagnosis.subject import Subject
from aecnn_deploy.runtimes.head_choice import profiled_threads
from aecnn_deploy.runtimes.tensorrt_probe import load_product, usable

_REMEDIES: Mapping[type[BundleError], str] = MappingProxyType(
    {
        NotABundleError: "give the folder or the .tar.zst that 'aecnn-deploy export' wrote, or zoo:caltech101-lite0",
        BundleFormatError: "install the release that exported it: pip install --upgrade aecnn-deploy",
        BundleDamagedError: "copy the bundle again from where it was exported",
    }
)


def check_bundle(subject: Subject) -> Iterator[Finding]:
    """Every file against its hash, and what is in it."""
    opened = subject.opened
    if opened is None:
        return
    if isinstance(opened, BundleError):
        # Its message ends with a remedy of its own, which is for another reader.
        found = str(opened).rpartition(";")[0] or str(opened)
        yield problem("bundle", found, _REMEDIES.get(type(opened), "mind the spelling, the place and its permissions"))
        return
    manifest = opened.manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    yield ok(
        "bundle",
        f"{opened.id[:12]}, format {manifest.format}: {len(manifest.files)} files whole, {size / 1e6:.1f} MB; "
        f"{manifest.backbone}, variants {', '.join(spec.id for spec in manifest.variants)}",
    )


def check_heads(subject: Subject) -> Iterator[Finding]:
    """Which precisions there are, and whether it is known which is faster here."""
    bundle = subject.bundle
    if bundle is None:
        return
    variants = bundle.manifest.variants
    precisions = sorted({precision for spec in variants for precision in spec.head_files})
    text = f"{', '.join(precisions)} of {len(variants)} variants"
    if INT8 not in precisions or len(precisions) < 2:
        yield ok("heads", text)
        return
    version = installed_version()
    threads = profiled_threads(bundle, version) if version else []
    time_them = f"aecnn-deploy calibrate device {_named(subject)}"
    if threads:
        counts = ", ".join("all" if count == 0 else str(count) for count in threads)
        yield ok("heads", f"{text}; timed on this machine with threads: {counts}")
    elif read_processor(subject.host).int8_is_slow and any(_is_int8(bundle, spec.head) for spec in variants):
        found = f"{text}; by default int8, which this processor has no instructions for"
        yield warning("heads", f"{found}, and they were never timed here", time_them)
    else:
        found = f"{text}; never timed here, so the bundle's default is run"
        yield warning("heads", found, f"{time_them}, with the --threads that run-device will get")


def check_engines(subject: Subject) -> Iterator[Finding]:
    """Whether the bundle's engines are for the GPU and the release of this machine; an edge's business."""
    bundle = subject.bundle
    engines = [] if bundle is None else [e for spec in bundle.manifest.variants for e in spec.engines.values()]
    for product in sorted({engine.product for engine in engines}):
        built = [engine for engine in engines if engine.product == product]
        reason = usable(product)
        if reason is not None:
            yield ok("engines", f"{product} {_targets(built)}: not for this machine ({reason})")
            continue
        try:
            version, architecture = str(load_product(product).__version__), gpu_architecture()
        except AecnnError as exc:
            remedy = "look at 'nvidia-smi'; 'serve-edge --runner onnxruntime' serves without a GPU"
            yield warning("engines", f"{product}: {exc}", remedy)
            continue
        yield judge_engines(built, version, architecture, _named(subject))


def judge_engines(built: Sequence[EngineSpec], version: str, architecture: str, bundle: str) -> Finding:
    """The finding for engines of one product where its release ``version`` runs on a GPU of ``architecture``.

    ``bundle`` is its name on a command line.
    """
    product = built[0].product
    here = f"{product} {version} on {architecture}"
    fitting = sum(engine.version == version and architecture in engine.architectures for engine in built)
    if fitting:
        return ok("engines", f"{fitting} of {len(built)} for {here}")
    return warning(
        "engines",
        f"built for {product} {_targets(built)}; here is {here}",
        f"aecnn-deploy bundle engines {bundle} --engine {product} --sm {architecture.removeprefix('sm')} --out NEW; "
        "or let serve-edge build them at its start",
    )


def _targets(engines: Sequence[EngineSpec]) -> str:
    return ", ".join(sorted({f"{engine.version} on {'+'.join(engine.architectures)}" for engine in engines}))


def _is_int8(bundle: Bundle, head: str) -> bool:
    return any(spec.heads.get(INT8) == head for spec in bundle.manifest.variants)


def _named(subject: Subject) -> str:
    """The bundle as the user named it, for a command line."""
    return shlex.quote(subject.settings.bundle or "BUNDLE")
