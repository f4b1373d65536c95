"""How a request of the Open Inference Protocol fails: codes beside the wire's, and the HTTP status of each."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.edge_service import TOO_LARGE, TOO_SLOW
from aecnn_deploy.runtimes.log_lines import one_line
from aecnn_deploy.wire import FailureCode

BAD_REQUEST, NOT_FOUND = "bad-request", "not-found"
BAD_ENCODING, NOT_IMPLEMENTED = "bad-encoding", "not-implemented"

# code -> HTTP status; docs/open-inference.md has the same table
STATUS: Mapping[str, int] = MappingProxyType(
    {
        BAD_REQUEST: 400,
        NOT_FOUND: 404,
        TOO_SLOW: 408,
        TOO_LARGE: 413,
        BAD_ENCODING: 415,
        FailureCode.INTERNAL: 500,
        NOT_IMPLEMENTED: 501,
        FailureCode.DRAINING: 503,
        FailureCode.OVERLOADED: 503,
        FailureCode.DEADLINE: 504,
    }
)

_MAX_QUOTED = 80  # characters of a stranger's words


def bad_request(why: str) -> RequestFailedError:
    """The request breaks the protocol, or does not fit the model."""
    return RequestFailedError(BAD_REQUEST, why)


def shown(text: object) -> str:
    """A stranger's words, or a library's about them, for one line of ours."""
    return one_line(str(text), _MAX_QUOTED)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A line that says that ``name`` is none of ``known``, and which one may be meant."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5) if len(name) <= _MAX_QUOTED else []
    if near:
        return f"no {what} '{shown(name)}'; the nearest is {near[0]!r}"
    return f"no {what} '{shown(name)}'; there is {one_line(', '.join(map(repr, names)), 400)}"
