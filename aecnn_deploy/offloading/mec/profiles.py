"""Where a scenario's profile comes from: the paper's Table I, a bundle's measured profiles, or a file of its own.

The paper's table has accuracies, entropies and the times of entropy coding, and no times of heads and tails: these are
multiply-adds over a published speed, as the constants below say.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType

import msgspec

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import PlanError, ScenarioError
from aecnn_deploy.offloading.mec.profile import Option, Profile
from aecnn_deploy.planning.accuracy import accuracies
from aecnn_deploy.planning.link import Link, bytes_on_link
from aecnn_deploy.planning.paper import PaperRow, PaperTable, paper_table
from aecnn_deploy.planning.predict import Predictor
from aecnn_deploy.planning.profile_store import the_profile
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile
from aecnn_deploy.wire.header import HEADER_BYTES

# ResNet-50 at 224 px, multiply-adds of one picture as our own counter gives them
FULL_MACS = 4_089_184_256
STEM_MACS = 118_013_952  # 7×7, 3 → 64 channels, 112×112
FIRST_BLOCK_MACS = 12_845_056 + 115_605_504  # of layer1.0: 1×1 64 → 64 and 3×3 64 → 64, 56×56, which nobody can prune
BLOCK_OUTPUT_MACS = 51_380_224 + 51_380_224  # of layer1.0: both 1×1 convolutions 64 → 256, which pruning divides by V
EXIT_MACS = (785_956_864, 1_813_561_344, 2_622_816_256, 3_277_922_304, FULL_MACS)  # up to layer1, 2, 3.2, 3, the end

# A Raspberry Pi 4B runs the whole network in 236 ms (published: ncnn, int8, 4 threads, 1.5 GHz): 17.3 M a ms, and in
# this scale the head at l = 1 takes 6.8 ms.
PI4_FULL_MS = 236.0
PI4_MACS_PER_MS = FULL_MACS / PI4_FULL_MS
# Recovery and tail on the server, one picture alone: assumed; a middling GPU, without batching.
EDGE_MODEL_MS = 8.0
EDGE_PICTURE_MS = 2.0  # decoding and resizing a photograph on the server, assumed; a JPEG of 640 × 480 takes about that
EXIT_ACCURACY = (0.75, 0.86, 0.91, 0.94)  # of the first four exits, assumed; the last has the unsplit network's

REFERENCE_BPS = 10e6  # at which the coder of a bundle's variant is chosen
_MAX_BYTES = 1 << 20  # of a profile's file


def paper_profile(method: str, split: int = 1, ratios: Sequence[int] | None = None) -> Profile:
    """The profile of ``method`` from the paper's Table I (arXiv 2211.13745), ResNet-50 on Caltech-101.

    ``method`` is one of ``METHODS``; ``split`` is l, 1 or 2; ``ratios``: the V to offer, None: all six. Options are
    named ``l1-v2``. Bytes are C'·H·W values at the table's entropy. Local is the unsplit network: 236 ms, 95.84 %.

    - ``aecnn``, ``ca-pruned``: the device computes 118 M / V multiply-adds at l = 1 and 246.5 M + 102.8 M / V at
      l = 2 (of layer1.0 only the two last convolutions shrink), at 17.3 M a millisecond, and encodes in the table's
      time. The server recovers and computes the tail in 8 ms and decodes in the table's time. Accuracies of each.
    - ``bottlenet++``: nothing is pruned, and a 3×3 convolution to C' channels comes on top: 118 M + 1.81 M · C'
      at l = 1, 349.2 M + 7.23 M · C' at l = 2. Bytes, coding and server as above, its own accuracies.
    - ``early-exit``, after GRLE: a reconstruction. The device sends the task's own picture and computes nothing but
      what every task takes; the server decodes it in 2 ms and computes up to one of five exits, after layer1 (19 %
      of the multiply-adds), layer2 (44 %), layer3.2 (64 %), layer3 (80 %) and at the end, at 8 ms for all of them,
      with accuracies 75, 86, 91, 94 and 95.84 %. Named ``exit1`` to ``exit5``; ``split`` and ``ratios`` do not apply.

    - ``aecnn+picture``: as ``aecnn``, and ``exit5`` of ``early-exit`` as one more option.

    Raises ScenarioError: no such method, split or ratio.
    """
    if method not in METHODS:
        raise ScenarioError(f"no method {method!r} in the paper's profiles; choose one of {', '.join(METHODS)}")
    table = paper_table()
    if method == "early-exit":
        if split != 1 or ratios is not None:
            raise ScenarioError("early-exit has neither a split nor ratios; leave them out, and choose by options")
        return _early_exit(table)
    known = {row.ratio: row for row in table.rows if row.split == split}
    if not known:
        splits = sorted({row.split for row in table.rows})
        raise ScenarioError(f"the paper's table has no split {split}; it has {', '.join(map(str, splits))}")
    missing = [ratio for ratio in ratios or () if ratio not in known]
    if missing or (ratios is not None and not ratios):
        raise ScenarioError(
            f"the paper's table has no ratio {', '.join(map(str, missing)) or '(none is named)'} at split {split}; "
            f"it has {', '.join(map(str, known))}"
        )
    accuracy, macs = METHODS[method]
    options = tuple(
        Option(
            name=f"l{split}-v{row.ratio}",
            accuracy=round(accuracy(row) / 100, 6),
            payload_bytes=row.estimated_bytes,
            device_ms=macs(row) / PI4_MACS_PER_MS + row.encode_ms,
            edge_ms=EDGE_MODEL_MS + row.decode_ms,
        )
        for row in (known[ratio] for ratio in ratios or known)
    )
    if method == "aecnn+picture":
        options += _early_exit(table).options[-1:]
    return Profile(
        name=f"paper {method} l={split}",
        source=f"{table.identifier}, Table I; computing times from multiply-adds",
        local_accuracy=table.unsplit[0] / 100,
        local_ms=PI4_FULL_MS,
        options=options,
    )


def _pruned_macs(row: PaperRow) -> float:
    """Multiply-adds of the pruned head."""
    if row.split == 1:
        return STEM_MACS / row.ratio
    return STEM_MACS + FIRST_BLOCK_MACS + BLOCK_OUTPUT_MACS / row.ratio


def _bottlenet_macs(row: PaperRow) -> float:
    """Multiply-adds of the whole head and of BottleNet++'s encoder, a 3×3 convolution to C' channels."""
    head = STEM_MACS if row.split == 1 else STEM_MACS + FIRST_BLOCK_MACS + BLOCK_OUTPUT_MACS
    return head + 9 * prod(row.shape) * row.kept_channels


def _no_macs(row: PaperRow) -> float:
    return 0.0


_Of = Callable[[PaperRow], float]
# method -> (accuracy in percent, multiply-adds of the device) of a row of the table
METHODS: Mapping[str, tuple[_Of, _Of]] = MappingProxyType(
    {
        "aecnn": (lambda row: row.aecnn[0], _pruned_macs),
        "aecnn+picture": (lambda row: row.aecnn[0], _pruned_macs),
        "ca-pruned": (lambda row: row.ca_pruned[0], _pruned_macs),
        "bottlenet++": (lambda row: row.bottlenetpp[0], _bottlenet_macs),
        "early-exit": (lambda row: row.aecnn[0], _no_macs),  # made of no row of the table
    }
)


def _early_exit(table: PaperTable) -> Profile:
    unsplit = table.unsplit[0] / 100
    options = tuple(
        Option(
            name=f"exit{number}",
            accuracy=accuracy,
            payload_bytes=0.0,
            device_ms=0.0,
            edge_ms=EDGE_PICTURE_MS + EDGE_MODEL_MS * macs / FULL_MACS,
            sends_picture=True,
        )
        for number, (macs, accuracy) in enumerate(zip(EXIT_MACS, (*EXIT_ACCURACY, unsplit), strict=True), start=1)
    )
    return Profile(
        name="early exits",
        source=f"a reconstruction: exits of ResNet-50 on the server; unsplit accuracy of {table.identifier}",
        local_accuracy=unsplit,
        local_ms=PI4_FULL_MS,
        options=options,
    )


def profile_from_bundle(
    bundle: Bundle,
    profiles: Path | None = None,
    *,
    device: Path | None = None,
    edge: Path | None = None,
    variants: Sequence[str] | None = None,
    rate_bps: float = REFERENCE_BPS,
) -> Profile:
    """The variants of ``bundle`` as options, from its measured device and edge profile; medians of one image alone.

    ``profiles``: the folder where they are kept (None: beside the bundle or in the cache); ``device``, ``edge``: their
    files, where several are kept. ``variants``: None is all. Of each variant the faster head and the coder that takes
    least at ``rate_bps`` (bits a second) count, with packet headers at its mean bytes; the server's time is overhead,
    decoding and the tail. A scenario's ``devices.prepare_ms`` stands for reading the image, and speed 1 is the device
    that was measured. Raises ScenarioError: a variant has no accuracy, or a part of it was not measured. PlanError: no
    device or edge profile of this bundle.
    """
    manifest = bundle.manifest
    known = [spec.id for spec in manifest.variants]
    chosen = list(variants) if variants is not None else known
    if missing := [name for name in chosen if name not in known]:
        raise ScenarioError(f"{bundle.path} has no variant {', '.join(missing)}; it has {', '.join(known)}")
    here = the_profile(bundle, DeviceProfile, device, profiles)
    there = the_profile(bundle, EdgeProfile, edge, profiles)
    if here.local is None:
        raise ScenarioError(
            "the device profile has no time of the unsplit network, which local computing is; run on the device: "
            f"aecnn-deploy calibrate device {bundle.path}"
        )
    known_accuracy = accuracies(manifest)
    if known_accuracy.unsplit is None:
        raise ScenarioError(
            f"{bundle.path} does not say how accurate the unsplit network is, which local computing needs; export it "
            "from a run that was evaluated"
        )
    predictor = Predictor(manifest, here, there)
    options = []
    for name in chosen:
        accuracy = known_accuracy.of_variant(name).accuracy
        if accuracy is None:
            raise ScenarioError(
                f"variant {name} of {bundle.path} has no {known_accuracy.measure or 'accuracy'}, so nothing can be "
                "gained by it; leave it out, or export it from a run that was evaluated"
            )
        options.append(_measured(bundle, predictor, name, accuracy, rate_bps))
    return Profile(
        name=f"{manifest.backbone} {manifest.bundle_id[:16]}",
        source=f"bundle {manifest.bundle_id[:16]} on {here.machine} and {there.machine}, by {known_accuracy.measure}",
        local_accuracy=known_accuracy.unsplit,
        local_ms=here.local.p50_ms,
        options=tuple(options),
    )


def _measured(bundle: Bundle, predictor: Predictor, variant: str, accuracy: float, rate_bps: float) -> Option:
    """One variant. Raises ScenarioError: the device has no head of it, the edge no tail, or both no coder."""
    here, there = predictor.device, predictor.edge
    for kind, what, measured in (
        ("device", "head", here.heads.get(variant)),
        ("edge", "tail of one image", there.tails.get(variant, {}).get(1)),
        ("device", "coder", here.coders.get(variant)),
        ("edge", "decoder", there.coders.get(variant)),
    ):
        if not measured:
            raise ScenarioError(
                f"the {kind} profile has no {what} of variant {variant}; measure it with: aecnn-deploy calibrate "
                f"{kind} {bundle.path}, or leave the variant out"
            )
    try:
        coder = predictor.best_coder(variant, Link(rate_bps, 0.0))
        head_ms = predictor.head(variant)[1].p50_ms
    except PlanError as exc:
        raise ScenarioError(f"variant {variant} of {bundle.path}: {exc}") from None
    planes = here.coders[variant][coder]
    overhead_ms = there.overhead.p50_ms if there.overhead is not None else 0.0
    return Option(
        name=variant,
        accuracy=accuracy,
        payload_bytes=bytes_on_link(HEADER_BYTES + planes.bytes_mean),
        device_ms=head_ms + planes.encode.p50_ms,
        edge_ms=overhead_ms + there.coders[variant][coder].p50_ms + there.tails[variant][1].p50_ms,
    )


def read_profile(path: Path) -> Profile:
    """The profile in a JSON or TOML file (told by ``.toml``), with the fields of ``Profile``.

    Raises ScenarioError: it cannot be read, is over 1 MiB, is neither, or contradicts itself.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ScenarioError(f"{path} has over {_MAX_BYTES} bytes, which no profile has; is it another file?")
        content = path.read_bytes()
        if path.suffix.lower() == ".toml":
            return msgspec.convert(tomllib.loads(content.decode()), Profile)
        return msgspec.json.decode(content, type=Profile)
    except ScenarioError as exc:
        raise ScenarioError(f"{path}: {exc}") from None
    except OSError as exc:
        why = exc.strerror or exc
        raise ScenarioError(f"cannot read the profile {path}: {why}; name a JSON or TOML file") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ScenarioError(
            f"{path} is no profile: {exc}; expected name, source, local_accuracy, local_ms and options, "
            "as docs/offloading.md shows"
        ) from None
