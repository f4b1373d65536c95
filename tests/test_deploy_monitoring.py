"""Dashboard and alerts against what an edge really tells; every query gets a value from a real Prometheus."""

import contextlib
import http.client
import json
import math
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import MatchOp
from websockets.sync.client import ClientConnection, connect

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import EncodedPlanes
from aecnn_deploy.runtimes.controller_messages import Advice, Welcome, encoded, from_controller
from aecnn_deploy.wire import FailureReceived, ResultReceived
from tests.bundles import Edge, make_bundle, make_photos, serving
from tests.controllers import hello, state
from tests.deploy_files import DEPLOY
from tests.deploy_queries import ALERTS, dashboard, expressions, measured, names_in
from tests.edge_client import Client, get, metric, planes_of, post

COMPOSE = DEPLOY / "compose"
TARGET = {"job", "instance"}  # the labels that Prometheus gives to all that it scrapes
EXPRESSIONS = expressions()
needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="there is no Prometheus: apt-get install prometheus",
)


@dataclass
class Busy:
    """An edge and what makes each of its metrics move: answers on both paths, failures, refusals, evictions."""

    edge: Edge
    bundle: Bundle
    photo: bytes
    stream: Client  # stays open
    advised: ClientConnection  # so does this: a device's, to the edge as its controller
    rounds: int = 0

    def round(self) -> None:
        """One more of everything. A model makes room for the other's, which stays for a second at least."""
        spec = self.bundle.manifest.variants[self.rounds % 2]
        self.rounds += 1
        self.advised.send(encoded(state(edges=state().edges[:1])))
        assert isinstance(from_controller(self.advised.recv(timeout=60)), Advice)
        self.stream.ask(spec, (self.rounds - 1) % 2, planes_of(spec))
        assert isinstance(self.stream.event(timeout_s=60), ResultReceived)
        self.stream.send(EncodedPlanes("raw", 0, b"?", spec.plane_bytes), (self.rounds - 1) % 2)
        assert isinstance(self.stream.event(timeout_s=60), FailureReceived)
        assert post(self.edge, self.photo)[0] == 200
        assert post(self.edge, b"no image")[0] == 400
        frame = self.bundle.manifest.input
        assert _infer(self.edge, bytes(frame.height * frame.width * 3)) == 200
        assert _infer(self.edge, b"no frame") == 400
        with Client(self.edge, self.bundle, bundle_id="0" * 64) as stranger:
            stranger.event()


def _infer(edge: Edge, frame: bytes) -> int:
    """The status of asking the unsplit model by the Open Inference Protocol."""
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=60)
    connection.request("POST", "/v2/models/full/infer", frame, {"Inference-Header-Content-Length": "0"})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    folder = tmp_path_factory.mktemp("busy")
    make_bundle(folder / "bundle")
    bundle = open_bundle(folder / "bundle")
    (photo,) = make_photos(folder / "photos", count=1)
    options = ("--memory-limit-mb", "0.04", "--controller", "greedy")
    with (
        serving(bundle.path, *options) as edge,
        Client(edge, bundle) as stream,
        connect(f"{edge.url}/v1/advice", compression=None) as advised,
    ):
        stream.event()
        variants = [spec.id for spec in bundle.manifest.variants]
        advised.send(encoded(hello(bundle, edges=["a"], variants=variants)))
        assert isinstance(from_controller(advised.recv(timeout=60)), Welcome)
        found = Busy(edge, bundle, photo.read_bytes(), stream, advised)
        for _ in range(2):
            found.round()
        bundle.path.rename(folder / "gone")
        edge.process.send_signal(signal.SIGHUP)  # there is nothing to take on
        end = time.monotonic() + 60
        while not metric(edge, 'aecnn_reloads_total{outcome="failed"}'):
            assert time.monotonic() < end
            time.sleep(0.05)
        (folder / "gone").rename(bundle.path)
        yield found


@pytest.fixture(scope="module")
def told(busy: Busy) -> dict[str, list[dict[str, str]]]:
    """Series of /metrics: the labels of each sample, by its name."""
    found: dict[str, list[dict[str, str]]] = {"up": [{}]}  # which Prometheus makes
    for family in text_string_to_metric_families(get(busy.edge, "/metrics")[1].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


class TestQueries:
    @pytest.mark.parametrize("place", EXPRESSIONS)
    def test_every_metric_and_label_is_one_that_an_edge_tells(
        self, place: str, told: dict[str, list[dict[str, str]]]
    ) -> None:
        names = names_in(EXPRESSIONS[place])
        assert names.selectors
        labels = set(TARGET)
        for name, matchers in names.selectors:
            assert name in told, f"no edge has {name}"
            labels |= told[name][0].keys()
            for label, operator, value in matchers:
                if label not in TARGET:
                    known = {each[label] for each in told[name]}  # KeyError: no such label
                    assert operator != MatchOp.Equal or value in known, f"{label} is never {value}"
        assert names.grouped <= labels

    def test_a_wrong_query_would_be_noticed(self, told: dict[str, list[dict[str, str]]]) -> None:
        names = names_in("sum by (vraiant) (rate(aecnn_batch_seconds_total[1m]))")
        assert names.selectors[0][0] not in told
        assert names.grouped == {"vraiant"}
        with pytest.raises(ValueError, match="invalid promql query"):
            names_in("sum by (path (rate(aecnn_requests_total[1m])))")

    def test_every_metric_of_an_edge_is_drawn_or_known_to_be_left_out(
        self, told: dict[str, list[dict[str, str]]]
    ) -> None:
        drawn = {name for text in EXPRESSIONS.values() for name, _ in names_in(text).selectors}
        ours = {name for name in told if name.startswith("aecnn_")}
        left_out = {"aecnn_batch_seconds_count", "aecnn_queue_seconds_count", "aecnn_queue_seconds_sum",
                    "aecnn_stage_seconds_count", "aecnn_stage_seconds_sum", "aecnn_load_seconds_bucket"}  # fmt: skip
        assert ours - drawn == left_out


class TestDashboard:
    BOARD = dashboard()
    PANELS = BOARD["panels"]

    def test_it_survives_grafana_s_own_types(self) -> None:
        """Through the classes of Grafana's schema and back: a key that they do not know would be lost."""
        register_default_plugins()
        back = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
        assert list(_lost(self.BOARD, back, "")) == []

    def test_a_key_that_grafana_does_not_know_would_be_noticed(self) -> None:
        register_default_plugins()
        wrong = dashboard()
        wrong["panels"][1]["options"]["colourMode"] = "value"
        back = json.loads(JSONEncoder().encode(Dashboard.from_json(wrong)))
        assert list(_lost(wrong, back, "")) == ["/panels/1/options/colourMode"]

    def test_ids_are_unique_and_every_query_asks_the_provisioned_datasource(self) -> None:
        (path,) = (COMPOSE / "grafana" / "provisioning" / "datasources").iterdir()
        (source,) = yaml.safe_load(path.read_text())["datasources"]
        wanted = {"type": source["type"], "uid": source["uid"]}
        ids = [panel["id"] for panel in self.PANELS]
        assert len(ids) == len(set(ids))
        for panel in self.PANELS:
            if panel["type"] != "row":
                assert panel["datasource"] == wanted
                references = [target["refId"] for target in panel["targets"]]
                assert len(references) == len(set(references)) > 0
                assert all(target["datasource"] == wanted for target in panel["targets"])
        assert all(variable["datasource"] == wanted for variable in self.BOARD["templating"]["list"])

    def test_panels_lie_on_the_grid_side_by_side(self) -> None:
        taken: dict[tuple[int, int], str] = {}
        for panel in self.PANELS:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert taken.setdefault((x, y), panel["title"]) == panel["title"]

    def test_each_panel_says_what_it_shows_in_which_unit_and_names_its_lines(self) -> None:
        for panel in self.PANELS:
            if panel["type"] == "row":
                continue
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            legends = [target["legendFormat"] for target in panel["targets"]]
            assert panel["type"] == "table" or (all(legends) and len(legends) == len(set(legends)))
            for target in panel["targets"]:  # a label of a legend that is summed away would show as nothing
                shown = {word.split("}}")[0] for word in target["legendFormat"].split("{{")[1:]}
                names = names_in(EXPRESSIONS[f"{panel['id']}{target['refId']} {panel['title']}"])
                assert shown <= (names.grouped or TARGET)

    def test_it_shows_what_is_asked_of_it(self) -> None:
        titles = " ".join(panel["title"] for panel in self.PANELS).lower()
        for words in ("requests", "failures by reason", "queue seconds", "batch size", "stage seconds, p50"):
            assert words in titles
        for words in ("stage seconds, p99", "bytes per image", "connections", "loaded models"):
            assert words in titles


def _lost(given: Any, back: Any, place: str) -> Iterator[str]:
    """Where ``given`` says something that ``back`` does not."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            if key in back:
                yield from _lost(value, back[key], f"{place}/{key}")
            else:
                yield f"{place}/{key}"
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for number, (one, other) in enumerate(zip(given, back, strict=True)):
            yield from _lost(one, other, f"{place}/{number}")
    elif given != back:
        yield place


@needs_prometheus
class TestPrometheus:
    def test_alerts_fire_when_they_should_and_not_before(self) -> None:
        test = Path(__file__).with_name("deploy_alerts.yml")
        done = subprocess.run(["promtool", "test", "rules", test], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_every_alert_is_tried(self) -> None:
        tried = yaml.safe_load(Path(__file__).with_name("deploy_alerts.yml").read_text())["tests"]
        fired = {case["alertname"] for test in tried for case in test["alert_rule_test"] if "exp_alerts" in case}
        quiet = {case["alertname"] for test in tried for case in test["alert_rule_test"] if "exp_alerts" not in case}
        rules = {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
        assert fired == quiet == rules

    @pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.tls.yml"])
    def test_its_configuration_is_one(self, name: str, tmp_path: Path) -> None:
        folder = tmp_path / "prometheus"
        shutil.copytree(COMPOSE / "prometheus", folder)
        (tmp_path / "token").write_text("a" * 32)  # promtool looks for the files that it names
        shutil.copy(Path(__file__), tmp_path / "ca.pem")
        text = (folder / name).read_text().replace("/run/secrets/prometheus-token", str(tmp_path / "token"))
        (folder / name).write_text(text.replace("/run/secrets/site-ca", str(tmp_path / "ca.pem")))
        done = subprocess.run(
            ["promtool", "check", "config", "--lint=all", "--lint-fatal", folder / name],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_every_query_has_a_value_from_an_edge_that_it_scrapes(self, busy: Busy, tmp_path: Path) -> None:
        """The compose file's configuration with the edge's address and a second between scrapes, in a real server."""
        folder = tmp_path / "prometheus"
        shutil.copytree(COMPOSE / "prometheus", folder)
        text = (folder / "prometheus.yml").read_text().replace("10s", "500ms").replace("5s", "500ms")
        (folder / "prometheus.yml").write_text(text.replace("aecnn-edge:8765", f"127.0.0.1:{busy.edge.port}"))
        with _prometheus(folder, tmp_path / "data") as url:
            missing = dict(EXPRESSIONS)
            end = time.monotonic() + 90
            while missing and time.monotonic() < end:
                busy.round()
                missing = {place: text for place, text in missing.items() if not _values(url, measured(text))}
            assert missing == {}
            firing = _asked(url, "/api/v1/rules")["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in firing} == {"ok"}


@contextlib.contextmanager
def _prometheus(folder: Path, data: Path) -> Iterator[str]:
    """A Prometheus with the configuration in ``folder``, ready; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = data.with_name("prometheus.log")
    program = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={data}"]
    with log.open("wb") as errors:
        process = subprocess.Popen([*program, f"--web.listen-address={address}"], stderr=errors)
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _asked(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path, timeout=30) as answer:
        return json.load(answer)


def _values(url: str, query: str) -> list[float]:
    """The numbers that ``query`` has now; those that are none (nothing happened) are left out."""
    found = _asked(url, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))["data"]["result"]
    return [number for each in found if not math.isnan(number := float(each["value"][1]))]
