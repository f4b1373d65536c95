"""What a plan's figure shows: its lines, with the look that each keeps in both panels and in the strip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.planning.break_even import say_rate
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.plan import Plan
from aecnn_deploy.planning.predict import FILE, Predictor, Size
from aecnn_deploy.planning.prediction import FULL, LOCAL, SEND, SPLIT, Part, Prediction
from aecnn_deploy.planning.rate_sweep import HIGHEST_BPS, LOWEST_BPS, Band, bands, crossings, sweep

Dash = str | tuple[int, tuple[float, ...]]

BLACK, GREY = "#000000", "#B8B8B8"
_GREY_LINE = "#555555"
# Okabe and Ito's colours without yellow, which is too light for a line; each with a dash of its own for print in grey.
LOOKS: tuple[tuple[str, Dash], ...] = (
    ("#0072B2", "-"),
    ("#D55E00", (0, (5, 1.5))),
    ("#009E73", (0, (2.5, 1.2))),
    ("#CC79A7", (0, (1, 1))),
    ("#E69F00", (0, (6, 1.2, 1.2, 1.2))),
    ("#56B4E9", (0, (3, 1, 1, 1, 1, 1))),
    ("#7A5195", (0, (8, 2))),
)
_SPLIT_DASH: Dash = (0, (3, 1.4))
_LOCAL_DASH: Dash = (0, (1, 1.3))
_WHOLE_LOOKS: tuple[tuple[str, Dash], ...] = (("#777777", "-"), ("#999999", (0, (2, 1))), ("#777777", (0, (1, 2))))
_FLOAT_BYTES = 4  # eq. 1


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: the fastest of ``ways`` at each rate. ``label`` "": not in the legend; no ``ways``: only there."""

    label: str
    ways: Sequence[Prediction]
    colour: str
    dash: Dash = "-"
    width: float = 1.1


@dataclass(frozen=True, slots=True)
class Panels:
    """Panel (a) with its break-even points (bits a second, ms), panel (b) with the strip's bands and their colours."""

    sizes: Sequence[Line]
    points: Sequence[tuple[float, float]]
    variants: Sequence[Line]
    bands: Sequence[Band]
    colours: Mapping[str, str]  # of a band's ``what``
    names: Mapping[str, str]  # the same, short


def panels_of(manifest: Manifest, predictor: Predictor, plan: Plan) -> Panels:
    """Everything that is drawn of ``plan``."""
    splits = list(plan.best_of_variants().values())
    subject = plan.choice or plan.nearest
    split = subject if subject is not None and subject.prediction.path == SPLIT else next(iter(splits), None)
    variant = split.prediction.variant if split is not None else None
    found = bands(plan.candidates, plan.settings, sweep())
    sizes, points = _size_lines(predictor, plan, variant)
    variants, colours = _variant_lines(manifest, plan, variant, found)
    names = {name: name.removeprefix(f"{manifest.backbone}-") for name in colours}
    return Panels(sizes, points, variants, found, colours, names | {"local computing": "local"})


def _size_lines(predictor: Predictor, plan: Plan, variant: str | None) -> tuple[list[Line], list[tuple[float, float]]]:
    """Full offloading of each image size, the split of the same image in the same colour, and where they cross."""
    wholes: list[Line] = []
    splits: dict[Size | None, Line] = {}
    points: list[tuple[float, float]] = []
    for (title, other, name), (colour, _) in zip(_whole_images(predictor), LOOKS, strict=False):
        whole = [other.full(name, plan.link)]
        ways = _of_variant(other, variant, plan)
        if ways and other.image_size not in splits:
            splits[other.image_size] = Line("", ways, colour, _SPLIT_DASH, 0.9)
        places = [place for place in crossings(ways, whole) if LOWEST_BPS <= place[0] <= HIGHEST_BPS] if ways else []
        points += places
        wholes.append(Line(title + (f"; {_split_wins(ways, whole[0], places)}" if ways else ""), whole, colour))
    if not splits and (ways := _of_variant(predictor, variant, plan)):
        splits[None] = Line("", ways, _GREY_LINE, _SPLIT_DASH, 0.9)
    if splits and variant is not None:
        short = variant.removeprefix(f"{predictor.manifest.backbone}-")
        said = f"split {short}" + (", of the same image" if wholes else "")
        wholes.append(Line(said, (), _GREY_LINE, _SPLIT_DASH, 0.9))
    return [*wholes, *splits.values(), *_local(plan, predictor.image_size)], points


def _whole_images(predictor: Predictor) -> list[tuple[str, Predictor, str]]:
    """(title, predictor of that image size, image coding): the model's frame, and every size that was read."""
    found = []
    frames = [name for name in predictor.images if not name.startswith(FILE) and "@" not in name]
    if frames:
        name = "jpeg-q75" if "jpeg-q75" in frames else frames[0]
        size = predictor.images[name].size
        found.append((f"{name} of {size[0]}×{size[1]}", predictor, name))
    measured = {(item.width, item.height) for item in predictor.edge.image_codings}
    read = {(item.width, item.height) for item in predictor.device.reads}
    for width, height in sorted(read & measured or read):
        other = predictor.with_image_size((width, height))
        name = f"{FILE}@{width}x{height}"
        if name in other.images:
            found.append((f"file of {width}×{height}", other, name))
    return found


def _of_variant(predictor: Predictor, variant: str | None, plan: Plan) -> list[Prediction]:
    if variant is None:
        return []
    return [predictor.split(variant, coder, plan.link) for coder in predictor.coders(variant)]


def _split_wins(ways: Sequence[Prediction], whole: Prediction, places: Sequence[tuple[float, float]]) -> str:
    """Where the split is faster than ``whole``, within the axis."""
    ahead = min(way.at_ms(LOWEST_BPS) for way in ways) < whole.at_ms(LOWEST_BPS)
    if not places:
        return "split faster throughout" if ahead else "split never faster"
    rates = [say_rate(rate) for rate, _ in places]
    if len(rates) == 1:
        return f"split faster {'below' if ahead else 'above'} {rates[0]}"
    return f"even at {', '.join(rates)}"


def _local(plan: Plan, size: Size | None = None) -> list[Line]:
    local = [item.prediction for item in plan.candidates if item.prediction.path == LOCAL]
    said = "local computing" + (f", image of {size[0]}×{size[1]}" if size is not None else "")
    return [Line(said, local, BLACK, _LOCAL_DASH, 1.3)] if local else []


def _variant_lines(
    manifest: Manifest, plan: Plan, variant: str | None, found: Sequence[Band]
) -> tuple[list[Line], dict[str, str]]:
    """Each variant with its fastest coder; the tensor as it is, uncoded; local computing; and the strip's colours.

    Where there are more variants than colours, those that are chosen somewhere have one, and the others are grey.
    """
    names = {spec.id: spec.id.removeprefix(f"{manifest.backbone}-") for spec in manifest.variants}
    wanted = [band.what for band in found if band.choice is not None and band.what in names]
    order = [*dict.fromkeys(wanted), *([variant] if variant else []), *plan.best_of_variants()]
    coloured = list(dict.fromkeys(name for name in order if name is not None))[: len(LOOKS)]
    ways = {
        name: [item.prediction for item in plan.candidates if item.prediction.variant == name]
        for name in plan.best_of_variants()
    }
    shown = sorted(coloured, key=lambda name: _accuracy_of(plan, name), reverse=True)
    looks = dict(zip(shown, LOOKS, strict=False))
    rest = [name for name in ways if name not in looks]
    lines = [
        Line(f"other variants ({len(rest)})" if number == 0 else "", ways[name], GREY, "-", 0.7)
        for number, name in enumerate(rest)
    ]
    for name in shown:
        accuracy = _accuracy_of(plan, name)
        said = f", {100 * accuracy:.1f} %" if accuracy >= 0 else ""
        lines.append(Line(names[name] + said, ways[name], *looks[name]))
    if variant is not None:
        lines.append(_uncoded(manifest, ways[variant], variant))
    wholes = {
        item.label: item.prediction
        for item in (band.choice for band in found)
        if item is not None and item.prediction.path == FULL
    }
    lines += [
        Line(label, [whole], colour, dash, 1.0)
        for (label, whole), (colour, dash) in zip(wholes.items(), _WHOLE_LOOKS, strict=False)
    ]
    lines += _local(plan)
    colours = {name: look[0] for name, look in looks.items()} | dict.fromkeys(rest, GREY)
    colours |= {line.label: line.colour for line in lines if line.label in wholes}
    return lines, {**dict.fromkeys(wholes, GREY), "local computing": BLACK, **colours}


def _accuracy_of(plan: Plan, variant: str) -> float:
    accuracy = plan.accuracies.of_variant(variant).accuracy
    return -1.0 if accuracy is None else accuracy


def _uncoded(manifest: Manifest, ways: Sequence[Prediction], variant: str) -> Line:
    """1×: the whole tensor at ``variant``'s split, V times its planes, as float32 (eq. 1).

    Its head is the variant's, which computes only the planes that are sent: a bound from below.
    """
    spec = manifest.variant(variant)
    sent = _FLOAT_BYTES * spec.ratio * spec.plane_bytes
    like = min(ways, key=lambda way: way.coding_ms)
    stages = {name: part for name, part in like.stages.items() if name not in ("encode", "decode")}
    stages[SEND] = Part(bytes_on_link(sent))  # at 8 kbit/s; the curve takes it from the bytes
    whole = Prediction(SPLIT, MappingProxyType(stages), variant, "1×", sent_bytes=sent, link_bytes=bytes_on_link(sent))
    return Line(f"1×: the float32 tensor at split {spec.split}", [whole], _GREY_LINE, (0, (4, 1.5, 1, 1.5)), 0.9)
