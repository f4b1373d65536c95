"""What a lane says to a request that it does not take, and when to come again."""

import time

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.batch_times import retry_s
from aecnn_deploy.runtimes.edge_jobs import Job, Outcomes
from aecnn_deploy.wire import FailureCode


def cannot_be_met(
    model: str, allowed_s: float, left_s: float, ahead: int, needed_s: float, fastest_s: float
) -> RequestFailedError:
    """A deadline of ``allowed_s``, of which ``left_s`` are left, with ``ahead`` requests before it.

    ``needed_s``: what it would take; ``fastest_s``: the model's fastest run of any batch.
    """
    if fastest_s > allowed_s:
        why, retry = f"{model} alone takes {fastest_s * 1e3:.1f} ms", None
    else:
        why = f"{ahead} requests are before it on {model}, it would take {needed_s * 1e3:.0f} ms"
        retry = retry_s(needed_s - left_s)
    return RequestFailedError(FailureCode.DEADLINE, f"its {allowed_s * 1e3:.0f} ms cannot be met: {why}", retry)


def in_time(jobs: list[Job], outcomes: Outcomes, model: str) -> list[Job]:
    """Those of ``jobs`` whose deadline is not over now that they have their turn; the others fail in ``outcomes``."""
    now_s, left = time.perf_counter(), []
    for job in jobs:
        if job.deadline_s is None or job.deadline_s > now_s:
            left.append(job)
            continue
        why = f"its {(job.deadline_s - job.received_s) * 1e3:.0f} ms had passed when {model} had its turn"
        refusal = RequestFailedError(FailureCode.DEADLINE, why, retry_s(now_s - job.deadline_s))
        outcomes.failures.append((job.future, refusal))
    return left


def overloaded(model: str, waiting: int, limit: int, wait_s: float) -> RequestFailedError:
    """A queue of ``limit`` requests that is full; those that wait will take ``wait_s``."""
    return RequestFailedError(
        FailureCode.OVERLOADED,
        f"{waiting} requests wait for {model}, the limit is {limit}; try again later, or raise --max-queue",
        retry_s(wait_s),
    )
