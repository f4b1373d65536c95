"""The way to the edge, step by step: name, connection, certificate, service, session. The first problem ends it."""

import http.client
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from aecnn_deploy.errors import (
    AecnnError,
    CredentialsError,
    EdgeUnreachableError,
    MissingExtraError,
    SessionRefusedError,
    SettingsError,
)
from aecnn_deploy.runtimes.diagnosis.clock import judge_skew
from aecnn_deploy.runtimes.diagnosis.edge_access import EdgeAccess
from aecnn_deploy.runtimes.diagnosis.finding import Finding, Level, ok, problem, warning
from aecnn_deploy.runtimes.diagnosis.subject import Subject
from aecnn_deploy.runtimes.diagnosis.tls import check_certificate
from aecnn_deploy.wire import RefusalCode, Welcome

_START = "start 'aecnn-deploy serve-edge BUNDLE --host 0.0.0.0' there, and open its port in the firewall"
_SLOW_PING_MS = 100.0

_REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        RefusalCode.BUNDLE_MISMATCH: "copy one bundle to both machines and start both halves with it",
        RefusalCode.WIRE_VERSION: "install the same release on both: pip install --upgrade aecnn-deploy",
        RefusalCode.NO_COMMON_CODER: "install the same release on both: pip install --upgrade 'aecnn-deploy[device]'",
        RefusalCode.UNAUTHORIZED: "give the token that the edge knows this device by: --token-file, or AECNN_TOKEN",
        RefusalCode.OVERLOADED: "try again later, end other devices, or raise the edge's limits",
        RefusalCode.DRAINING: "the edge is stopping: start it again, or wait until it has been",
    }
)


def check_edge(subject: Subject) -> Iterator[Finding]:
    """Every step to the edge that was named, until one is a problem."""
    settings = subject.settings
    if settings.edge is None:
        return
    edge = EdgeAccess(settings.edge, settings.timeout_s, settings.credentials)
    steps: tuple[Callable[[], Iterable[Finding]], ...] = (
        lambda: _credentials(edge),
        lambda: _name(edge),
        lambda: _connection(edge),
        lambda: check_certificate(edge),
        lambda: _service(edge, subject),
        lambda: _session(edge, subject),
    )
    for step in steps:
        for finding in step():
            yield finding
            if finding.level is Level.PROBLEM:
                return


def _credentials(edge: EdgeAccess) -> Iterator[Finding]:
    """Whether this device's own files can be used; nothing where it has none."""
    try:
        edge.credentials.check(edge.url)
    except (CredentialsError, SettingsError) as exc:
        yield problem("credentials", str(exc), "mend the file, or the option that names it: docs/security.md")


def _name(edge: EdgeAccess) -> Iterator[Finding]:
    try:
        ipaddress.ip_address(edge.host)
    except ValueError:
        yield _resolved(edge)


def _resolved(edge: EdgeAccess) -> Finding:
    """The host's addresses. The resolver has no time limit of its own, so it runs on a thread that may be left."""
    answers: list[list[str] | str] = []

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(edge.host, edge.port, type=socket.SOCK_STREAM)
            answers.append(sorted({str(address[0]) for *_, address in found}))
        except (OSError, UnicodeError) as exc:
            answers.append(getattr(exc, "strerror", None) or str(exc))

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(edge.timeout_s)
    answer = answers[0] if answers else f"no answer within {edge.timeout_s:g} s"
    if isinstance(answer, list):
        return ok("edge name", f"{edge.host} is {', '.join(answer)}")
    return problem(
        "edge name",
        f"{edge.host!r} has no address: {answer}",
        f"give the edge's IP address, or mend the name: getent hosts {edge.host}; resolvectl status",
    )


def _connection(edge: EdgeAccess) -> Iterator[Finding]:
    where = f"{edge.host}:{edge.port}"
    began_s = time.perf_counter()
    try:
        socket.create_connection((edge.host, edge.port), timeout=edge.timeout_s).close()
    except ConnectionRefusedError:
        yield problem("edge port", f"nothing listens at {where}", f"{_START}, or mend host and port of --edge")
    except TimeoutError:
        remedy = f"is it the right address, on the same network? ping {edge.host}; {_START}"
        yield problem("edge port", f"{where} does not answer within {edge.timeout_s:g} s", remedy)
    except OSError as exc:
        yield problem("edge port", f"no way to {where}: {exc.strerror or exc}", "look at 'ip route' and the network")
    else:
        yield ok("edge port", f"{where} connects in {(time.perf_counter() - began_s) * 1e3:.1f} ms")


def _service(edge: EdgeAccess, subject: Subject) -> Iterator[Finding]:
    """Whether an edge answers there, what it is doing, and what its clock says."""
    try:
        alive, ready = edge.get("/healthz"), edge.get("/readyz")
    except (OSError, http.client.HTTPException) as exc:
        other = "wss://" if not edge.secure else "ws://"
        why = str(exc) or type(exc).__name__
        yield problem(
            "edge service",
            f"no HTTP answer: {why}",
            f"another program may listen there, or the edge wants {other}; look at the edge's log",
        )
        return
    if alive.status != 200:
        yield problem("edge service", f"GET /healthz answers {alive.status}: that is no edge", _START)
        return
    state, theirs = ready.body.get("state", f"answers {ready.status}"), str(ready.body.get("bundle_id", ""))
    text = f"{state}, bundle {theirs[:12] or 'not told'}"
    bundle = subject.bundle
    if bundle is not None and theirs and theirs != bundle.id:
        found = f"the edge serves bundle {theirs[:12]}, this machine has {bundle.id[:12]}"
        yield problem("edge service", found, _REFUSALS[RefusalCode.BUNDLE_MISMATCH])
    elif ready.status != 200:
        yield warning("edge service", text, "wait until GET /readyz answers 200, or look at the edge's log")
    else:
        yield ok("edge service", text)
    if alive.ahead_s is not None:
        yield judge_skew(alive.ahead_s)


def _session(edge: EdgeAccess, subject: Subject) -> Iterator[Finding]:
    """Greet the edge as a device with this bundle does, and ping it."""
    bundle = subject.bundle
    if bundle is None:
        yield ok("edge session", "not tried: name the bundle, and the edge is greeted with it")
        return
    try:
        link = edge.link(bundle)
        try:
            welcome = link.open()
            link.measure()
        finally:
            link.close()
    except AecnnError as exc:
        yield _not_greeted(exc)
        return
    yield judge_session(welcome, len(bundle.manifest.variants), link.rate.fixed_ms)


def _not_greeted(exc: AecnnError) -> Finding:
    match exc:
        case SessionRefusedError():
            remedy = _REFUSALS.get(exc.code, "install the same release on both, and look at the edge's log")
            return problem("edge session", f"refused, {exc.code}: {exc.reason}", remedy)
        case MissingExtraError():
            missing = f"not tried: {exc.module} is not installed"
            return problem("edge session", missing, f"pip install 'aecnn-deploy[{exc.extra}]'")
        case EdgeUnreachableError():
            remedy = "look at the edge's log; a proxy between must pass WebSockets on"
            return problem("edge session", exc.why, remedy)
        case _:
            return problem("edge session", str(exc), "look at the edge's log")


def judge_session(welcome: Welcome, variants: int, ping_ms: float | None) -> Finding:
    """The finding for an edge's consent to a bundle of ``variants``; ``ping_ms`` None: no ping was answered."""
    served = len(welcome.variants)
    text = f"open: {served} of {variants} variants by {welcome.runner} ({welcome.software})"
    if ping_ms is None:
        return warning("edge session", f"{text}; a ping was not answered", "look at the network between, and try again")
    text += f", ping {ping_ms:.1f} ms"
    if served < variants:
        return warning("edge session", text, "run-device with a --variant that the edge serves, or see the edge's log")
    if ping_ms > _SLOW_PING_MS:
        return warning("edge session", text, "use a cable or a nearer edge: every image waits so long on the link")
    return ok("edge session", text)
