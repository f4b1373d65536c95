"""The JSON documents that the offloading part of a report shows; docs/offloading-report.md has them as tables.

Keys that are not known here are passed over, so that a document may say more than it has to.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

MAX_POLICIES, MAX_POINTS = 60, 1000

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1 + 1e-9)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seeds = Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=MAX_POINTS)]
Value = bool | int | float | Name | tuple[float, ...]


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a document."""


class PolicyRow(_Part, frozen=True):
    """One policy in one scenario: means over seeds. Scores are accuracy-weighted tasks in time, a second and world."""

    policy: Name
    score_mean: Amount
    score_sd: Amount
    accuracy_mean: Share  # of the tasks in time
    success_mean: Share  # tasks in time over tasks arrived
    throughput_mean: Amount  # tasks in time, a second and world
    arrived_mean: Amount  # tasks, a second and world
    accuracy_sd: Amount | None = None
    success_sd: Amount | None = None
    throughput_sd: Amount | None = None
    energy_j_mean: Amount | None = None  # of a task arrived
    decision_ms_p50: Amount | None = None  # of one world
    scores: Annotated[tuple[Amount, ...], msgspec.Meta(max_length=MAX_POINTS)] = ()  # one for each seed


Rows = Annotated[tuple[PolicyRow, ...], msgspec.Meta(min_length=1, max_length=MAX_POLICIES)]


class Bound(_Part, frozen=True):
    """What the policies are held against; ``proven_share``: of its slots whose value is proven the best.

    ``holds``: no policy's score can be higher. ``scores``: one for each seed.
    """

    kind: Name
    score_mean: Amount
    score_sd: Amount | None = None
    holds: bool | None = None
    proven_share: Share | None = None
    slots: Count | None = None
    batch: Count | None = None
    seeds: tuple[int, ...] | Count | None = None
    scores: Annotated[tuple[Amount, ...], msgspec.Meta(max_length=MAX_POINTS)] = ()


class Comparison(_Part, frozen=True):
    """``simulate --json``: policies in one scenario, all in the same worlds."""

    scenario: Name
    seeds: Seeds
    rows: Rows
    bound: Bound | None = None
    slots: Count | None = None  # of an episode
    batch: Count | None = None  # worlds of a seed


class Vary(_Part, frozen=True):
    """The key that a sweep changes, and the values that were asked for."""

    key: Name
    values: Annotated[tuple[Value, ...], msgspec.Meta(max_length=MAX_POINTS)] = ()


class SweepPoint(_Part, frozen=True):
    """The comparison at one value."""

    value: Value
    rows: Rows
    bound: Bound | None = None


class Sweep(_Part, frozen=True):
    """``simulate --vary --json``: the comparison again and again, with one key of the scenario changed."""

    scenario: Name
    seeds: Seeds
    vary: Vary
    points: Annotated[tuple[SweepPoint, ...], msgspec.Meta(min_length=1, max_length=MAX_POINTS)]
    slots: Count | None = None
    batch: Count | None = None


class DrooRow(_Part, frozen=True):
    """One way to decide on the published channels: rates over the published optimum."""

    policy: Name
    critic_evaluations: Amount
    rate_mean: Amount
    rate_sd: Amount | None = None
    rate_p5: Amount | None = None
    exact_share: Share | None = None
    decision_ms_p50: Amount | None = None


class DrooTable(_Part, frozen=True):
    """Computation rates on DROO's channels, at so many evaluations of the critic a decision."""

    rows: Annotated[tuple[DrooRow, ...], msgspec.Meta(min_length=1, max_length=MAX_POLICIES)]


class TransferRow(_Part, frozen=True):
    """A policy in a scenario it was not trained in; ``ratio``: its score over that of one that was."""

    scenario: Name
    policy: Name
    trained_on: Name
    score_mean: Amount
    score_sd: Amount | None = None
    ratio: Amount | None = None


class TransferTable(_Part, frozen=True):
    """Policies in other scenarios than their own."""

    rows: Annotated[tuple[TransferRow, ...], msgspec.Meta(min_length=1, max_length=MAX_POLICIES)]


class CurveLine(_Part, frozen=True):
    """One line of a training's curves; ``slot``: slots trained so far."""

    slot: Count
    loss: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)] | None = None
    train_score: Amount | None = None
    eval_score: Amount | None = None
    eval_success: Share | None = None
    seconds: Amount | None = None
    seed: int | None = None
    label: Name | None = None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One training, by rising slot; runs of one ``label`` differ in the seed."""

    label: str
    seed: int | None
    lines: tuple[CurveLine, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its name, its own words on where it comes from, and its document or its runs."""

    name: str
    document: Comparison | Sweep | DrooTable | TransferTable | tuple[TrainingRun, ...]
    made: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Documents:
    """Every file that was read, and what was passed over within folders."""

    sources: tuple[Source, ...]
    left_out: tuple[str, ...] = ()

    @property
    def comparisons(self) -> list[tuple[str, Comparison]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, Comparison)]

    @property
    def sweeps(self) -> list[tuple[str, Sweep]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, Sweep)]

    @property
    def droo(self) -> list[tuple[str, DrooTable]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, DrooTable)]

    @property
    def transfers(self) -> list[tuple[str, TransferTable]]:
        return [(item.name, item.document) for item in self.sources if isinstance(item.document, TransferTable)]

    @property
    def runs(self) -> list[TrainingRun]:
        return [run for item in self.sources if isinstance(item.document, tuple) for run in item.document]
