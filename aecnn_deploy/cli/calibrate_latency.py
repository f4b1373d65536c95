"""``aecnn-deploy calibrate device``, ``edge`` and ``link``: latency profiles of a bundle's halves and of their link."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import print_json
from aecnn_deploy.cli.guard_options import CaOption, CertOption, DeviceTokenOption, KeyOption
from aecnn_deploy.cli.profile_tables import device_lines, edge_lines, link_lines
from aecnn_deploy.cli.stages import StageBars

if TYPE_CHECKING:
    from collections.abc import Callable

    from aecnn_deploy.bundle.reader import Bundle
    from aecnn_deploy.planning.profiles import DeviceProfile, Profile

_STEPS = 100  # of a progress bar

ImagesOption = Annotated[
    Path | None,
    typer.Option(help="Photographs to measure with: a folder or a file. Else the bundle's samples, or made-up ones."),
]
VariantsOption = Annotated[
    list[str] | None, typer.Option("--variant", help="Measure this variant only; may be repeated. Default: all.")
]
ProfilesOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where the profile is kept. Default: beside the bundle.")
]
LayersOption = Annotated[
    bool, typer.Option("--layers/--no-layers", help="Time each node of the unsplit model, for plans that cut it.")
]
SpinningOption = Annotated[
    bool, typer.Option("--spinning/--no-spinning", help="Let idle ONNX Runtime threads burn their core.")
]
SecondsOption = Annotated[
    float | None,
    typer.Option(help="Longest time for what goes beyond the fewest rounds. Default: 8 of a device, 5 of an edge."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("device", epilog="Example: aecnn-deploy calibrate device bundle --threads 4 --images photos/")(device)
    group.command("edge", epilog="Example: aecnn-deploy calibrate edge bundle --threads 4")(edge)
    group.command("link", epilog="Example: aecnn-deploy calibrate link bundle --edge ws://192.168.1.20:8765")(link)


def device(
    bundle: BundleArgument,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=0, max=1024, help="Threads of a model; 0 takes every core. Repeated: a profile for each."),
    ] = None,
    images: ImagesOption = None,
    variant: VariantsOption = None,
    spinning: SpinningOption = False,
    layers: LayersOption = True,
    seconds: SecondsOption = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle's device half on this machine; run-device then takes the faster head of each variant.

    Heads, the unsplit model, coders of planes and of whole images, reading of image files. Run it on the device, with
    the threads that run-device will get. What it found holds for this bundle, machine and ONNX Runtime.
    """
    from aecnn_deploy.calibration.device_timing import DEVICE_EFFORT, time_device
    from aecnn_deploy.calibration.profile_facts import with_other_variants
    from aecnn_deploy.planning.profile_store import check_writable, write_profile
    from aecnn_deploy.runtimes.head_choice import faster_head

    effort = DEVICE_EFFORT if seconds is None else replace(DEVICE_EFFORT, longest_s=seconds)
    opened = open_named(bundle)
    check_writable(opened, profiles)
    files = _files(images)
    measured = []
    for count in dict.fromkeys(threads or [0]):
        with _progress(f"measuring the device, threads {count or 'all'}") as progress:
            profile = time_device(
                opened,
                threads=count,
                spinning=spinning,
                images=files,
                variants=variant or (),
                layers=layers,
                effort=effort,
                progress=progress,
            )
        names = list(profile.heads)
        profile = with_other_variants(opened, profile, profiles)
        measured.append((profile, names, write_profile(opened, profile, profiles)))
    if as_json:
        documents = [_device_document(opened, *each) for each in measured]
        print_json({**documents[0], "more": documents[1:]})
        return
    for profile, names, path in measured:
        taken = {name: faster_head(opened.variant(name), profile) for name in names}
        _print(device_lines(profile, names, taken), profile, path)


def edge(
    bundle: BundleArgument,
    runner: Annotated[
        str, typer.Option(help="What runs the tails: auto, onnxruntime, tensorrt or tensorrt-rtx.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="What engines compute in: fp16, int8 or fp32. Default: the bundle's, fp16 before int8."),
    ] = None,
    build: Annotated[
        bool,
        typer.Option("--build/--no-build", help="Build engines that the bundle lacks for this GPU, and keep them."),
    ] = True,
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="Threads of one ONNX Runtime model; 0 takes every core.")
    ] = 0,
    spinning: SpinningOption = False,
    images: ImagesOption = None,
    variant: VariantsOption = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Requests that are run together; may be repeated. Default: 1, 2, 4, 8.")
    ] = None,
    layers: LayersOption = True,
    seconds: SecondsOption = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle's edge half on this machine, with what serve-edge would run there.

    Tails by batch size, the unsplit model, decoding of planes and of whole images, and what the service itself takes,
    which an edge process on loopback shows. Give it the options that serve-edge gets.
    """
    from aecnn_deploy.calibration.edge_timing import BATCHES, EDGE_EFFORT, time_edge
    from aecnn_deploy.calibration.profile_facts import with_other_variants
    from aecnn_deploy.exporters.edge_engines import EdgeEngines
    from aecnn_deploy.planning.profile_store import check_writable, write_profile
    from aecnn_deploy.runtimes.edge_runners import RunnerOptions

    options = RunnerOptions(runner, threads, spinning, precision, EdgeEngines() if build else None)
    effort = EDGE_EFFORT if seconds is None else replace(EDGE_EFFORT, longest_s=seconds)
    opened = open_named(bundle)
    check_writable(opened, profiles)
    with _progress("measuring the edge") as progress:
        profile = time_edge(
            opened,
            options=options,
            variants=variant or (),
            batches=batch or BATCHES,
            images=_files(images),
            layers=layers,
            effort=effort,
            progress=progress,
        )
    names = list(profile.tails)
    profile = with_other_variants(opened, profile, profiles)
    path = write_profile(opened, profile, profiles)
    if as_json:
        print_json({"bundle_id": opened.id, "profile": str(path), "measured": _document(profile)})
        return
    _print(edge_lines(profile, names), profile, path)


def link(
    bundle: BundleArgument,
    edge: Annotated[str, typer.Option(help="Where the edge is: ws://HOST:PORT, wss://, http:// or https://.")],
    variant: Annotated[str | None, typer.Option(help="Variant to ask with; the bundle's first if not given.")] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads of the head; 0 takes every core.")] = 0,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for the edge, each time.")] = 30.0,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: DeviceTokenOption = None,
    profiles: ProfilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the link from this machine to an edge that serves the bundle, in some seconds.

    Sends empty requests, then images of growing size until they tell the uplink's rate, and says how many bytes that
    were.
    """
    from aecnn_deploy.calibration.uplink_timing import is_too_fast, time_link
    from aecnn_deploy.planning.profile_store import check_writable, write_profile
    from aecnn_deploy.runtimes.credentials import Credentials

    credentials = Credentials(ca, cert, key, token_file)
    opened = open_named(bundle)
    check_writable(opened, profiles)
    with _progress("measuring the link") as progress:
        profile = time_link(
            opened,
            edge,
            credentials,
            variant=variant,
            threads=threads,
            timeout_s=timeout_s,
            progress=progress,
        )
    path = write_profile(opened, profile, profiles)
    too_fast = is_too_fast(profile)
    if as_json:
        document = {"bundle_id": opened.id, "edge": edge, "profile": str(path), "too_fast": too_fast}
        print_json({**document, "measured": _document(profile)})
        return
    _print(link_lines(profile, too_fast=too_fast), profile, path)


def _files(images: Path | None) -> "Sequence[Path]":
    from aecnn_deploy.runtimes.sources import image_files

    return image_files(images) if images is not None else ()


@contextmanager
def _progress(title: str) -> "Iterator[Callable[[float], None]]":
    """What a measurement reports to. Nothing is shown before it has begun: what is refused has one line, its error."""
    done = 0
    with StageBars() as bars:

        def moved(share: float) -> None:
            nonlocal done
            if not done:
                bars.stage(title, _STEPS)
            steps = max(1, round(share * _STEPS))
            while done < steps:
                bars.step()
                done += 1

        yield moved


def _device_document(bundle: "Bundle", profile: "DeviceProfile", names: Sequence[str], path: Path) -> dict[str, Any]:
    from aecnn_deploy.runtimes.head_choice import faster_head

    return {
        "bundle_id": bundle.id,
        "machine": profile.machine.processor,
        "host": profile.machine.host,
        "onnxruntime": profile.versions["onnxruntime"],
        "threads": profile.threads,
        "profile": str(path),
        "variants": [
            {
                "variant": name,
                "head_ms": {precision: each.p50_ms for precision, each in profile.heads[name].items()},
                "head": faster_head(bundle.variant(name), profile),
            }
            for name in names
        ],
        "measured": _document(profile),
    }


def _document(profile: "Profile") -> Any:
    import msgspec

    return msgspec.to_builtins(profile, str_keys=True)


def _print(lines: Iterator[str], profile: "Profile", path: Path) -> None:
    for line in lines:
        typer.echo(line)
    typer.echo(f"on {profile.machine}, ONNX Runtime {profile.versions['onnxruntime']}, in {profile.took_s:.1f} s")
    typer.echo(str(path))
