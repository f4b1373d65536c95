"""What latency is measured on: photographs that were given, the bundle's samples, or made-up pictures much like them.

And whole images as image coders write them, which is what full offloading sends.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import ImageError, SettingsError, SourceError
from aecnn_deploy.planning.profiles import ImageCoding, Timing
from aecnn_deploy.runtimes.frames import Frame, read_frame
from aecnn_deploy.runtimes.samples import read_samples

Floats = npt.NDArray[np.float32]

FRAME_CODINGS = ("jpeg-q30", "jpeg-q50", "jpeg-q75", "jpeg-q90", "webp-q50", "webp-q75", "raw")  # of the model's frame
CAMERA_CODING = "jpeg-q75"  # of images as cameras give them
CAMERA_SIZES = ((300, 200), (640, 480), (1280, 720), (1920, 1080))  # width, height
FILE_SIZE = (640, 480)  # of the image files that stand for photographs where none were given
FILE_QUALITY = 90

_MOST = 24  # pictures: more say no more about a time
_FEW = 3
_MADE_UP = 8
_OCTAVES = 8
_FALL = 0.72  # of the strength from one scale to the next finer one


@dataclass(frozen=True, slots=True)
class Pictures:
    """``frames`` (H, W, 3), as the model takes them; ``photographs``: files of the given ones.

    ``count`` photographs were measured with, 0 where the pictures are made up.
    """

    frames: list[Frame]
    photographs: list[Path]
    count: int
    sizes: list[tuple[int, int]]  # width and height of each photograph

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height."""
        height, width, _ = self.frames[0].shape
        return width, height

    def few(self) -> "Pictures":
        """Some of them: of a camera's size each is megabytes."""
        return Pictures(self.frames[:_FEW], self.photographs[:_FEW], self.count, self.sizes[:_FEW])

    def of_size(self, width: int, height: int) -> list[Frame]:
        """All pictures resized to that, from the photographs' own pixels where there are any."""
        return [
            np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
            for picture in (
                [_opened(path) for path in self.photographs] or [Image.fromarray(frame) for frame in self.frames]
            )
        ]


@dataclass(frozen=True, slots=True)
class CodedImages:
    """Images of one size, and how they are to be coded."""

    coding: str
    width: int
    height: int
    pixels: list[Frame]

    @property
    def key(self) -> tuple[str, str]:
        """Coding and size, as a clock's key."""
        return self.coding, f"{self.width}x{self.height}"


def gather(bundle: Bundle, images: Sequence[Path] = ()) -> Pictures:
    """The photographs ``images`` (evenly chosen, at most 24), else the bundle's samples, else made-up pictures.

    Raises SourceError: none of ``images`` decodes. BundleError: the samples cannot be read.
    """
    spec = bundle.manifest.input
    if images:
        count = min(_MOST, len(images))
        frames, kept = [], []
        for path in (images[index * len(images) // count] for index in range(count)):
            try:
                frames.append(read_frame(path, spec))
            except ImageError:
                continue
            kept.append(path)
        if not kept:
            raise SourceError(f"none of {len(images)} photographs decodes, the first is {images[0]}")
        return Pictures(frames, kept, len(kept), [_size(path) for path in kept])
    if bundle.manifest.samples is not None:
        samples = list(read_samples(bundle).frames[:_MOST])
        return Pictures(samples, [], len(samples), [])
    return Pictures([made_up(spec.width, spec.height, seed) for seed in range(_MADE_UP)], [], 0, [])


def made_up(width: int, height: int, seed: int) -> Frame:
    """A picture like a photograph, uint8 (height, width, 3): a gradient, and texture of falling strength at each scale.

    Photographs have that spectrum; so image and plane coders find about as much to save.
    """
    rng = np.random.default_rng(seed)
    side = max(width, height)
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(_OCTAVES):
        cells = min(side, 2 << octave)
        noise = rng.normal(0.0, 1.0, (cells, cells, 1)) + 0.4 * rng.normal(0.0, 1.0, (cells, cells, 3))
        total += _grown(noise.astype(np.float32), width, height) * _FALL**octave
    total += np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None, None] * rng.normal(0.0, 1.0, 3)
    picture: Frame = np.clip(128 + 55 * (total - total.mean()) / (total.std() + 1e-6), 0, 255).astype(np.uint8)
    return picture


def coded_images(pictures: Pictures) -> list[CodedImages]:
    """The model's frame in each coding, and images of cameras' sizes in one."""
    width, height = pictures.frame_size
    found = [CodedImages(coding, width, height, pictures.frames) for coding in FRAME_CODINGS]
    return found + [CodedImages(CAMERA_CODING, *size, pictures.few().of_size(*size)) for size in CAMERA_SIZES]


def encode_image(pixels: Frame, coding: str) -> bytes:
    """``pixels`` (H, W, 3) as an image file. Raises SettingsError: an unknown coding."""
    kind, _, quality = coding.partition("-q")
    out = io.BytesIO()
    match kind:
        case "jpeg" | "webp" if quality.isdecimal():
            Image.fromarray(pixels).save(out, kind.upper(), quality=int(quality))
        case "raw":
            Image.fromarray(pixels).save(out, "BMP")
        case _:
            raise SettingsError(f"no image coding {coding!r}; known are jpeg-qN, webp-qN and raw")
    return out.getvalue()


def coding_of(item: CodedImages, *, encode: Timing | None = None, decode: Timing | None = None) -> ImageCoding:
    """What a profile says of ``item``: its mean bytes, and the half of the times that was measured."""
    sizes = [len(encode_image(pixels, item.coding)) for pixels in item.pixels]
    return ImageCoding(item.coding, item.width, item.height, round(float(np.mean(sizes)), 1), encode, decode)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Image files that a device reads; ``width`` and ``height`` are those of their images, in the mean."""

    width: int
    height: int
    paths: list[Path]
    bytes_mean: float


def photograph_files(pictures: Pictures) -> ImageFiles | None:
    """The photographs that were given; None: there are none."""
    if not pictures.photographs:
        return None
    width, height = (max(1, round(float(side))) for side in np.mean(pictures.sizes, axis=0))
    return _files(width, height, pictures.photographs)


def write_files(pictures: Pictures, folder: Path, width: int, height: int) -> ImageFiles:
    """JPEG files of that size in ``folder``, of a few of the pictures."""
    paths = []
    for number, pixels in enumerate(pictures.few().of_size(width, height)):
        paths.append(folder / f"{width}x{height}-{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], "JPEG", quality=FILE_QUALITY)
    return _files(width, height, paths)


def _files(width: int, height: int, paths: list[Path]) -> ImageFiles:
    return ImageFiles(width, height, paths, round(float(np.mean([path.stat().st_size for path in paths])), 1))


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def _grown(noise: Floats, width: int, height: int) -> Floats:
    planes = [
        np.asarray(Image.fromarray(noise[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC))
        for channel in range(3)
    ]
    return np.stack(planes, axis=2)
