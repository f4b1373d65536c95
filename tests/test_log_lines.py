"""Logs: one line a record in either format, whatever strangers write into it and however often."""

import io
import json
import logging
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.log_lines import (
    MAX_FIELD_CHARACTERS,
    MAX_MESSAGE_CHARACTERS,
    LogSettings,
    RateLimit,
    configure_logging,
    fields,
    one_line,
)
from aecnn_deploy.wire import FailureReceived, ResultReceived
from tests.bundles import COMMAND, command, environment, make_bundle, make_photos, serving
from tests.edge_client import Client, planes_of, post, until_closed

HOSTILE = "a\nb\r\x1b[31mred\x00 \u202eturned\u2028new \ud800 end"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("logged") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


def lines_of(settings: LogSettings, *records: tuple[str, int, str, tuple[object, ...], dict[str, Any]]) -> list[str]:
    stream = io.StringIO()
    configure_logging(settings, stream)
    for name, level, message, arguments, more in records:
        logging.getLogger(name).log(level, message, *arguments, extra=more)
    return stream.getvalue().splitlines(keepends=True)


@pytest.mark.usefixtures("root")
class TestLines:
    def test_json_has_time_level_logger_message_and_fields(self) -> None:
        more = fields(peer="h:1", code="c", n=3, ms={"a": 1.5})
        (line,) = lines_of(LogSettings("json"), ("aecnn_deploy.edge", logging.WARNING, "refused %s", ("x",), more))
        document = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document.pop("ts"))
        assert document == {
            "level": "warning",
            "logger": "aecnn_deploy.edge",
            "message": "refused x",
            "peer": "h:1",
            "code": "c",
            "n": 3,
            "ms": {"a": 1.5},
        }

    def test_a_field_cannot_take_the_place_of_what_we_say(self) -> None:
        (line,) = lines_of(LogSettings("json"), ("x", 30, "mine", (), fields(level="fatal", ts="0", message="yours")))
        document = json.loads(line)
        assert (document["level"], document["message"]) == ("warning", "mine")

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_hostile_words_stay_on_one_line_without_control_characters(self, form: str) -> None:
        record = ("aecnn_deploy.edge", 30, "refused %s", (HOSTILE,), fields(device=HOSTILE))
        (line,) = lines_of(LogSettings(form), record)
        assert line.endswith("\n")
        assert line[:-1].isprintable()
        assert "a b [31mred turned new end" in line
        line.encode()

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_long_words_are_cut(self, form: str) -> None:
        (line,) = lines_of(LogSettings(form), ("x", 30, "%s", ("m" * 10**6,), fields(device="d" * 10**6)))
        assert len(line) < MAX_MESSAGE_CHARACTERS + MAX_FIELD_CHARACTERS + 200

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_an_exception_is_its_last_line(self, form: str) -> None:
        stream = io.StringIO()
        configure_logging(LogSettings(form), stream)
        try:
            raise ValueError("broken\nwords")
        except ValueError:
            logging.getLogger("x").exception("request failed")
        (line,) = stream.getvalue().splitlines()
        assert "request failed: ValueError: broken words" in line
        assert "Traceback" not in line
        if form == "json":
            assert json.loads(line)["error"] == "ValueError"

    def test_uvicorns_own_lines_go_the_same_way(self) -> None:
        (line,) = lines_of(LogSettings("json"), ("uvicorn.error", 40, "Exception in ASGI application\n", (), {}))
        assert json.loads(line)["logger"] == "uvicorn.error"

    def test_a_flood_of_one_kind_is_cut_and_counted_and_hides_no_other(self) -> None:
        flood = [("e", 30, "refused %s", (number,), fields(code="bundle-mismatch")) for number in range(1000)]
        rest = [("e", 30, "refused %s", (1,), fields(code="unauthorized")), ("e", 30, "loaded %s", ("v",), {})]
        lines = lines_of(LogSettings(burst=20), *flood, *rest)
        assert len(lines) == 22
        assert lines[-1].endswith("loaded v\n")

    def test_lines_of_requests_are_written_only_where_they_are_wanted_and_all_of_them(self) -> None:
        records = [("aecnn_deploy.edge.requests", 10, "%d", (number,), {}) for number in range(1000)]
        assert lines_of(LogSettings(), *records) == []
        assert len(lines_of(LogSettings(requests=True), *records)) == 1000


def test_what_was_left_out_is_told_with_the_next_line() -> None:
    now_s = [0.0]
    limit = RateLimit(LogSettings(burst=2, window_s=10), lambda: now_s[0])

    def admitted() -> int | None:
        record = logging.makeLogRecord({"name": "x", "msg": "refused %s", "args": ("y",)})
        return getattr(record, "left_out", 0) if limit.filter(record) else None

    assert [admitted() for _ in range(5)] == [0, 0, None, None, None]
    now_s[0] = 10.0
    assert [admitted() for _ in range(3)] == [3, 0, None]


def test_the_limit_keeps_a_bounded_number_of_kinds() -> None:
    limit = RateLimit(LogSettings(burst=20))
    through = 0
    for number in range(5000):
        record = logging.makeLogRecord({"name": f"logger {number}", "msg": "%s", "args": ("y",)})
        through += limit.filter(record)
    assert through == 400  # of all kinds together in a window
    assert len(limit._kinds) == 256


@pytest.mark.parametrize(
    "settings", [{"format": "xml"}, {"burst": 0}, {"window_s": 0.0}, {"window_s": float("nan")}], ids=str
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        LogSettings(**settings)


def test_plain_words_are_left_as_they_are() -> None:
    assert one_line("größer  als 5 µs", 100) == "größer  als 5 µs"
    assert one_line("abcdef", 4) == "abc…"


def test_an_edge_logs_refusals_and_requests_as_json(bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    with serving(bundle.path, "--log-format", "json", "--log-requests") as edge:
        with Client(edge, bundle, bundle_id="ab" * 32, device="other one") as refused:
            refused.event()
        with Client(edge, bundle, device="door") as client:
            client.event()
            client.ask(spec, 0, planes_of(spec))
            assert isinstance(client.event(), ResultReceived)
            client.socket.send(client.session.infer(0, 0, b"too short", 9)[1])
            assert isinstance(client.event(), FailureReceived)
            until_closed(client.socket, b"garbage" * 10)
        post(edge, b"no image")
        status, errors = edge.stop()
    assert status == 0
    records = [json.loads(line) for line in errors.splitlines()]
    loaded, refusal, ok, failed, closed, posted = [
        one for one in records if not one["message"].startswith("loaded full")
    ]
    assert loaded["message"].startswith(f"loaded {spec.id} on onnxruntime in ")
    assert (refusal["level"], refusal["code"], refusal["device"]) == ("warning", "bundle-mismatch", "other one")
    assert (ok["logger"], ok["level"], ok["outcome"]) == ("aecnn_deploy.edge.requests", "debug", "ok")
    assert (ok["device"], ok["variant"], ok["batch"]) == ("door", spec.id, 1)
    assert re.fullmatch(r"\d+-1", ok["request"])
    assert ok["peer"].startswith("127.0.0.1:")
    assert set(ok["stages_ms"]) == {"queue", "decode", "tail", "total"}
    assert ok["received_bytes"] > 36
    assert ok["sent_bytes"] > 36
    assert (failed["outcome"], failed["request"]) == ("bad-payload", ok["request"][:-1] + "2")
    assert failed["reason"]
    assert (closed["code"], closed["device"], closed["peer"]) == ("protocol", "door", ok["peer"])
    assert (posted["path"], posted["outcome"]) == ("full", "bad-image")


def test_with_json_the_line_that_it_serves_is_a_record_too(bundle: Bundle) -> None:
    arguments = ["serve-edge", str(bundle.path), "--port", "0", "--no-build", "--threads", "1", "--log-format", "json"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        loaded, document = (json.loads(process.stderr.readline()) for _ in range(2))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert loaded["message"].startswith("loaded ")
    assert document["level"] == "info"
    assert document["message"].startswith(f"serving bundle {bundle.id[:12]} at ws://127.0.0.1:")


def test_a_device_logs_each_image_beside_its_table(bundle: Bundle, tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", count=2)
    (tmp_path / "photos" / "z spoilt.jpg").write_bytes(b"no image")
    with serving(bundle.path) as edge:
        source = ["--source", str(tmp_path / "photos"), "--name", "door"]
        done = command("run-device", str(bundle.path), "--edge", edge.url, *source, "--log-format", "json")
    assert done.returncode == 1
    assert done.stdout.decode().startswith("image ")
    records = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert records[0]["message"].startswith("connected to ws://127.0.0.1:")
    one, _, spoilt = [record for record in records if record["logger"] == "aecnn_deploy.device.images"]
    assert (one["status"], one["level"], one["path"]) == ("ok", "info", "split")
    assert one["total_ms"] > 0
    assert one["stages_ms"]["head"] > 0
    assert (spoilt["status"], spoilt["level"]) == ("failed", "warning")


@pytest.mark.parametrize("words", ["serve-edge {bundle}", "run-device {bundle} --edge ws://x --source y"])
def test_an_unknown_format_is_wrong_use(bundle: Bundle, words: str) -> None:
    done = command(*words.format(bundle=bundle.path).split(), "--log-format", "xml")
    assert done.returncode == 2
    assert b"no log format 'xml'; choose one of text, json" in done.stderr
    assert "Traceback" not in done.stderr.decode()
