"""The compose files: valid, of services that exist, with commands that parse and limits that fit each other."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy_files import DEPLOY, DOCKERFILES, compose, image, option, stages_of
from tests.test_docs import parse

COMPOSE = DEPLOY / "compose"
FILES = ("compose.yaml", "compose.tls.yaml", "device.yaml")
PLAIN, TLS = compose("compose.yaml"), compose("compose.tls.yaml")
EDGES = ("edge", "edge-gpu")
# Every container of every file, by file and name; those of compose.tls.yaml are changes of compose.yaml's.
SERVICES = [("compose.yaml", name) for name in PLAIN["services"]] + [("device.yaml", "device")]


def service(name: str) -> dict[str, Any]:
    (found,) = [compose(file)["services"][each] for file, each in SERVICES if each == name]
    return found


def megabytes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([mg])", text).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 2**20, "g": 2**30}[unit] / 1e6


@pytest.mark.parametrize("name", FILES)
def test_it_is_what_the_compose_specification_allows(name: str) -> None:
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE / name]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_would_notice_a_wrong_key(tmp_path: Path) -> None:
    wrong = COMPOSE.joinpath("compose.yaml").read_text().replace("stop_grace_period", "stop_grace")
    (tmp_path / "compose.yaml").write_text(wrong)
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*program, tmp_path / "compose.yaml"], capture_output=True, timeout=120, check=False)
    assert done.returncode == 1


class TestServices:
    @pytest.mark.parametrize(
        ("file", "name"),
        [(file, name) for file in FILES for name in compose(file)["services"] if name in (*EDGES, "device")],
    )
    def test_a_command_of_ours_parses(self, file: str, name: str) -> None:
        parse(" ".join(compose(file)["services"][name]["command"]))

    @pytest.mark.parametrize("name", [*EDGES, "device"])
    def test_its_image_is_built_from_a_target_that_exists(self, name: str) -> None:
        build = service(name)["build"]
        path = (COMPOSE / build["context"] / build["dockerfile"]).resolve()
        assert path in DOCKERFILES
        assert build["target"] in {stage.name for stage in stages_of(path)}

    @pytest.mark.parametrize("name", ["prometheus", "grafana"])
    def test_an_image_of_others_is_a_release(self, name: str) -> None:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service(name)["image"])

    @pytest.mark.parametrize("name", [name for _, name in SERVICES])
    def test_it_may_do_little_and_take_a_part_of_the_machine(self, name: str) -> None:
        own = service(name)
        assert own["read_only"] is True
        assert own["cap_drop"] == ["ALL"]
        assert own["security_opt"] == ["no-new-privileges:true"]
        assert {"cpus", "memory"} <= own["deploy"]["resources"]["limits"].keys()

    @pytest.mark.parametrize("name", [name for _, name in SERVICES])
    def test_nothing_is_published_beyond_this_machine_unless_it_is_asked_for(self, name: str) -> None:
        for port in service(name).get("ports", []):
            assert port.startswith("127.0.0.1:"), port

    @pytest.mark.parametrize("name", [name for _, name in SERVICES])
    def test_what_is_mounted_is_there_and_declared(self, name: str) -> None:
        (file,) = [file for file, each in SERVICES if each == name]
        for mount in [*service(name)["volumes"], *TLS["services"].get(name, {}).get("volumes", [])]:
            if mount["type"] == "volume":
                assert mount["source"] in compose(file)["volumes"]
            else:
                assert mount["read_only"] is True
                assert (COMPOSE / mount["source"]).exists(), mount["source"]

    def test_every_secret_that_is_used_is_declared_and_none_else(self) -> None:
        services = [each for document in (PLAIN, TLS) for each in document["services"].values()]
        used = {secret for each in services for secret in each.get("secrets", [])}
        assert used == {*PLAIN["secrets"], *TLS["secrets"]}


class TestEdges:
    @pytest.mark.parametrize("name", EDGES)
    def test_its_threads_are_the_cores_that_it_may_use(self, name: str) -> None:
        own = service(name)
        assert float(own["deploy"]["resources"]["limits"]["cpus"]) == float(option(own["command"], "--threads") or 0)

    def test_its_models_leave_room_for_the_rest_of_the_process(self) -> None:
        models = float(option(service("edge")["command"], "--memory-limit-mb") or 0)
        assert 0 < models <= 0.6 * megabytes(service("edge")["deploy"]["resources"]["limits"]["memory"])

    @pytest.mark.parametrize("name", [*EDGES, "device"])
    def test_it_is_given_longer_to_stop_than_it_takes_to_drain(self, name: str) -> None:
        own = service(name)
        slow = {"serve-edge": "--drain-s", "run-device": "--timeout-s"}[own["command"][0]]
        seconds = float(option(own["command"], slow) or 10)  # both are 10 by default
        assert int(own["stop_grace_period"].removesuffix("s")) >= seconds + 10

    @pytest.mark.parametrize("name", EDGES)
    def test_the_port_inside_is_the_one_that_is_published_and_scraped(self, name: str) -> None:
        own = service(name)
        port = option(own["command"], "--port")
        assert own["ports"] == [f"127.0.0.1:{port}:{port}"]
        for file in ("prometheus.yml", "prometheus.tls.yml"):
            (job,) = yaml.safe_load((COMPOSE / "prometheus" / file).read_text())["scrape_configs"]
            (alias,) = own["networks"]["default"]["aliases"]
            assert job["static_configs"] == [{"targets": [f"{alias}:{port}"]}]

    @pytest.mark.parametrize("name", EDGES)
    def test_its_cache_is_a_volume_where_the_image_writes(self, name: str) -> None:
        own = service(name)
        places = {mount["target"] for mount in own["volumes"]}
        stage = image(own["build"]["target"])
        assert places == set(stage.words("VOLUME"))
        assert stage.environment["XDG_CACHE_HOME"] in places

    @pytest.mark.parametrize("name", EDGES)
    def test_with_tls_the_same_command_gets_files_that_are_mounted(self, name: str) -> None:
        plain, guarded = service(name)["command"], TLS["services"][name]["command"]
        assert guarded[: len(plain)] == plain
        added = dict(zip(guarded[len(plain) :: 2], guarded[len(plain) + 1 :: 2], strict=True))
        assert added.keys() == {"--tls-cert", "--tls-key", "--token-file"}
        secrets = {f"/run/secrets/{secret}" for secret in TLS["services"][name]["secrets"]}
        assert set(added.values()) == secrets
        url = TLS["services"][name]["environment"]["AECNN_HEALTH_URL"]
        assert url == f"https://127.0.0.1:{option(plain, '--port')}/healthz"

    def test_prometheus_shows_its_token_to_an_edge_with_tls(self) -> None:
        (job,) = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.tls.yml").read_text())["scrape_configs"]
        own = TLS["services"]["prometheus"]
        assert job["scheme"] == "https"
        files = {job["tls_config"]["ca_file"], job["authorization"]["credentials_file"]}
        assert files == {f"/run/secrets/{secret}" for secret in own["secrets"]}
        (mount,) = own["volumes"]
        assert f"--config.file={mount['target']}" in own["command"]

    def test_the_plain_and_the_guarded_scrape_differ_in_nothing_else(self) -> None:
        plain, guarded = (
            yaml.safe_load((COMPOSE / "prometheus" / name).read_text())
            for name in ("prometheus.yml", "prometheus.tls.yml")
        )
        for key in ("scheme", "tls_config", "authorization"):
            del guarded["scrape_configs"][0][key]
        assert plain == guarded


class TestGrafana:
    OWN = service("grafana")

    def provisioned(self, kind: str) -> dict[str, Any]:
        (path,) = (COMPOSE / "grafana" / "provisioning" / kind).iterdir()
        found = yaml.safe_load(path.read_text())
        assert found["apiVersion"] == 1
        return found

    def mounts(self) -> dict[str, str]:
        return {mount["target"]: mount["source"] for mount in self.OWN["volumes"]}

    def test_its_datasource_is_the_prometheus_beside_it(self) -> None:
        (source,) = self.provisioned("datasources")["datasources"]
        port = service("prometheus")["ports"][0].rpartition(":")[2]
        assert (source["type"], source["url"]) == ("prometheus", f"http://prometheus:{port}")
        scraped = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
        assert source["jsonData"]["timeInterval"] == scraped

    def test_its_dashboards_are_read_from_where_they_are_mounted(self) -> None:
        (provider,) = self.provisioned("dashboards")["providers"]
        folder = COMPOSE / self.mounts()[provider["options"]["path"]]
        home = self.OWN["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        assert home.startswith(provider["options"]["path"] + "/")
        assert json.loads((folder / Path(home).name).read_text())["title"]

    def test_it_waits_for_a_prometheus_that_says_how_it_is(self) -> None:
        assert self.OWN["depends_on"] == {"prometheus": {"condition": "service_healthy"}}
        assert service("prometheus")["healthcheck"]["test"][-1].endswith(":9090/-/ready")
        secret = self.OWN["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"]
        assert secret == f"/run/secrets/{self.OWN['secrets'][0]}"
