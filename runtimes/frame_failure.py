"""What a frame can fail by: one code for each, for programs; the report's ``error`` says the same to a person."""

from enum import StrEnum

from aecnn_deploy.errors import (
    AecnnError,
    EdgeUnreachableError,
    LinkLostError,
    RequestFailedError,
    SessionRefusedError,
    SourceError,
    TimedOutError,
)


class Failure(StrEnum):
    """Why a frame has no result. docs/device.md lists what each one means."""

    DROPPED = "dropped"  # replaced by a newer frame before the head took it
    BAD_IMAGE = "bad-image"
    HEAD = "head-failed"  # a model here, or a coder, could not take the frame
    UNREACHABLE = "unreachable"
    LINK_LOST = "link-lost"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    REFUSED = "refused"
    UNAUTHORIZED = "unauthorized"
    BUNDLE_MISMATCH = "bundle-mismatch"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    NOTHING_FITS = "nothing-fits"  # no variant is expected to be done in time; not sent
    NOT_SENT = "not-sent"  # over a limit that the edge stated
    BAD_PAYLOAD = "bad-payload"
    NO_REFERENCE = "no-reference"
    UNKNOWN_VARIANT = "unknown-variant"
    BAD_RESULT = "bad-result"  # the answer names no class of the bundle
    INTERNAL = "internal"
    INTERRUPTED = "interrupted"


# Where the unsplit model may do what the edge did not. Not where the frame is at fault, nor where an answer shows that
# the halves disagree: that must be seen, not covered up.
LOCAL_CAN_HELP = frozenset(
    {
        Failure.UNREACHABLE,
        Failure.LINK_LOST,
        Failure.TIMEOUT,
        Failure.DEADLINE,
        Failure.NOTHING_FITS,
        Failure.REFUSED,
        Failure.UNAUTHORIZED,
        Failure.BUNDLE_MISMATCH,
        Failure.OVERLOADED,
        Failure.DRAINING,
        Failure.INTERNAL,
    }
)

# What ended by policy or by the user's own wish makes no run a failed one.
NO_FAULT = frozenset({Failure.DROPPED, Failure.INTERRUPTED})


def failure_of(error: AecnnError) -> Failure:
    """The code of what was raised for a frame; a code of the edge's that this version does not know is ``internal``."""
    match error:
        case TimedOutError():
            return Failure.TIMEOUT
        case LinkLostError():
            return Failure.LINK_LOST
        case EdgeUnreachableError():
            return Failure.UNREACHABLE
        case SessionRefusedError(code=code):
            return _known(code, Failure.REFUSED)
        case RequestFailedError(code=code):
            return _known(code, Failure.INTERNAL)
        case SourceError():
            return Failure.BAD_IMAGE
        case _:
            return Failure.HEAD


def lost_by(error: EdgeUnreachableError, why: str) -> tuple[Failure, EdgeUnreachableError]:
    """What a frame fails by whose connection ended by ``error``, in these words."""
    if isinstance(error, TimedOutError):
        return Failure.TIMEOUT, TimedOutError(error.url, why)
    return Failure.LINK_LOST, LinkLostError(error.url, why)


def _known(code: str, other: Failure) -> Failure:
    try:
        return Failure(code)
    except ValueError:
        return other
