"""Latency profiles as text of 80 columns: a line for each time, with its spread."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, ImageCoding, LinkProfile, Timing

_HEADER = f"{'milliseconds':<50} {'p50':>8} {'p10':>9} {'p90':>9}"


def device_lines(profile: "DeviceProfile", variants: Sequence[str], taken: "Mapping[str, str]") -> Iterator[str]:
    """``taken``: of each variant, the precision of the head that ``run-device`` takes."""
    yield _HEADER
    for name in variants:
        yield name
        for precision, each in profile.heads[name].items():
            chosen = ", which run-device takes" if len(profile.heads[name]) > 1 and taken[name] == precision else ""
            yield _line(f"  head {precision}{chosen}", each)
        for coder, coding in profile.coders[name].items():
            yield _line(f"  encode {coder}, {coding.bytes_mean:,.0f} bytes", coding.encode)
    if profile.local is not None:
        yield _line("the unsplit model", profile.local)
    for image in profile.reads:
        yield _line(f"read {image.width}x{image.height}, {image.bytes_mean:,.0f} bytes", image.read)
    for item in profile.image_codings:
        if item.encode is not None:
            yield _line(f"encode {_image(item)}", item.encode)
    if profile.loopback is not None:
        yield _line("an empty request within this machine", profile.loopback)


def edge_lines(profile: "EdgeProfile", variants: Sequence[str]) -> Iterator[str]:
    """Tails by batch size, decoders, the service."""
    yield _HEADER
    for name in variants:
        yield name
        for size, each in profile.tails[name].items():
            yield _line(f"  tail, batch of {size}", each)
        for coder, each in profile.coders.get(name, {}).items():
            yield _line(f"  decode {coder}", each)
    for size, each in profile.full.items():
        yield _line(f"the unsplit model, batch of {size}", each)
    for item in profile.image_codings:
        if item.decode is not None:
            yield _line(f"decode {_image(item)}", item.decode)
    if profile.overhead is not None:
        yield _line("the service around one request", profile.overhead)
    if profile.loopback is not None:
        yield _line("an empty request within this machine", profile.loopback)


def link_lines(profile: "LinkProfile", *, too_fast: bool) -> Iterator[str]:
    """The rate, and an empty request."""
    yield _HEADER
    yield _line("an empty request there and back, less the edge's", profile.fixed)
    p10, p50, p90 = (profile.rate_bps[name] / 1e6 for name in ("p10", "p50", "p90"))
    if too_fast:
        yield f"the uplink is too fast to measure: {p50:,.0f} Mbit/s or more"
    else:
        yield f"the uplink has {p50:,.3g} Mbit/s (p10 {p10:,.3g}, p90 {p90:,.3g})"
    yield f"{profile.bytes_sent:,} bytes were sent for it"


def _line(what: str, each: "Timing") -> str:
    return f"{what:<50} {each.p50_ms:8.3f} {each.p10_ms:9.3f} {each.p90_ms:9.3f}"


def _image(item: "ImageCoding") -> str:
    return f"{item.coding} of {item.width}x{item.height}, {item.bytes_mean:,.0f} bytes"
