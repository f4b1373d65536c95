"""``aecnn-deploy bench``: measure parts of the system on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.bundle_argument import open_named
from aecnn_deploy.cli.console import print_json, say
from aecnn_deploy.cli.photographs import head_planes, read_frames
from aecnn_deploy.errors import SettingsError, SourceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from aecnn_deploy.bundle.reader import Bundle
    from aecnn_deploy.codec import PlaneDictionary

EXAMPLE = "Example: aecnn-deploy bench codec zoo:caltech101-lite0 --images photos/"
_MOST_PLANES = 1 << 30  # bytes of a file of planes

bench = typer.Typer(no_args_is_help=True, help="Measure parts of the system on this machine.")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(bench, name="bench")


@dataclass(frozen=True, slots=True)
class _Source:
    """Planes of one origin: uint8 (N, C, H, W)."""

    name: str
    planes: "npt.NDArray[np.uint8]"
    bits: int
    dictionary: "PlaneDictionary | None" = None


@bench.command("codec", epilog=EXAMPLE)
def codec(
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle whose heads make the planes; needs --images.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Photographs for the bundle's heads: a folder or a file.")] = None,
    planes: Annotated[
        Path | None, typer.Option(help="A .npy file of uint8 planes (N, C, H, W), in their place.")
    ] = None,
    bits: Annotated[int, typer.Option(min=1, max=8, help="Bits of each value in the --planes file.")] = 8,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare the coders on quantised planes: bytes, milliseconds to encode and to decode.

    Each image is coded, decoded and compared; plain zstd, and JPEG-LS files and JPEG XL where imagecodecs is installed,
    stand beside our coders. Of a --planes file, images after --limit train a zstd dictionary where they suffice. Bytes
    are the payload's mean, without the 36 bytes of our header; times are medians of one image on one thread of this
    machine, checks and copies included.
    """
    from aecnn_deploy.calibration.coders import measure_coders
    from aecnn_deploy.calibration.peers import has_picture_codecs, measure_peers

    if planes is not None:
        if bundle is not None or images is not None:
            raise SettingsError("give either --planes, or a bundle with --images")
        sources = [_read_planes(planes, bits, limit)]
    elif bundle is not None and images is not None:
        sources = _run_heads(open_named(bundle), images, limit)
    else:
        raise SettingsError("nothing to code: give a bundle with --images PHOTOGRAPHS, or --planes FILE.npy")
    rows: list[dict[str, Any]] = []
    for source in sources:
        shape = list(source.planes.shape[1:])
        ours = measure_coders(source.planes, source.bits, dictionary=source.dictionary)
        for figures in (*ours, *measure_peers(source.planes)):
            rows.append(
                {
                    "source": source.name,
                    "images": len(source.planes),
                    "planes": shape,
                    "bits": source.bits,
                    "coder": figures.coder,
                    "bytes_mean": round(figures.bytes_mean, 1),
                    "encode_ms_p50": round(figures.encode_ms_p50, 4),
                    "decode_ms_p50": round(figures.decode_ms_p50, 4),
                    "raw_share": round(figures.raw_share, 3),
                }
            )
    if not has_picture_codecs():
        say("JPEG XL and JPEG-LS files are left out of the comparison: pip install imagecodecs")
    if as_json:
        print_json({"rows": rows})
    else:
        _print_table(rows)


def _read_planes(path: Path, bits: int, limit: int) -> _Source:
    """The planes in a .npy file. Raises SourceError: none such, or an array of another kind."""
    import numpy as np

    from aecnn_deploy.calibration.plane_coding import MOST_IMAGES, calibrate_coding

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as exc:
        raise SourceError(f"cannot read {path}: {exc.strerror or exc}") from None
    except (ValueError, EOFError) as exc:
        raise SourceError(f"{path} is no .npy file of numbers: {exc}") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 4 or not array.size:
        raise SourceError(
            f"{path} holds {getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}, expected "
            "uint8 (N, C, H, W) with at least one value; save it with numpy.save"
        )
    chosen, others = array[:limit], array[limit : limit + MOST_IMAGES]
    if chosen.nbytes > _MOST_PLANES:
        raise SourceError(f"{path}: {len(chosen)} images hold over {_MOST_PLANES} bytes; choose a smaller --limit")
    dictionary = calibrate_coding(np.array(others), bits).dictionary if len(others) else None
    return _Source(str(path), np.array(chosen), bits, dictionary)


def _run_heads(bundle: "Bundle", images: Path, limit: int) -> list[_Source]:
    """The planes of every variant's head for the photographs that decode."""
    from aecnn_deploy.runtimes.plane_memory import plane_dictionary

    frames = read_frames(images, bundle.manifest.input, limit)
    return [
        _Source(variant.id, head_planes(bundle, variant, frames), variant.bits, plane_dictionary(bundle, variant))
        for variant in bundle.manifest.variants
    ]


def _print_table(rows: list[dict[str, Any]]) -> None:
    before = ""
    for row in rows:
        if row["source"] != before:
            shape = "×".join(map(str, row["planes"]))
            before = row["source"]
            typer.echo(f"{before}: {row['images']} images, planes {shape}, {row['bits']} bits")
            typer.echo(f"  {'coder':<12} {'bytes':>9} {'of raw':>7} {'encode, ms':>11} {'decode, ms':>11}")
            raw = row["bytes_mean"]
        note = "  some raw" if row["raw_share"] > 0 and row["coder"] != "raw" else ""
        typer.echo(
            f"  {row['coder']:<12} {row['bytes_mean']:9,.0f} {row['bytes_mean'] / raw:7.1%} "
            f"{row['encode_ms_p50']:11.3f} {row['decode_ms_p50']:11.3f}{note}"
        )
