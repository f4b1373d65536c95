"""A request on its way through a lane: who has it, what it waits for, and how it ends."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aecnn_deploy.errors import AecnnError, RequestFailedError
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_models import Asked, TensorAsked, Top
from aecnn_deploy.wire import FailureCode


class Stage(Enum):
    """Who has a job: one thread at a time."""

    CODED = "coded"
    DECODING = "decoding"
    DECODED = "decoded"
    OVER = "over"  # it has its answer, or nobody waits for one


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model's thread gives back, with where the time went; ``queue_ms`` is all waiting for a turn."""

    top: Top
    decode_ms: float
    queue_ms: float
    run_ms: float  # of the whole batch
    batch: int
    logits: Array | None = None  # (classes,), float32; of a TensorAsked only


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way through a lane. Times are ``time.perf_counter``'s."""

    asked: Asked
    peer: Hashable
    stream: Hashable
    received_s: float
    deadline_s: float | None  # when its answer is of no use any more
    future: "asyncio.Future[Answer]"
    stage: Stage = Stage.CODED
    item: Array | None = None
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A batch that a thread of the model has; ``began_s`` is ``time.perf_counter``'s."""

    jobs: list[Job]
    began_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that was run, and what came of it: ``logits`` (batch, classes)."""

    jobs: list[Job]
    logits: Array
    began_s: float
    run_s: float


def answer_to(job: Job, ran: Ran, top: Top, logits: Array) -> Answer:
    """The answer to ``job``, one of ``ran``, whose row of logits is ``logits``."""
    queue_s = max(0.0, ran.began_s - job.received_s - job.decode_s)
    kept = logits if isinstance(job.asked, TensorAsked) else None
    return Answer(top, job.decode_s * 1e3, queue_s * 1e3, ran.run_s * 1e3, len(ran.jobs), kept)


@dataclass(slots=True)
class Outcomes:
    """What a thread has for the loop: told in one call, since each call wakes the loop."""

    answers: list[tuple["asyncio.Future[Answer]", Answer]] = field(default_factory=list)
    failures: list[tuple["asyncio.Future[Answer]", AecnnError]] = field(default_factory=list)
    ran: Ran | None = None


def settle(outcomes: Outcomes) -> None:
    """Give every future what it waits for. Call it on the loop."""
    for future, answer in outcomes.answers:
        if not future.done():  # cancelled while it ran
            future.set_result(answer)
    for future, error in outcomes.failures:
        fail(future, error)


def fail(future: "asyncio.Future[Any]", error: AecnnError) -> None:
    """Fail ``future``, if somebody still waits for it. Call it on the loop."""
    if not future.done():
        future.set_exception(error)


def internal_failure(error: AecnnError) -> RequestFailedError:
    """What a device hears of a runner's error."""
    return RequestFailedError(FailureCode.INTERNAL, str(error))


def fail_rest(jobs: list[Job], outcomes: Outcomes, exc: Exception, model: str) -> None:
    """Add to ``outcomes`` the failure of those of ``jobs`` that it has nothing for, because of a defect of ours."""
    settled = {id(future) for future, _ in (*outcomes.answers, *outcomes.failures)}
    error = RequestFailedError(FailureCode.INTERNAL, f"{type(exc).__name__} in {model}")
    outcomes.failures += [(job.future, error) for job in jobs if id(job.future) not in settled]
