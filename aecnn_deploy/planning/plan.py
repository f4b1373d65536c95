"""The choice for a link and a deadline: every way that the bundle offers, and which one to take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.codec.coders import RAW
from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.planning.accuracy import Accuracies, Known, accuracies
from aecnn_deploy.planning.break_even import BreakEven, break_even
from aecnn_deploy.planning.link import Link
from aecnn_deploy.planning.predict import Predictor
from aecnn_deploy.planning.prediction import SPLIT, Prediction

TIE = 0.0005  # accuracies so close are the same: the faster one is taken


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What is asked for.

    ``full``: full offloading competes, too. ``safe``: the deadline is held by a slow image's time (``high_ms``) and
    not by the median's. Raises SettingsError: a deadline of 0 or less, an accuracy outside 0 to 1.
    """

    deadline_ms: float | None = None
    min_accuracy: float | None = None
    full: bool = False
    local: bool = True
    safe: bool = False

    def __post_init__(self) -> None:
        if self.deadline_ms is not None and not (self.deadline_ms > 0 and isfinite(self.deadline_ms)):
            raise SettingsError(f"the deadline is {self.deadline_ms:g} ms, expected a positive number")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise SettingsError(
                f"the least accuracy is {self.min_accuracy:g}, expected 0 to 1; 93 per cent is --min-accuracy 0.93"
            )
        if self.safe and self.deadline_ms is None:
            raise SettingsError("--safe says how a deadline is held; give one with --deadline-ms")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way, and what is known of it. ``competes``: the settings let it be chosen at all."""

    prediction: Prediction
    known: Known
    competes: bool

    @property
    def label(self) -> str:
        return self.prediction.label

    @property
    def accuracy(self) -> float | None:
        return self.known.accuracy

    def judged_ms(self, settings: PlanSettings) -> float:
        """The time that is held against the deadline."""
        return self.prediction.high_ms if settings.safe else self.prediction.total_ms

    def in_time(self, settings: PlanSettings) -> bool:
        return settings.deadline_ms is None or self.judged_ms(settings) <= settings.deadline_ms

    def accurate_enough(self, settings: PlanSettings) -> bool:
        """What has no known accuracy is not, where a least one is asked for."""
        return settings.min_accuracy is None or (self.accuracy is not None and self.accuracy >= settings.min_accuracy)

    def fits(self, settings: PlanSettings) -> bool:
        return self.in_time(settings) and self.accurate_enough(settings)

    def at(self, rate_bps: float) -> "Candidate":
        """The same over a link of another rate."""
        return replace(self, prediction=self.prediction.at(rate_bps))


@dataclass(frozen=True, slots=True)
class Plan:
    """``choice`` None: nothing that competes fits; ``nearest`` then is what comes closest.

    ``candidates``: all that could be predicted, the fastest first. ``unmeasured``: (what, why) of the others.
    ``break_even``: of the choice, or the nearest, against the other paths, and of raw against coded planes.
    """

    settings: PlanSettings
    link: Link
    accuracies: Accuracies
    candidates: tuple[Candidate, ...]
    choice: Candidate | None
    nearest: Candidate | None
    break_even: tuple[BreakEven, ...]
    unmeasured: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def best_of_variants(self) -> dict[str, Candidate]:
        """Each variant with its fastest coder at this rate, the fastest first: the paper's rule for entropy coding."""
        best: dict[str, Candidate] = {}
        for candidate in self.candidates:
            if candidate.prediction.variant is not None:
                best.setdefault(candidate.prediction.variant, candidate)
        return best

    def least_rates(self) -> dict[str, tuple[Candidate, float | None]]:
        """For each variant the coder that meets the deadline at the lowest rate, and that rate; None: none does.

        By the median's times. Without a deadline there is none.
        """
        if (deadline_ms := self.settings.deadline_ms) is None:
            return {}
        found: dict[str, tuple[Candidate, float | None]] = {}
        for variant in self.best_of_variants():
            mine = [item for item in self.candidates if item.prediction.variant == variant]
            rates = [(item, item.prediction.rate_for(deadline_ms)) for item in mine]
            found[variant] = min(rates, key=lambda pair: float("inf") if pair[1] is None else pair[1])
        return found


def make_plan(manifest: Manifest, predictor: Predictor, link: Link, settings: PlanSettings) -> Plan:
    """Predict every way over ``link``, and choose (see ``choose``). Raises PlanError: no way could be predicted."""
    candidates, unmeasured = predict_all(manifest, predictor, link, settings)
    if not candidates:
        what, why = unmeasured[0]
        raise PlanError(f"nothing can be predicted from these profiles: {what}: {why}")
    known = accuracies(manifest)
    chosen = choose(candidates, settings)
    near = None if chosen is not None else nearest(candidates, settings)
    subject = chosen or near
    return Plan(
        settings,
        link,
        known,
        tuple(candidates),
        chosen,
        near,
        tuple(_pairs(subject, candidates)) if subject is not None else (),
        tuple(unmeasured),
        (*predictor.unknown(), *_gaps(known, manifest)),
    )


def predict_all(
    manifest: Manifest, predictor: Predictor, link: Link, settings: PlanSettings
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Every way over ``link``, the fastest first; and (what, why) of those with parts that were not measured."""
    known = accuracies(manifest)
    found: list[Candidate] = []
    unmeasured: list[tuple[str, str]] = []
    for spec in manifest.variants:
        try:
            predictor.best_coder(spec.id, link)
            ways = [predictor.split(spec.id, coder, link) for coder in predictor.coders(spec.id)]
        except PlanError as exc:
            unmeasured.append((spec.id, str(exc)))
            continue
        found += [Candidate(way, known.of_variant(spec.id), True) for way in ways]
    for name, image in predictor.images.items():
        try:
            found.append(Candidate(predictor.full(name, link), known.of_image(image), settings.full))
        except PlanError as exc:
            unmeasured.append((f"full offloading, {name}", str(exc)))
    try:
        found.append(Candidate(predictor.local(), known.of_local(), settings.local))
    except PlanError as exc:
        unmeasured.append(("local computing", str(exc)))
    return sorted(found, key=lambda item: item.prediction.total_ms), unmeasured


def choose(candidates: Iterable[Candidate], settings: PlanSettings) -> Candidate | None:
    """The most accurate candidate that meets the deadline; of those within 0.05 points of it the fastest.

    Only what competes and is accurate enough counts; without a deadline the fastest of it is taken. What has no known
    accuracy is chosen only where nothing with a known one fits. None: nothing fits.
    """
    fitting = [item for item in candidates if item.competes and item.fits(settings)]
    rated = [(item, item.accuracy) for item in fitting if item.accuracy is not None]
    if settings.deadline_ms is not None and rated:
        best = max(accuracy for _, accuracy in rated)
        rated = [pair for pair in rated if pair[1] >= best - TIE]
    pool = [item for item, _ in rated] or fitting
    return min(pool, key=lambda item: item.prediction.total_ms, default=None)


def nearest(candidates: Sequence[Candidate], settings: PlanSettings) -> Candidate | None:
    """Where nothing fits: of what is accurate enough what misses the deadline by the least, else the most accurate."""
    competing = [item for item in candidates if item.competes]
    accurate = [item for item in competing if item.accurate_enough(settings)]
    if accurate:
        return min(accurate, key=lambda item: item.judged_ms(settings))
    return max(competing, key=lambda item: (item.accuracy or -1.0, -item.prediction.total_ms), default=None)


def _pairs(subject: Candidate, candidates: Sequence[Candidate]) -> Iterable[BreakEven]:
    """What ``subject`` is compared with: each other path, and, of a split, coded with raw planes."""
    mine = subject.prediction
    splits = [item.prediction for item in candidates if item.prediction.path == SPLIT]
    if mine.path != SPLIT and splits:
        yield break_even(mine, splits[0])
    for other in candidates:
        if other is not subject and other.prediction.path != SPLIT:
            yield break_even(mine, other.prediction)
    split = mine if mine.path == SPLIT else splits[0] if splits else None
    if split is None:
        return
    # Against the fastest that is coded where ``split`` is raw, and against raw where it is coded.
    is_raw = split.coder == RAW.name
    others = [item for item in splits if item.variant == split.variant and (item.coder == RAW.name) != is_raw]
    if others:
        yield break_even(split, others[0])


def _gaps(known: Accuracies, manifest: Manifest) -> list[str]:
    """What the bundle does not say of accuracies, in words."""
    if known.measure is None:
        return ["the bundle knows no accuracy of any variant: the choice is by time alone"]
    lacking = [spec.id for spec in manifest.variants if known.of_variant(spec.id).accuracy is None]
    gaps = []
    if lacking:
        gaps.append(f"no {known.measure} is known of {', '.join(lacking)}: only taken where nothing else fits")
    if known.unsplit is None:
        gaps.append("the bundle does not say how accurate the unsplit model is")
    return gaps
