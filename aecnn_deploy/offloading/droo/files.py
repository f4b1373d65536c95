"""MAT files as DROO's authors publish them: channel gains, and for each the best mode and rate that they found.

Such files come from outside: nothing in one is trusted before it is checked.
"""

import struct
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.droo.physics import Floats, alternating_weights, computation_rate
from aecnn_deploy.offloading.droo.samples import LEAST_SAMPLES, MOST_DEVICES, Samples
from aecnn_deploy.optional import require

GAINS, MODES, OPTIMUM = "input_h", "output_mode", "output_obj"
_MOST_BYTES: Final = 256 << 20
_MOST_UNPACKED: Final = 1 << 30
_CHUNK_BYTES: Final = 1 << 20
_HEADER_BYTES, _COMPRESSED = 128, 15  # of a MAT file of version 5
_MOST_SAMPLES: Final = 1_000_000
_MOST_VALUES: Final = 20_000_000  # of one field
_GAIN_LIMITS: Final = (1e-30, 1.0)
_FIT: Final = 1e-4  # relative; the published files agree to 2e-6
_CHECKED: Final = 200  # samples by which weights are told apart
_REMEDY: Final = "fetch the file again, or give another"


def read_samples(path: Path, *, weights: npt.ArrayLike | None = None) -> Samples:
    """The samples of a MAT file with the fields ``input_h`` (S, N), ``output_obj`` (S, 1) and ``output_mode`` (S, N).

    ``weights``: (N,); by default those of 1, 1.5, 1, … and 1.5, 1, 1.5, … with which the published modes give the
    published rates.

    Raises PolicyError: absent or damaged, a field that is missing or of a wrong shape, values that no channel has, no
    weighting that fits; SettingsError: ``weights`` are not N positive numbers; MissingExtraError: scipy.
    """
    fields = _load(path)
    gains = _matrix(path, fields, GAINS)
    samples, devices = gains.shape
    if samples < LEAST_SAMPLES or samples > _MOST_SAMPLES or not 1 <= devices <= MOST_DEVICES:
        raise PolicyError(
            f"{path}: {GAINS} holds {samples} samples of {devices} devices; {LEAST_SAMPLES} to {_MOST_SAMPLES} samples "
            f"of 1 to {MOST_DEVICES} devices can be read; {_REMEDY}"
        )
    low, high = _GAIN_LIMITS
    if not ((gains >= low) & (gains <= high)).all():
        raise PolicyError(
            f"{path}: {GAINS} holds values from {gains.min():.3g} to {gains.max():.3g}, which are no power gains of a "
            f"channel ({low:g} to {high:g}): negative, absent, or scaled; {_REMEDY}"
        )
    optimum = _matrix(path, fields, OPTIMUM).reshape(-1)
    if optimum.shape != (samples,) or not (optimum > 0).all():
        raise PolicyError(
            f"{path}: {OPTIMUM} must hold {samples} positive rates, one for each row of {GAINS}, but holds "
            f"{optimum.size}, {int((optimum > 0).sum())} of them positive; {_REMEDY}"
        )
    modes = None
    if MODES in fields:
        values = _matrix(path, fields, MODES)
        if values.shape != gains.shape or not np.isin(values, (0, 1)).all():
            raise PolicyError(
                f"{path}: {MODES} must hold 0 and 1 in the shape {gains.shape} of {GAINS}, its shape is "
                f"{values.shape}; {_REMEDY}"
            )
        modes = values == 1
    if weights is not None:
        chosen = _given(weights, devices)
    elif modes is None:
        raise PolicyError(f"{path} has no field {MODES}, by which the weights are found; name the weights")
    else:
        chosen = _fitting(path, gains, modes, optimum)
    return Samples(gains, chosen, optimum, modes, path.name)


def write_samples(path: Path, samples: Samples) -> None:
    """Write ``samples`` as such a MAT file. Raises PolicyError: it cannot be written, or there are no modes."""
    if samples.modes is None:
        raise PolicyError(f"{samples.source}: samples without modes have no field {MODES}; generate them with modes")
    fields = {
        GAINS: samples.gains,
        MODES: samples.modes.astype(np.uint8),
        OPTIMUM: samples.optimum[:, None],
    }
    try:
        _scipy_io("writing").savemat(path, fields, do_compression=True)
    except OSError as exc:
        raise PolicyError(f"cannot write {path}: {exc}") from exc


def _scipy_io(doing: str) -> Any:
    return require("scipy.io", why=f"{doing} MAT files", extra="offloading")


def _load(path: Path) -> dict[str, Any]:
    """The wanted fields, each no larger than its limit."""
    matlab = _scipy_io("reading")
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise PolicyError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if size > _MOST_BYTES:
        raise PolicyError(f"{path} has {size} bytes, over the limit of {_MOST_BYTES} for a test set; cut it into parts")
    wanted = (GAINS, MODES, OPTIMUM)
    _check_unpacked(path)
    try:
        headers = {name: shape for name, shape, _ in matlab.whosmat(path) if name in wanted}
    except Exception as exc:  # scipy raises what its parser stumbled on
        raise PolicyError(f"{path} is no MAT file of version 5 to 7, or a damaged one ({exc}); {_REMEDY}") from exc
    for name in (GAINS, OPTIMUM):
        if name not in headers:
            raise PolicyError(f"{path} has no field {name}; a test set has {', '.join(wanted)}; {_REMEDY}")
    for name, shape in headers.items():
        if len(shape) != 2 or shape[0] * shape[1] > _MOST_VALUES:
            raise PolicyError(
                f"{path}: {name} declares the shape {tuple(shape)}; two axes and at most {_MOST_VALUES} values can be "
                f"read; {_REMEDY}"
            )
    try:
        fields: dict[str, Any] = matlab.loadmat(path, variable_names=list(headers))
    except Exception as exc:
        raise PolicyError(f"{path} is damaged ({type(exc).__name__}: {exc}); {_REMEDY}") from exc
    return fields


def _check_unpacked(path: Path) -> None:
    """Raises PolicyError: the compressed elements of a MAT file unpack to more than a test set has."""
    unpacked = 0
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            order = "<" if header[-2:] == b"IM" else ">"
            while len(tag := file.read(8)) == 8:
                kind, size = struct.unpack(f"{order}II", tag)
                if kind != _COMPRESSED:
                    file.seek(size, 1)
                    continue
                stream = zlib.decompressobj()
                data = file.read(min(size, _MOST_BYTES))
                while data and unpacked <= _MOST_UNPACKED:
                    unpacked += len(stream.decompress(data, _CHUNK_BYTES))
                    data = stream.unconsumed_tail
    except (OSError, zlib.error) as exc:
        raise PolicyError(f"{path} cannot be read as a MAT file ({exc}); {_REMEDY}") from exc
    if unpacked > _MOST_UNPACKED:
        raise PolicyError(f"{path} unpacks to more than the limit of {_MOST_UNPACKED} bytes; cut it into parts")


def _matrix(path: Path, fields: dict[str, Any], name: str) -> Floats:
    """A field as finite float64 with two axes."""
    values = fields.get(name)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiub":
        raise PolicyError(f"{path}: {name} is no matrix of real numbers; {_REMEDY}")
    found: Floats = values.astype(np.float64)
    if not found.size or not np.isfinite(found).all():
        raise PolicyError(f"{path}: {name} is empty or holds values that are not finite; {_REMEDY}")
    return found


def _given(weights: npt.ArrayLike, devices: int) -> Floats:
    try:
        found = np.asarray(weights, np.float64)
    except (TypeError, ValueError) as exc:
        raise SettingsError(f"weights must be {devices} positive numbers: {exc}") from exc
    if found.shape != (devices,) or not (np.isfinite(found).all() and (found > 0).all()):
        raise SettingsError(f"weights must be {devices} positive numbers, one for each device; got {weights!r}")
    return found


def _fitting(path: Path, gains: Floats, modes: npt.NDArray[np.bool_], optimum: Floats) -> Floats:
    """The published weighting that explains the published rates."""
    checked = np.linspace(0, len(gains) - 1, min(_CHECKED, len(gains))).astype(int)
    off = []
    for reverse in (False, True):
        weights = alternating_weights(gains.shape[1], reverse=reverse)
        rates = computation_rate(gains[checked], modes[checked], weights)
        off.append(float(np.abs(rates / optimum[checked] - 1).max()))
        if off[-1] <= _FIT:
            return weights
    raise PolicyError(
        f"{path}: its modes do not give its rates with weights 1, 1.5, … (off by {off[0]:.2g}) nor 1.5, 1, … "
        f"({off[1]:.2g}; up to {_FIT:g} is accepted): other weights or another setting, or damaged; name the "
        f"weights, or {_REMEDY}"
    )
