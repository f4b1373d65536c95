"""Every error that this package raises on purpose.

AecnnError
├── SettingsError            a setting or a combination of settings is refused
├── MissingExtraError        an optional dependency is not installed
├── ModelError               no such backbone, split point, ratio or weights
├── TrainingError            a run cannot start or go on
│   └── RunFormatError       a folder is no run, or a damaged one
├── ExportError              an exported file cannot be made
│   ├── UnsupportedOpError   an operator has no form in ONNX, or none that a runtime runs
│   └── VerificationError    an exported file differs from torch
├── BundleError              a bundle cannot be read or written
│   ├── NotABundleError      the path holds no bundle
│   ├── BundleFormatError    the bundle is of a format that this version cannot read
│   └── BundleDamagedError   a file differs from what the manifest says
├── CodecError               planes cannot be encoded, or a payload cannot be decoded
│   ├── PayloadSizeError     a payload declares or holds another size than its planes have
│   └── NoReferenceError     a difference to planes that are not there
├── WireError                bytes from the peer, or calls here, that break docs/wire-format.md
│   └── PayloadTooBigError   a message declares more bytes than the limit
├── SessionRefusedError      the edge refused the device's HELLO
├── RequestFailedError       the edge answered one request with a named failure
├── EdgeUnreachableError     no edge answers at this address
│   ├── LinkLostError        the connection to it ended before an answer came
│   └── TimedOutError        it did not answer in time
├── CredentialsError         a certificate, a key or a token file cannot be used
├── ServeError               the edge cannot start (a port in use, no runner)
├── PlanError                no plan can be made: a profile is missing, damaged, or of another bundle or machine
├── ScenarioError            a scenario of devices and edges contradicts itself, or lacks what it names
├── PolicyError              an offloading policy cannot be read, or is of other features
├── UnitError                a systemd unit cannot be installed
├── RunnerError              a model file cannot be loaded or run
│   ├── EngineMismatchError  an engine was built for another product, version or GPU
│   ├── RunnerAwayError      what runs the model elsewhere is away; it may come back
│   └── UpstreamError        a server that runs models for this edge failed one call
└── SourceError              a source of images cannot be read
    ├── ImageError           one image does not decode
    └── SourceLostError      a camera or stream is gone or silent; it may come back
"""

from pathlib import Path


class AecnnError(Exception):
    """Base of every error this package raises on purpose; its message is one line for a person."""


class SettingsError(AecnnError):
    """A setting or a combination of settings is refused (exit status 2)."""


class MissingExtraError(AecnnError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str, why: str) -> None:
        self.module, self.extra, self.why = module, extra, why
        super().__init__(f"{why} needs {module!r}, which is not installed: pip install 'aecnn-deploy[{extra}]'")


class ModelError(AecnnError):
    """No such backbone, split point, ratio or weights."""


class TrainingError(AecnnError):
    """A training run cannot start or go on."""


class RunFormatError(TrainingError):
    """A folder is no training run, or a damaged one."""


class ExportError(AecnnError):
    """An exported file cannot be made."""


class UnsupportedOpError(ExportError):
    """An operator has no form in ONNX, or none that a runtime runs.

    ``node``: its name in the graph, or the line of the module that calls it.
    """

    def __init__(self, file: str, op: str, node: str, who: str, why: str, remedy: str) -> None:
        self.file, self.op, self.node = file, op, node
        super().__init__(f"{who} {file}: the operator {op} at node {node}: {why}; {remedy}")


class VerificationError(ExportError):
    """An exported file computes something else than torch does."""

    def __init__(
        self, file: str, quantity: str, got: float, tolerance: float, batch: int, remedy: str | None = None
    ) -> None:
        self.file, self.quantity, self.got, self.tolerance, self.batch = file, quantity, got, tolerance, batch
        remedy = remedy or "try another torch or onnxscript release, or report the backbone"
        super().__init__(
            f"{file} differs from torch at batch size {batch}: {quantity} {got:.6g}, tolerance {tolerance:.6g}; "
            f"no bundle was written; {remedy}"
        )

    @property
    def finding(self) -> str:
        """What was measured, without what it means for an export."""
        return f"{self.quantity} {self.got:.6g}, tolerance {self.tolerance:.6g}, at batch size {self.batch}"


class BundleError(AecnnError):
    """A bundle cannot be read or written."""


class NotABundleError(BundleError):
    """The path holds no bundle."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(f"{path} is not a bundle: {why}; make one with: aecnn-deploy export RUN --out {path}")


class BundleFormatError(BundleError):
    """The bundle is of a format that this version cannot read."""

    def __init__(self, path: Path, got: object, known: int) -> None:
        self.path, self.got, self.known = path, got, known
        super().__init__(
            f"{path} has bundle format {got}, this version reads format {known}; upgrade aecnn-deploy or export again"
        )


class BundleDamagedError(BundleError):
    """A file of the bundle differs from what the manifest says."""

    def __init__(self, path: Path, file: str, expected: str, got: str) -> None:
        self.path, self.file, self.expected, self.got = path, file, expected, got
        super().__init__(f"{path}: {file} is damaged: expected {expected}, got {got}; copy or export the bundle again")


class CodecError(AecnnError):
    """Planes cannot be encoded, or a payload cannot be decoded."""


class PayloadSizeError(CodecError):
    """A payload declares or holds another size than its planes have."""

    def __init__(self, what: str, got: int, expected: int) -> None:
        self.got, self.expected = got, expected
        super().__init__(f"{what} {got} bytes, the planes have {expected}; use the same variant on both halves")


class NoReferenceError(CodecError):
    """A payload is a difference to earlier planes that are not there."""

    def __init__(self, distance: int) -> None:
        self.distance = distance
        super().__init__(
            f"no planes are kept of the request {distance} before this one, of its variant and session; "
            "send the frame on its own"
        )


class WireError(AecnnError):
    """Bytes from the peer, or calls here, that break docs/wire-format.md."""


class PayloadTooBigError(WireError):
    """A message declares more bytes than the limit."""

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        super().__init__(
            f"message declares {size} bytes, over the limit of {limit}; "
            "raise WireLimits on both halves, or send fewer channels"
        )


class SessionRefusedError(AecnnError):
    """The edge refused the device's HELLO. ``retry_after_s``: when it may not, if it said so."""

    def __init__(self, code: str, reason: str, retry_after_s: float | None = None) -> None:
        self.code, self.reason, self.retry_after_s = code, reason, retry_after_s
        super().__init__(f"the edge refused this device ({code}): {reason}")


class RequestFailedError(AecnnError):
    """The edge answered one request with a named failure; ``retry_after_s``: when asking again may help, if it may."""

    def __init__(self, code: str, reason: str, retry_after_s: float | None = None) -> None:
        self.code, self.reason, self.retry_after_s = code, reason, retry_after_s
        super().__init__(f"{code}: {reason}")


class EdgeUnreachableError(AecnnError):
    """No edge answers at this address."""

    def __init__(self, url: str, why: str, remedy: str = "is 'aecnn-deploy serve-edge' running there?") -> None:
        self.url, self.why = url, why
        super().__init__(f"cannot reach the edge at {url}: {why}" + (f"; {remedy}" if remedy else ""))


class LinkLostError(EdgeUnreachableError):
    """The connection to the edge ended before an answer came."""


class TimedOutError(EdgeUnreachableError):
    """The edge did not answer in time."""


class CredentialsError(AecnnError):
    """A certificate, a key or a token file cannot be used."""


class ServeError(AecnnError):
    """The edge cannot start."""


class PlanError(AecnnError):
    """No plan can be made: a profile is missing, damaged, or of another bundle or machine."""


class ScenarioError(AecnnError):
    """A scenario of devices and edges cannot be read, contradicts itself, or lacks what it names."""


class PolicyError(AecnnError):
    """An offloading policy cannot be read, made or trained, or is of other features than the observation has."""


class UnitError(AecnnError):
    """A systemd unit cannot be installed."""


class RunnerError(AecnnError):
    """A model file cannot be loaded or run."""


class EngineMismatchError(RunnerError):
    """An engine was built for another product, version or GPU."""

    def __init__(self, file: str, built_for: str, here: str) -> None:
        self.file, self.built_for, self.here = file, built_for, here
        super().__init__(
            f"{file} was built for {built_for}, here is {here}; "
            "export again with a matching --engine and --sm, or serve with --runner onnxruntime"
        )


class RunnerAwayError(RunnerError):
    """What runs the model elsewhere is away. ``retry_after_s``: when asking again may help."""

    def __init__(self, why: str, retry_after_s: float) -> None:
        self.why, self.retry_after_s = why, retry_after_s
        super().__init__(why)


class UpstreamError(RunnerError):
    """A server that runs models for this edge failed one call.

    ``code``: the gRPC status in small letters with hyphens, or one of ours. ``passing``: trying again may help.
    """

    def __init__(self, code: str, why: str, *, passing: bool) -> None:
        self.code, self.passing = code, passing
        super().__init__(why)


class SourceError(AecnnError):
    """A source of images cannot be read."""


class ImageError(SourceError):
    """One image does not decode."""

    def __init__(self, source: str, why: str) -> None:
        self.source, self.why = source, why
        super().__init__(f"{source} does not decode as an image: {why}")


class SourceLostError(SourceError):
    """A camera or stream is gone, silent or not there yet: opening it again may help."""
