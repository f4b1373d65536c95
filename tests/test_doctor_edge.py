"""``doctor`` of bundles and edges: what fits this machine, and every step of the way to an edge."""

import re
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trustme
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.manifest import EngineSpec, VariantSpec
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.runtimes.diagnosis.bundle_fit import judge_engines
from aecnn_deploy.runtimes.diagnosis.finding import Level
from aecnn_deploy.runtimes.diagnosis.reach import judge_session
from aecnn_deploy.runtimes.diagnosis.tls import judge_end
from aecnn_deploy.wire import EdgeSession, RefusalCode, Welcome, WireLimits
from tests.bundles import VARIANTS, command, make_bundle, serving
from tests.certificates import Authority
from tests.doctor_hosts import A76, PI4, findings, levels, machine, reach, subject
from tests.http_peers import certified, edge_by_hand
from tests.peers import peer
from tests.test_docs import parse


class TestBundle:
    def test_a_whole_one_is_described(self, tmp_path: Path) -> None:
        manifest = make_bundle(tmp_path / "bundle")
        found = findings(subject(bundle=tmp_path / "bundle"))
        assert manifest.bundle_id[:12] in found["bundle"].found
        assert all(variant.id in found["bundle"].found for variant in VARIANTS)
        assert found["heads"].found == "fp32 of 2 variants"

    def test_a_damaged_one_names_the_file_and_the_remedy(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle")
        with (tmp_path / "bundle" / "full.onnx").open("r+b") as stream:
            stream.write(b"\0" * 10)
        found = findings(subject(bundle=tmp_path / "bundle"))
        assert found["bundle"].level is Level.PROBLEM
        assert "full.onnx is damaged" in found["bundle"].found
        assert found["bundle"].remedy == "copy the bundle again from where it was exported"
        assert "heads" not in found

    def test_none_at_all_is_a_problem(self, tmp_path: Path) -> None:
        assert findings(subject(bundle=tmp_path / "none"))["bundle"].level is Level.PROBLEM

    def test_int8_heads_that_were_never_timed_ask_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        _with_int8_heads(tmp_path / "bundle")
        found = findings(subject(bundle=tmp_path / "bundle"))["heads"]
        assert found.level is Level.WARNING
        done = command("calibrate", "device", str(tmp_path / "bundle"), "--threads", "1")
        assert done.returncode == 0, done.stderr
        assert f"aecnn-deploy calibrate device {tmp_path}/bundle" in str(found.remedy)
        found = findings(subject(bundle=tmp_path / "bundle"))["heads"]
        assert (found.level, found.found) == (
            Level.OK,
            "fp32, int8 of 2 variants; timed on this machine with threads: 1",
        )

    def test_int8_by_default_on_a_core_without_the_instructions_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        _with_int8_heads(tmp_path / "bundle", default="int8")
        pi4 = findings(subject(machine(tmp_path / "pi4", PI4), tmp_path / "bundle"))["heads"]
        assert "by default int8, which this processor has no instructions for" in pi4.found
        pi5 = findings(subject(machine(tmp_path / "pi5", PI4, cpuinfo=A76), tmp_path / "bundle"))["heads"]
        assert "no instructions" not in pi5.found

    def test_engines_are_no_business_of_a_machine_without_a_gpu(self, tmp_path: Path) -> None:
        _with_engines(tmp_path / "bundle")
        found = findings(subject(bundle=tmp_path / "bundle"))["engines"]
        assert "tensorrt 10.7.0 on sm75" in found.found

    def test_engines_for_another_gpu_or_release_are_named_with_how_to_add_some(self) -> None:
        built = [EngineSpec("a", "tensorrt", "10.7.0", ("sm75", "sm86"), "fp16", (1, 1, 8))]
        assert judge_engines(built, "10.7.0", "sm86", "b").level is Level.OK
        for version, architecture in (("10.7.1", "sm86"), ("10.7.0", "sm89")):
            found = judge_engines(built, version, architecture, "b")
            assert found.level is Level.WARNING
            assert (
                found.found == f"built for tensorrt 10.7.0 on sm75+sm86; here is tensorrt {version} on {architecture}"
            )
            line, _, _ = str(found.remedy).partition(";")
            parse(line.removeprefix("aecnn-deploy "))


class TestEdge:
    def test_the_way_to_an_edge_with_this_bundle_is_free(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle")
        make_bundle(tmp_path / "other", seed=1)
        with serving(tmp_path / "bundle") as edge:
            found = reach(edge.url.replace("127.0.0.1", "localhost"), tmp_path / "bundle")
            alone = reach(edge.url)
            other = reach(edge.url, tmp_path / "other")
        session = found.pop("edge session")  # a warning where this machine is so busy that a ping takes long
        assert levels(found.values()) == dict.fromkeys(("edge name", "edge port", "edge service", "edge clock"), "ok")
        assert re.search(r"open: 2 of 2 variants by onnxruntime .*, ping \d+\.\d ms", session.found)
        assert "name the bundle" in alone["edge session"].found
        ids = [open_bundle(tmp_path / name).id[:12] for name in ("bundle", "other")]
        assert other["edge service"].found == f"the edge serves bundle {ids[0]}, this machine has {ids[1]}"
        assert other["edge service"].level is Level.PROBLEM
        assert "edge session" not in other

    def test_an_edge_with_fewer_variants_or_far_away_is_a_warning(self) -> None:
        welcome = Welcome(1, "id", ["a"], ["raw"], 4, 1, 1, "onnxruntime", "test")
        assert judge_session(welcome, 1, 5.0).level is Level.OK
        assert judge_session(welcome, 2, 5.0).found.startswith("open: 1 of 2 variants")
        assert [judge_session(welcome, *given).level for given in ((2, 5.0), (1, 150.0), (1, None))] == ["warning"] * 3

    @pytest.mark.parametrize("state", ["loading", "draining"])
    def test_an_edge_that_is_not_ready_is_told_with_its_state(self, state: str) -> None:
        with edge_by_hand(state=state) as url:
            found = reach(url)
        assert found["edge service"].level is Level.WARNING
        assert found["edge service"].found.startswith(state)

    def test_an_edge_s_clock_is_compared_with_this_machine_s(self) -> None:
        with edge_by_hand(ahead=timedelta(hours=2)) as url:
            found = reach(url)["edge clock"]
        assert found.level is Level.WARNING
        assert re.search(r"7,(199|200|201) s behind the edge", found.found)

    @pytest.mark.parametrize(
        ("code", "remedy"),
        [
            (RefusalCode.UNAUTHORIZED, "token"),
            (RefusalCode.OVERLOADED, "later"),
            (RefusalCode.BUNDLE_MISMATCH, "one bundle"),
            (RefusalCode.PROTOCOL, "log"),
        ],
    )
    def test_a_refusal_is_named_with_its_reason_and_its_remedy(
        self, tmp_path: Path, code: RefusalCode, remedy: str
    ) -> None:
        def refuse(connection: ServerConnection) -> None:
            session = EdgeSession(WireLimits())
            session.receive(connection.recv())  # type: ignore[arg-type]
            connection.send(session.refuse(code, "because of this"))

        make_bundle(tmp_path / "bundle")
        with edge_by_hand(refuse) as url:
            found = reach(url, tmp_path / "bundle")["edge session"]
        assert (found.level, found.found) == (Level.PROBLEM, f"refused, {code}: because of this")
        assert remedy in str(found.remedy)

    def test_a_dead_port_ends_it_with_how_to_start_an_edge(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # taken and not listening
            found = reach(f"ws://127.0.0.1:{taken.getsockname()[1]}")
        assert levels(found.values()) == {"edge port": "problem"}
        assert "serve-edge" in str(found["edge port"].remedy)

    def test_a_name_without_an_address_ends_it(self) -> None:
        found = reach("ws://no-such-host.invalid:8765", timeout_s=5.0)
        assert levels(found.values()) == {"edge name": "problem"}

    def test_a_port_that_says_nothing_is_given_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            found = reach(f"ws://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)
        assert levels(found.values()) == {"edge port": "ok", "edge service": "problem"}

    def test_another_program_s_port_is_told(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle")
        with peer(lambda connection: connection.close()) as url:  # speaks WebSocket, and nothing of ours
            found = reach(url, tmp_path / "bundle")
        assert found["edge service"].level is Level.PROBLEM


class TestCertificates:
    @pytest.fixture(scope="class")
    @classmethod
    def authority(cls) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture(autouse=True)
    def trusting(self, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    def test_a_good_one_leads_to_a_session(self, authority: trustme.CA, tmp_path: Path) -> None:
        manifest = make_bundle(tmp_path / "bundle")
        with edge_by_hand(bundle_id=manifest.bundle_id, tls=certified(authority, "localhost")) as url:
            found = reach(url, tmp_path / "bundle")
        assert found["edge session"].found.startswith("open: "), found
        assert re.fullmatch(r"TLSv1.\d, certificate of localhost: trusted, \d+ days left", found["tls"].found)
        assert found["tls"].level is Level.OK

    def test_an_expired_one_is_named(self, authority: trustme.CA) -> None:
        expired = certified(authority, "localhost", not_after=datetime.now(UTC) - timedelta(days=2))
        with edge_by_hand(tls=expired) as url:
            found = reach(url)["tls"]
        assert found.level is Level.PROBLEM
        assert "certificate has expired" in found.found
        assert "renew" in str(found.remedy)

    def test_one_that_ends_soon_is_a_warning(self) -> None:
        end_s = 1_800_000_000
        text = time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(end_s))
        assert judge_end(text, end_s - 3 * 86400, "x").level is Level.WARNING
        assert judge_end(text, end_s - 90 * 86400, "x").level is Level.OK
        assert judge_end("no date", 0.0, "x").level is Level.OK

    def test_one_for_another_host_is_named(self, authority: trustme.CA) -> None:
        with edge_by_hand(tls=certified(authority, "edge.example")) as url:
            found = reach(url)["tls"]
        assert found.level is Level.PROBLEM
        assert "Hostname mismatch" in found.found
        assert "host name" in str(found.remedy)

    def test_one_of_an_unknown_authority_is_named(self) -> None:
        with edge_by_hand(tls=certified(trustme.CA(), "localhost")) as url:
            found = reach(url)["tls"]
        assert found.level is Level.PROBLEM
        assert "trust the authority" in str(found.remedy)

    def test_tls_on_one_side_only_is_told_with_the_other_scheme(self, authority: trustme.CA) -> None:
        with edge_by_hand(tls=certified(authority, "localhost")) as url:
            found = reach(url.replace("wss://", "ws://"))
            assert "wss://" in str(found["edge service"].remedy)
        with peer(lambda connection: connection.close()) as url:
            found = reach(url.replace("ws://", "wss://"))
        assert found["tls"].level is Level.PROBLEM
        assert "ws://" in str(found["tls"].remedy)


def _changed(out: Path, change: Callable[[VariantSpec, Path], VariantSpec]) -> None:
    """A tiny bundle with every variant changed, and the files that ``change`` puts below the root it is given."""
    make_bundle(out)
    opened = open_bundle(out)
    with BundleWriter(out, replace=True) as writer:
        for name in opened.manifest.files:
            writer.path(name).write_bytes(opened.file(name).read_bytes())
        variants = tuple(change(spec, writer.root) for spec in opened.manifest.variants)
        writer.commit_changed(opened.manifest, variants=variants)


def _with_int8_heads(out: Path, default: str = "fp32") -> None:
    """A tiny bundle whose "int8" heads are copies of the others: nothing here looks into them."""

    def change(spec: VariantSpec, root: Path) -> VariantSpec:
        heads = {"fp32": spec.head, "int8": f"heads/{spec.id}.int8.onnx"}
        (root / heads["int8"]).write_bytes((root / spec.head).read_bytes())
        return msgspec.structs.replace(spec, heads=heads, head=heads[default])

    _changed(out, change)


def _with_engines(out: Path) -> None:
    """A tiny bundle that says it has engines."""

    def change(spec: VariantSpec, root: Path) -> VariantSpec:
        engine = EngineSpec(f"tails/{spec.id}.engine", "tensorrt", "10.7.0", ("sm75",), "fp16", (1, 1, 8))
        (root / engine.file).write_bytes(b"engine")
        return msgspec.structs.replace(spec, engines={"tensorrt-sm75": engine})

    _changed(out, change)


class TestCredentials:
    def test_a_guarded_edge_is_reached_with_them_and_refused_without(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle")
        authority = Authority(tmp_path / "tls")
        edge_pair, token = authority.issue("edge"), tmp_path / "token"
        (tmp_path / "tokens").write_text("gate 0123456789abcdef0123456789abcdef\n")
        token.write_text("0123456789abcdef0123456789abcdef\n")
        tls = ("--tls-cert", str(edge_pair.cert), "--tls-key", str(edge_pair.key))
        with serving(tmp_path / "bundle", *tls, "--token-file", str(tmp_path / "tokens")) as edge:
            assert edge.url.startswith("wss://")
            asked = ("doctor", str(tmp_path / "bundle"), "--edge", edge.url, "--json", "--ca", str(authority.ca))
            good, bad = command(*asked, "--token-file", str(token)), command(*asked)
            lacking = command(*asked, "--token-file", str(tmp_path / "none"))
        levels = [
            {each["check"]: (each["level"], each["found"]) for each in msgspec.json.decode(done.stdout)["findings"]}
            for done in (good, bad, lacking)
        ]
        assert levels[0]["edge session"][0] == "ok"
        assert levels[0]["tls"][0] == "ok"
        assert levels[1]["edge session"][0] == "problem"
        assert "unauthorized" in levels[1]["edge session"][1]
        assert levels[2]["credentials"][0] == "problem"
        assert str(tmp_path / "none") in levels[2]["credentials"][1]
        assert [done.returncode for done in (good, bad, lacking)] == [0, 1, 1]
