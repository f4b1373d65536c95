"""``aecnn-deploy plan``: which split, ratio, bits and coder for this link and deadline."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import print_json
from aecnn_deploy.errors import PlanError, SettingsError

if TYPE_CHECKING:
    from aecnn_deploy.bundle.reader import Bundle
    from aecnn_deploy.planning.link import Link
    from aecnn_deploy.planning.plan import PlanSettings
    from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, LinkProfile

EXAMPLE = "Example: aecnn-deploy plan bundle --rate-mbps 10 --deadline-ms 100 --min-accuracy 0.93"
_LARGEST_SIDE = 65_535  # of a JPEG


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plan", epilog=EXAMPLE)(plan)


def plan(
    bundle: BundleArgument,
    rate_mbps: Annotated[
        float | None, typer.Option(help="The uplink's rate in Mbit/s; that of the link profile if not given.")
    ] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Milliseconds for an image, from file to label. Without: the fastest way.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Choose nothing less accurate, 0 to 1; nor what has no known accuracy.")
    ] = None,
    rtt_ms: Annotated[
        float | None, typer.Option(help="The link's round trip; that of the link profile if not given, else 0.")
    ] = None,
    downlink_mbps: Annotated[
        float | None, typer.Option(help="The downlink's rate; without it answers take what they took when measured.")
    ] = None,
    device: Annotated[Path | None, typer.Option(help="The device's profile; needed where several are kept.")] = None,
    edge: Annotated[Path | None, typer.Option(help="The edge's profile; needed where several are kept.")] = None,
    link: Annotated[Path | None, typer.Option(help="The link's profile, measured on that device.")] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="Where the profiles are kept.", show_default="BUNDLE.profiles, or a cache")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Size of the camera's images; the profile's first if not given.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Let full offloading be chosen, too.")] = False,
    local: Annotated[bool, typer.Option("--local/--no-local", help="Let local computing be chosen.")] = True,
    safe: Annotated[
        bool, typer.Option("--safe", help="Hold the deadline by a slow image's time, not by the median's.")
    ] = False,
    plot: Annotated[
        list[Path] | None, typer.Option(help="Draw time against rate: a .svg or .png file; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Choose split, ratio, bits and coder for a link and a deadline, from what 'calibrate' measured.

    The most accurate way that meets the deadline is chosen, and of equals the fastest. Says what every other way would
    take and why it is not chosen, and at which rates they change places. Exit status 1: nothing fits.
    """
    from aecnn_deploy.planning.plan import PlanSettings, make_plan
    from aecnn_deploy.planning.plan_document import plan_document, profiles_document
    from aecnn_deploy.planning.predict import STEADY, LinkSpread, Predictor
    from aecnn_deploy.planning.profile_store import the_profile
    from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile

    settings = PlanSettings(deadline_ms, min_accuracy, full, local, safe)
    downlink_bps = None if downlink_mbps is None else downlink_mbps * 1e6
    _check_link(rate_mbps, rtt_ms, downlink_bps)
    size = _size(image_size)
    figures = _figures(plot or [])
    opened = open_named(bundle)
    device_profile = the_profile(opened, DeviceProfile, device, profiles)
    edge_profile = the_profile(opened, EdgeProfile, edge, profiles)
    link_profile, notes = _link_profile(opened, device_profile, link, profiles, rate_mbps, rtt_ms)
    given = _link(device_profile, edge_profile, link_profile, rate_mbps, rtt_ms, downlink_bps)
    spread = LinkSpread.of(link_profile, rate=rate_mbps is None, fixed=rtt_ms is None) if link_profile else STEADY
    predictor = Predictor(opened.manifest, device_profile, edge_profile, image_size=size, spread=spread)
    made = make_plan(opened.manifest, predictor, given, settings)
    rules = _rules(opened, device_profile, edge_profile, profiles, given, settings)
    if figures:
        from aecnn_deploy.reports.plan_figures import draw_plan, write_figure

        drawn = draw_plan(opened.manifest, predictor, made)
        for path in figures:
            write_figure(drawn, path)
    if as_json:
        document: dict[str, Any] = {
            "bundle_id": opened.id,
            **plan_document(made),
            "image_size": predictor.image_size,
            "rules": rules,
            "link": {
                "rate_bps": given.rate_bps,
                "fixed_ms": round(given.fixed_ms, 4),
                "edge": link_profile.edge if link_profile else None,
            },
            "profiles": profiles_document(device_profile, edge_profile, link_profile),
            "plots": [str(path) for path in figures],
        }
        document["notes"] += [*_version_notes(device_profile, edge_profile), *notes]
        print_json(document)
    else:
        from aecnn_deploy.cli.plan_text import plan_lines

        notes = [*made.notes, *_version_notes(device_profile, edge_profile), *notes]
        for line in plan_lines(
            str(bundle), made, device_profile, edge_profile, link_profile, predictor.image_size, rules, notes
        ):
            typer.echo(line)
        for path in figures:
            typer.echo(f"drawn     {path}")
    if made.choice is None:
        raise typer.Exit(1)


def _size(text: str | None) -> tuple[int, int] | None:
    """``640x480`` as numbers. Raises SettingsError: it is no size."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})[x×]([0-9]{1,5})", text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise SettingsError(f"--image-size {text!r} is no size, expected WIDTHxHEIGHT in pixels, e.g. 640x480")
    return width, height


def _figures(paths: Sequence[Path]) -> list[Path]:
    """The figures to draw. Raises SettingsError: a file name says no format; MissingExtraError: nothing draws here."""
    from aecnn_deploy.optional import require

    for path in paths:
        if path.suffix.lower() not in (".svg", ".png"):
            raise SettingsError(f"--plot {path}: cannot tell the format, expected a name that ends in .svg or .png")
    if paths:
        require("matplotlib", why="drawing a plan", extra="plan")
    return list(paths)


def _check_link(rate_mbps: float | None, rtt_ms: float | None, downlink_bps: float | None) -> None:
    """Raises SettingsError for a rate or a round trip that no link has, before any file is read."""
    from aecnn_deploy.planning.link import Link

    Link(1.0 if rate_mbps is None else rate_mbps * 1e6, rtt_ms or 0.0, downlink_bps)


def _link_profile(
    bundle: "Bundle",
    device: "DeviceProfile",
    file: Path | None,
    folder: Path | None,
    rate_mbps: float | None,
    rtt_ms: float | None,
) -> "tuple[LinkProfile | None, list[str]]":
    """The profile of the device's link, if there is one or one is needed, and what to say of it.

    Raises PlanError: it was measured on another machine than the device's, or several could be meant.
    """
    from aecnn_deploy.planning.profile_store import find_profiles, the_profile
    from aecnn_deploy.planning.profiles import LinkProfile

    if file is not None:
        named = the_profile(bundle, LinkProfile, file)
        if named.machine != device.machine:
            raise PlanError(
                f"{file} is the link of {named.machine}, the device profile is of {device.machine}; measure the link "
                "on the device: aecnn-deploy calibrate link"
            )
        return named, []
    if rate_mbps is not None and rtt_ms is not None:
        return None, []
    found = find_profiles(bundle, LinkProfile, folder)
    mine = [(path, profile) for path, profile in found if profile.machine == device.machine]
    if len(mine) > 1:
        files = ", ".join(str(path) for path, _ in mine)
        raise PlanError(f"there are {len(mine)} link profiles of {device.machine}: {files}; choose one with --link")
    if mine:
        return mine[0][1], []
    others = ", ".join(str(path) for path, _ in found)
    if rate_mbps is None:
        why = f"only of another machine than {device.machine}: {others}" if found else "none is kept of this bundle"
        raise PlanError(
            f"no rate is given and there is no link profile ({why}); give --rate-mbps, or run on the device: "
            "aecnn-deploy calibrate link"
        )
    notes = ["no round trip is given and none was measured: it counts as 0 ms; give --rtt-ms"]
    if found:
        notes.append(f"not used, since it is of another machine than the device: {others}")
    return None, notes


def _link(
    device: "DeviceProfile",
    edge: "EdgeProfile",
    profile: "LinkProfile | None",
    rate_mbps: float | None,
    rtt_ms: float | None,
    downlink_bps: float | None,
) -> "Link":
    """What is given, and else what was measured."""
    from aecnn_deploy.planning.predict import link_of, profile_rate

    if rate_mbps is not None:
        rate_bps = rate_mbps * 1e6
    else:
        assert profile is not None
        rate_bps = profile_rate(profile)
    return link_of(
        device,
        edge,
        rate_bps=rate_bps,
        rtt_ms=rtt_ms or 0.0,
        profile=profile if rtt_ms is None else None,
        downlink_bps=downlink_bps,
    )


def _version_notes(device: "DeviceProfile", edge: "EdgeProfile") -> list[str]:
    """Halves that were measured with other releases of this package."""
    name = "aecnn-deploy"
    here, there = device.versions.get(name), edge.versions.get(name)
    if here == there:
        return []
    return [f"the device was measured with {name} {here}, the edge with {there}: measure one of them again"]


def _rules(
    bundle: "Bundle",
    device: "DeviceProfile",
    edge: "EdgeProfile",
    folder: Path | None,
    link: "Link",
    settings: "PlanSettings",
) -> list[dict[str, Any]]:
    """What other people's rules would choose: each with ``rule`` and ``why``, and ``predicted_ms`` where it chooses."""
    from aecnn_deploy.planning.profile_store import find_profiles
    from aecnn_deploy.planning.profiles import FeatureProfile
    from aecnn_deploy.planning.rules import RuleChoice, apply_rules

    kept = find_profiles(bundle, FeatureProfile, folder)
    features = kept[0][1] if kept else None
    outcomes = apply_rules(bundle.manifest, device, edge, features, link, deadline_ms=settings.deadline_ms)
    return [
        {
            "rule": item.rule,
            "description": item.description,
            "predicted_ms": round(item.predicted_ms, 4),
            "accuracy": item.accuracy,
            "sent_bytes": round(item.sent_bytes, 1),
            "parts_ms": {name: round(ms, 4) for name, ms in item.parts.items()},
            "energy_mj": item.energy_mj,
            "why": item.why,
        }
        if isinstance(item, RuleChoice)
        else {"rule": item.rule, "predicted_ms": None, "why": item.why}
        for item in outcomes
    ]
