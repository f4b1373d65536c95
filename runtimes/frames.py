"""From an image file to the frame that a head takes: decode, turn upright, resize, crop.

The steps and their rounding are those of torchvision's ``Resize(short side)`` and ``CenterCrop``, done by Pillow
alone, so that a device needs no torch and every machine gets the same bytes.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ImageError, SettingsError

Frame = npt.NDArray[np.uint8]

MAX_PIXELS = 80_000_000  # of the file's own size: 240 MB as RGB; below Pillow's own limit, so that ours speaks first
MAX_FILE_BYTES = 64 << 20

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_ORIENTATION_TAG = 0x0112

# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size; it stays this many times larger than the resize asks for,
# so that the resize filter still decides what the frame looks like.
_DRAFT_MARGIN = 2


def read_frame(
    image: Path | bytes | Frame, spec: InputSpec, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Frame:
    """The frame (height, width, 3), uint8 RGB, that ``spec`` asks for.

    ``image``: an image file, its bytes, or pixels (H, W, 3), uint8 RGB, that are upright and give the same frame as a
    PNG file of them. Raises ImageError: it cannot be read, does not decode, or has over ``max_pixels`` pixels (told
    from its header, before they are decoded). Raises SettingsError: ``spec`` crops more than it resizes to, or names
    no known filter.
    """
    _check_spec(spec)
    if isinstance(image, np.ndarray):
        return _frame_of_pixels(image, spec, name or "pixels", max_pixels)
    source = name if name is not None else (str(image) if isinstance(image, Path) else f"{len(image)} bytes")
    content = _read(image, source) if isinstance(image, Path) else image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF and the like: the pixels decode or they do not
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                if opened.width * opened.height > max_pixels:
                    raise ImageError(source, _too_large(opened.width * opened.height, max_pixels))
                return _frame(opened, spec)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(source, f"it has more pixels than the limit of {max_pixels}; make it smaller") from None
    except Exception as exc:  # a damaged file raises anything: OSError, SyntaxError, struct.error, KeyError, …
        raise ImageError(source, _reason(exc)) from None


def jpeg_bytes(frame: Frame, quality: int) -> bytes:
    """``frame`` (H, W, 3) as a JPEG file: what sending the resized picture itself would cost."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _read(path: Path, source: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ImageError(source, f"the file has {size} bytes, over the limit of {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as exc:
        raise ImageError(source, exc.strerror or str(exc)) from None
    except ValueError as exc:  # a NUL in the name
        raise ImageError(source, str(exc)) from None


def _frame(image: Image.Image, spec: InputSpec) -> Frame:
    wanted = spec.resize_short * _DRAFT_MARGIN
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    image.draft("RGB", (wanted, wanted))  # JPEG only; before anything else touches the pixels
    upright = image if orientation == 1 else ImageOps.exif_transpose(image)
    return _fitted(_rgb(upright), spec)


def _frame_of_pixels(pixels: Frame, spec: InputSpec, source: str, max_pixels: int) -> Frame:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ImageError(source, f"its pixels are {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3)")
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise ImageError(source, _too_large(pixels.shape[0] * pixels.shape[1], max_pixels))
    return _fitted(Image.fromarray(pixels), spec)


def _fitted(rgb: Image.Image, spec: InputSpec) -> Frame:
    """``rgb`` resized and cropped as ``spec`` asks."""
    width, height = _resized(rgb.width, rgb.height, spec.resize_short)
    if (width, height) != rgb.size:
        rgb = rgb.resize((width, height), _FILTERS[spec.interpolation])
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    if (width, height) != (spec.width, spec.height):
        rgb = rgb.crop((left, top, left + spec.width, top + spec.height))
    return np.array(rgb, dtype=np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16 bits of grey: Pillow's own conversion would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(width: int, height: int, short: int) -> tuple[int, int]:
    """torchvision's rule: the short side exactly, the long one rounded down."""
    if width <= height:
        return short, max(short, int(short * height / width))
    return max(short, int(short * width / height)), short


def _check_spec(spec: InputSpec) -> None:
    if spec.interpolation not in _FILTERS:
        raise SettingsError(f"interpolation {spec.interpolation!r} is unknown; known are {', '.join(_FILTERS)}")
    if min(spec.height, spec.width) < 1 or spec.resize_short < max(spec.height, spec.width):
        raise SettingsError(
            f"the input spec resizes the short side to {spec.resize_short} and crops {spec.width}x{spec.height}; "
            "the crop must fit"
        )


def _too_large(pixels: int, limit: int) -> str:
    return f"it has {pixels} pixels, over the limit of {limit}; make it smaller"


def _reason(exc: Exception) -> str:
    if isinstance(exc, UnidentifiedImageError):
        return "it is of no known image format"
    text = str(exc).strip().partition("\n")[0]
    return (text or type(exc).__name__)[:200]
