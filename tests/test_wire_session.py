"""The order of messages: every state with every input, what is in flight, and two sides that talk at random."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.errors import PayloadTooBigError, WireError
from aecnn_deploy.wire import (
    DEVICE_TABLE,
    EDGE_TABLE,
    DeviceSession,
    EdgeSession,
    Failed,
    FailureReceived,
    Goodbye,
    GoodbyeReceived,
    Hello,
    HelloReceived,
    InferReceived,
    Input,
    Kind,
    RefusalCode,
    Refused,
    RefusedByEdge,
    Result,
    ResultReceived,
    State,
    Welcome,
    Welcomed,
    WireLimits,
    encode_control,
    pack,
)

LIMITS = WireLimits(max_payload_bytes=1000, max_raw_bytes=2000)
HELLO = Hello("b1d", [1], ["v16", "v32", "v64"], ["raw", "zstd"], "device 1")
WELCOME = Welcome(1, "b1d", ["v16", "v64"], ["raw", "zstd"], 2, 800, 1500, "onnxruntime", "edge 1")
RESULT = Result([(3, 0.75)], 0.5, 0.25, 12.5, 13.5, 1, "v16")
FAILED = Failed("internal", "x")

Session = DeviceSession | EdgeSession
Step = Callable[[], object]

CONTROL = {
    Kind.HELLO: HELLO,
    Kind.WELCOME: WELCOME,
    Kind.REFUSED: Refused("draining", "x"),
    Kind.RESULT: RESULT,
    Kind.FAILED: FAILED,
    Kind.GOODBYE: Goodbye("x"),
}


def message(kind: Kind, request_id: int) -> bytes:
    """A valid message of this kind; ``request_id`` is used where the kind has one."""
    if kind is Kind.INFER:
        return pack(kind, b"abc", request_id=request_id, raw_bytes=3)
    with_id = kind in (Kind.RESULT, Kind.FAILED)
    return pack(kind, encode_control(CONTROL[kind]), request_id=request_id if with_id else 0)


def step(session: Session, given_input: Input, request_id: int) -> Step | None:
    """The call that makes ``given_input`` happen, None where a side has no such call. 1 is the request in flight."""
    verb, _, name = given_input.name.partition("_")
    if verb == "RECV":
        return lambda: session.receive(message(Kind[name], request_id))
    if isinstance(session, DeviceSession):
        calls: dict[str, Step] = {
            "HELLO": session.start,
            "INFER": lambda: session.infer(0, 0, b"abc", 3),
            "GOODBYE": lambda: session.goodbye("x"),
        }
    else:
        calls = {
            "WELCOME": lambda: session.welcome(WELCOME),
            "REFUSED": lambda: session.refuse("draining", "x"),
            "RESULT": lambda: session.result(request_id, RESULT),
            "FAILED": lambda: session.fail(request_id, FAILED),
            "GOODBYE": lambda: session.goodbye("x"),
        }
    return calls.get(name)


# How a session gets into each state, with request 1 in flight from OPEN on.
DEVICE_PATHS = {
    State.NEW: [],
    State.GREETING: [Input.SEND_HELLO],
    State.OPEN: [Input.SEND_HELLO, Input.RECV_WELCOME, Input.SEND_INFER],
    State.DEVICE_LEFT: [Input.SEND_HELLO, Input.RECV_WELCOME, Input.SEND_INFER, Input.SEND_GOODBYE],
    State.EDGE_DRAINING: [Input.SEND_HELLO, Input.RECV_WELCOME, Input.SEND_INFER, Input.RECV_GOODBYE],
    State.PARTED: [Input.SEND_HELLO, Input.RECV_WELCOME, Input.SEND_INFER, Input.SEND_GOODBYE, Input.RECV_GOODBYE],
    State.CLOSED: [Input.SEND_HELLO, Input.RECV_REFUSED],
}
EDGE_PATHS = {
    State.NEW: [],
    State.GREETING: [Input.RECV_HELLO],
    State.OPEN: [Input.RECV_HELLO, Input.SEND_WELCOME, Input.RECV_INFER],
    State.DEVICE_LEFT: [Input.RECV_HELLO, Input.SEND_WELCOME, Input.RECV_INFER, Input.RECV_GOODBYE],
    State.EDGE_DRAINING: [Input.RECV_HELLO, Input.SEND_WELCOME, Input.RECV_INFER, Input.SEND_GOODBYE],
    State.PARTED: [Input.RECV_HELLO, Input.SEND_WELCOME, Input.RECV_INFER, Input.SEND_GOODBYE, Input.RECV_GOODBYE],
    State.CLOSED: [Input.SEND_REFUSED],
}


def session_in(side: str, state: State) -> Session:
    session = DeviceSession(HELLO, LIMITS) if side == "device" else EdgeSession(LIMITS)
    for path_input in (DEVICE_PATHS if side == "device" else EDGE_PATHS)[state]:
        call = step(session, path_input, request_id=1)
        assert call is not None
        call()
    assert session.state is state
    return session


def new_request_id(side: str, given_input: Input) -> int:
    """Requests need a new id, answers that of the request in flight."""
    return 2 if side == "edge" and given_input is Input.RECV_INFER else 1


@pytest.mark.parametrize("given_input", Input, ids=lambda value: value.name)
@pytest.mark.parametrize("state", State, ids=lambda value: value.name)
@pytest.mark.parametrize("side", ["device", "edge"])
def test_every_input_in_every_state_follows_the_table_or_is_an_error(
    side: str, state: State, given_input: Input
) -> None:
    session = session_in(side, state)
    expected = (DEVICE_TABLE if side == "device" else EDGE_TABLE).get((state, given_input))
    call = step(session, given_input, new_request_id(side, given_input))
    if call is None:
        assert expected is None  # a side has a call for all that its table lets it send
        return
    before = session.in_flight
    if expected is not None:
        call()
        assert session.state is expected
        return
    with pytest.raises(WireError):
        call()
    assert (session.state, session.in_flight) == (state, before)
    # What the peer did ends the session; a call that came too early or too late does not.
    assert session.at_boundary is (not given_input.name.startswith("RECV"))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["device", "edge"]), st.lists(st.tuples(st.sampled_from(Input), st.integers(1, 4)), max_size=25))
def test_any_sequence_of_inputs_follows_the_table_or_is_an_error(side: str, inputs: list[tuple[Input, int]]) -> None:
    session = session_in(side, State.NEW)
    table = DEVICE_TABLE if side == "device" else EDGE_TABLE
    for given_input, request_id in inputs:
        call, before = step(session, given_input, request_id), session.state
        if call is None:
            continue
        try:
            call()
        except WireError:
            assert session.state is before
        else:
            assert session.state is table[before, given_input]
        assert session.in_flight <= WELCOME.max_in_flight


def opened() -> tuple[DeviceSession, EdgeSession]:
    device, edge = DeviceSession(HELLO, LIMITS), EdgeSession(LIMITS)
    assert edge.receive(device.start()) == [HelloReceived(HELLO)]
    assert device.receive(edge.welcome(WELCOME)) == [Welcomed(WELCOME)]
    assert device.welcome == WELCOME
    return device, edge


def test_a_session_from_hello_to_goodbye() -> None:
    device, edge = opened()
    first, data = device.infer(2, 1, b"abc", 12, deadline_ms=250)
    assert edge.receive(data) == [InferReceived(first, 2, 1, b"abc", 12, 250)]
    second, data = device.infer(0, 0, b"d", 1)
    assert edge.receive(data) == [InferReceived(second, 0, 0, b"d", 1, 0)]
    assert (first, second, device.in_flight, edge.in_flight) == (1, 2, 2, 2)
    assert device.receive(edge.fail(second, FAILED)) == [FailureReceived(second, FAILED)]
    assert edge.receive(device.goodbye("done")) == [GoodbyeReceived(Goodbye("done"))]
    assert not device.finished
    assert not edge.finished
    assert device.receive(edge.result(first, RESULT)) == [ResultReceived(first, RESULT)]
    assert device.finished
    assert edge.finished


def test_a_refused_device_learns_why() -> None:
    device, edge = DeviceSession(HELLO, LIMITS), EdgeSession(LIMITS)
    edge.receive(device.start())
    assert device.receive(edge.refuse(RefusalCode.BUNDLE_MISMATCH, "this edge serves another bundle")) == [
        RefusedByEdge(Refused("bundle-mismatch", "this edge serves another bundle"))
    ]
    assert device.finished
    assert edge.finished


def test_an_edge_that_drains_answers_what_was_under_way() -> None:
    device, edge = opened()
    request_id, data = device.infer(0, 0, b"abc", 3)
    goodbye = edge.goodbye("the edge is stopping")
    assert [type(event) for event in edge.receive(data)] == [InferReceived]
    device.receive(goodbye)
    with pytest.raises(WireError, match="cannot send INFER while the session is 'edge draining'"):
        device.infer(0, 0, b"abc", 3)
    assert not device.finished
    device.receive(edge.fail(request_id, Failed("draining", "the edge is stopping")))
    assert device.finished
    assert edge.finished


def test_more_requests_than_allowed_are_refused_on_both_sides() -> None:
    device, edge = opened()
    for _ in range(2):
        edge.receive(device.infer(0, 0, b"abc", 3)[1])
    with pytest.raises(WireError, match="2 requests are in flight, the edge allows 2"):
        device.infer(0, 0, b"abc", 3)
    with pytest.raises(WireError, match="request 3 would be one too many"):
        edge.receive(message(Kind.INFER, 3))
    device.receive(edge.result(1, RESULT))  # the edge reads nothing more, and still answers
    assert device.infer(0, 0, b"abc", 3)[0] == 3


def test_a_request_id_in_flight_cannot_come_again() -> None:
    device, edge = opened()
    data = device.infer(0, 0, b"abc", 3)[1]
    edge.receive(data)
    with pytest.raises(WireError, match="request 1 came twice"):
        edge.receive(data)


def test_a_request_id_can_come_again_after_its_answer() -> None:
    device, edge = opened()
    data = device.infer(0, 0, b"abc", 3)[1]
    edge.receive(data)
    edge.result(1, RESULT)
    assert [type(event) for event in edge.receive(data)] == [InferReceived]


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.FAILED])
def test_an_answer_to_an_unknown_request_is_an_error(kind: Kind) -> None:
    device, edge = opened()
    device.infer(0, 0, b"abc", 3)
    with pytest.raises(WireError, match="answer to request 7, which is not in flight"):
        device.receive(message(kind, 7))
    with pytest.raises(WireError, match="answer to request 7, which is not in flight"):
        edge.fail(7, FAILED)


@pytest.mark.parametrize(
    ("payload_bytes", "raw_bytes", "size", "limit"), [(801, 1500, 801, 800), (800, 1501, 1501, 1500)]
)
def test_payloads_over_the_edges_limits_are_not_sent(payload_bytes: int, raw_bytes: int, size: int, limit: int) -> None:
    device, edge = opened()
    with pytest.raises(PayloadTooBigError) as caught:
        device.infer(0, 0, bytes(payload_bytes), raw_bytes)
    assert (caught.value.size, caught.value.limit) == (size, limit)
    request_id, data = device.infer(0, 0, bytes(800), 1500)  # what was refused took no id
    assert request_id == 1
    assert len(edge.receive(data)) == 1


@pytest.mark.parametrize("variant", [-1, 1, 3])
def test_variants_that_the_edge_does_not_serve_are_not_sent(variant: int) -> None:
    device, _ = opened()
    with pytest.raises(WireError, match=f"does not serve variant {variant}; it serves v16, v64"):
        device.infer(variant, 0, b"abc", 3)
    assert device.in_flight == 0


@pytest.mark.parametrize(("payload", "raw_bytes"), [(b"", 3), (b"abc", 0)])
def test_empty_requests_are_not_sent(payload: bytes, raw_bytes: int) -> None:
    device, _ = opened()
    with pytest.raises(WireError, match="cannot be empty"):
        device.infer(0, 0, payload, raw_bytes)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"wire_version": 2}, "wire version 2, this device speaks 1"),
        ({"bundle_id": "other"}, "bundle 'other', this device has 'b1d'"),
        ({"variants": []}, "welcomes variants"),
        ({"variants": ["v16", "v128"]}, "welcomes variants"),
        ({"coders": []}, "welcomes coders"),
        ({"coders": ["jpeg"]}, "welcomes coders"),
    ],
)
def test_a_welcome_that_does_not_fit_the_hello_is_an_error(changed: dict[str, object], text: str) -> None:
    device = DeviceSession(HELLO, LIMITS)
    device.start()
    fields = {name: getattr(WELCOME, name) for name in WELCOME.__struct_fields__} | changed
    with pytest.raises(WireError, match=text):
        device.receive(pack(Kind.WELCOME, encode_control(Welcome(**fields))))
    assert device.welcome is None


@pytest.mark.parametrize("changed", [{"max_payload_bytes": 1001}, {"max_raw_bytes": 2001}])
def test_an_edge_cannot_promise_more_than_its_limits(changed: dict[str, int]) -> None:
    edge = EdgeSession(LIMITS)
    edge.receive(message(Kind.HELLO, 0))
    fields = {name: getattr(WELCOME, name) for name in WELCOME.__struct_fields__} | changed
    with pytest.raises(WireError, match="over this edge's limit"):
        edge.welcome(Welcome(**fields))
    assert edge.state is State.GREETING


def test_a_result_that_cannot_be_written_leaves_the_request_in_flight() -> None:
    device, edge = opened()
    edge.receive(device.infer(0, 0, b"abc", 3)[1])
    with pytest.raises(WireError, match=r"\$\.top"):
        edge.result(1, Result([(3, float("nan"))], 0.5, 0.25, 12.5, 13.5, 1, "v16"))
    assert edge.in_flight == 1
    assert device.receive(edge.fail(1, FAILED)) == [FailureReceived(1, FAILED)]


def test_events_before_a_break_are_returned_and_the_session_stays_broken() -> None:
    device, edge = opened()
    data = device.infer(0, 0, b"abc", 3)[1]
    assert len(edge.receive(data + data)) == 1
    assert not edge.at_boundary
    for more in (b"", message(Kind.GOODBYE, 0)):
        with pytest.raises(WireError, match="request 1 came twice"):
            edge.receive(more)
    assert edge.state is State.OPEN


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["device", "edge"]), st.sampled_from(State), st.binary(max_size=120))
def test_garbage_in_any_state_raises_only_wire_errors(side: str, state: State, garbage: bytes) -> None:
    session = session_in(side, state)
    try:
        events = session.receive(garbage)
    except WireError:
        return
    assert events == []


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_two_sides_that_keep_the_rules_never_err_in_any_order_and_chunking(data: st.DataObject) -> None:
    """Both sides act when they like; bytes travel in chunks of any size; all that was asked is answered."""
    device, edge = DeviceSession(HELLO, LIMITS), EdgeSession(LIMITS)
    to_edge, to_device = bytearray(device.start()), bytearray()
    asked: list[int] = []
    waiting: list[int] = []
    answered: list[int] = []

    def deliver(source: bytearray, session: Session, size: int) -> None:
        chunk = bytes(source[:size])
        del source[:size]
        for event in session.receive(chunk):
            match event:
                case HelloReceived():
                    to_device.extend(edge.welcome(WELCOME))
                case InferReceived(request_id=request_id):
                    waiting.append(request_id)
                case ResultReceived(request_id=request_id) | FailureReceived(request_id=request_id):
                    answered.append(request_id)

    def answer() -> None:
        request_id = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        good = data.draw(st.booleans())
        to_device.extend(edge.result(request_id, RESULT) if good else edge.fail(request_id, FAILED))

    for _ in range(data.draw(st.integers(0, 60))):
        match data.draw(st.sampled_from(["ask", "answer", "to edge", "to device", "device leaves", "edge drains"])):
            case "ask" if device.state is State.OPEN and device.in_flight < WELCOME.max_in_flight:
                request_id, sent = device.infer(0, 0, b"abc", 3)
                asked.append(request_id)
                to_edge.extend(sent)
            case "answer" if waiting:
                answer()
            case "to edge":
                deliver(to_edge, edge, data.draw(st.integers(1, 300)))
            case "to device":
                deliver(to_device, device, data.draw(st.integers(1, 300)))
            case "device leaves" if device.state in (State.OPEN, State.EDGE_DRAINING):
                to_edge.extend(device.goodbye("done"))
            case "edge drains" if edge.state in (State.OPEN, State.DEVICE_LEFT):
                to_device.extend(edge.goodbye("stopping"))
        assert edge.in_flight <= WELCOME.max_in_flight
    while to_edge or to_device or waiting:
        deliver(to_edge, edge, len(to_edge))
        deliver(to_device, device, len(to_device))
        if waiting:
            answer()
    assert sorted(answered) == asked
    assert device.in_flight == edge.in_flight == 0
    assert device.state is edge.state
    assert device.at_boundary
    assert edge.at_boundary
