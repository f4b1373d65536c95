"""The Kubernetes manifests: valid, overlays that build with every component, and parts that fit each other."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

from aecnn_deploy.runtimes.tokens import read_tokens
from tests.bundles import Edge, make_bundle, serving
from tests.deploy_files import DEPLOY, KUBERNETES, image, kustomized, of_kind, option
from tests.edge_client import get
from tests.test_docs import parse

RELEASE = "1.34"  # the oldest whose sleeping preStop is stable
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
FILES = sorted(KUBERNETES.rglob("*.yaml"))
MONITORING = "monitoring.coreos.com/v1"
Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[tuple[str, Document]]:
    """Every object that is written here and of Kubernetes itself, with its file."""
    return [
        (f"{path.relative_to(KUBERNETES)}: {document['kind']}", document)
        for path in FILES
        for document in documents(path)
        if path.name != "kustomization.yaml" and document["apiVersion"] != MONITORING
    ]


def kustomizations() -> dict[Path, Document]:
    return {path.parent: documents(path)[0] for path in FILES if path.name == "kustomization.yaml"}


def with_components(overlay: str, place: Path, *names: str) -> list[Document]:
    """What ``overlay`` gives with these components and no others."""
    shutil.copytree(KUBERNETES, place / "kubernetes")
    path = place / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    document = yaml.safe_load(path.read_text())
    document["components"] = [f"../../components/{name}" for name in names]
    path.write_text(yaml.safe_dump(document))
    return kustomized(path.parent)


# What each overlay is built with: nothing, all that go together, and the other way to a bundle.
BUILT = [
    ("cpu", ()),
    ("cpu", tuple(name for name in COMPONENTS if name != "bundle-image")),
    ("cpu", ("bundle-image", "tokens")),
    ("gpu", tuple(name for name in COMPONENTS if name not in ("bundle-image", "autoscaling"))),
]


@pytest.fixture(scope="module", params=BUILT, ids=lambda built: "+".join((built[0], *built[1])))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    overlay, names = request.param
    return with_components(overlay, tmp_path_factory.mktemp("built"), *names)


def pod_of(built: list[Document]) -> Document:
    pod = of_kind(built, "Deployment")["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


class TestFiles:
    @pytest.mark.parametrize(("name", "document"), manifests(), ids=[name for name, _ in manifests()])
    def test_it_is_what_kubernetes_allows(self, name: str, document: Document) -> None:
        assert kubernetes_validate.validate(document, RELEASE, strict=True) == RELEASE

    def test_the_schema_would_notice_a_wrong_key(self) -> None:
        (document,) = documents(KUBERNETES / "base" / "deployment.yaml")
        document["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, RELEASE, strict=True)

    def test_every_file_and_folder_that_a_kustomization_names_is_there(self) -> None:
        found = kustomizations()
        assert len(found) == 3 + len(COMPONENTS)
        for folder, document in found.items():
            for name in [*(document.get("resources") or []), *(document.get("components") or [])]:
                place = (folder / name).resolve()
                assert place.is_file() or (place / "kustomization.yaml").is_file(), f"{folder.name}: {name}"

    def test_every_file_belongs_to_a_kustomization_and_every_component_can_be_taken(self) -> None:
        named = {
            (folder / name).resolve()
            for folder, document in kustomizations().items()
            for name in document.get("resources") or []
        }
        rest = {path for path in FILES if path.name != "kustomization.yaml"} - named
        assert {path.name for path in rest} == {"secrets.example.yaml"}
        text = (KUBERNETES / "overlays" / "cpu" / "kustomization.yaml").read_text()
        offered = set(re.findall(r"components/([\w-]+)$", text, re.MULTILINE))
        assert offered == set(COMPONENTS) - {"bundle-image"}  # instead of bundle-pvc

    def test_the_tokens_of_the_example_are_a_token_file(self, tmp_path: Path) -> None:
        (secret,) = [each for each in documents(KUBERNETES / "secrets.example.yaml") if "tokens" in each["stringData"]]
        (tmp_path / "tokens").write_text(secret["stringData"]["tokens"])
        (tmp_path / "tokens").chmod(0o400)
        assert [token.name for token in read_tokens(tmp_path / "tokens")] == ["camera-1", "prometheus"]


class TestBuilt:
    def test_all_of_it_is_what_kubernetes_allows(self, built: list[Document]) -> None:
        for document in built:
            if document["apiVersion"] != MONITORING:
                kubernetes_validate.validate(document, RELEASE, strict=True)
            assert document["metadata"]["namespace"] == "aecnn"

    def test_what_it_starts_is_a_command_of_ours(self, built: list[Document]) -> None:
        (container,) = pod_of(built)["containers"]
        assert "command" not in container  # the image's own entry point
        parse(" ".join(container["args"]))

    def test_an_image_is_a_release_of_a_registry(self, built: list[Document]) -> None:
        pod = pod_of(built)
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert re.fullmatch(r"registry\.example/aecnn-\w+:[\w.-]+", container["image"])
            assert not container["image"].endswith(":latest")

    def test_its_threads_are_the_cores_that_it_may_use(self, built: list[Document]) -> None:
        (container,) = pod_of(built)["containers"]
        assert option(container["args"], "--threads") == container["resources"]["limits"]["cpu"]

    def test_its_models_leave_room_for_the_rest_of_the_process(self, built: list[Document]) -> None:
        (container,) = pod_of(built)["containers"]
        models = option(container["args"], "--memory-limit-mb")
        limit = re.fullmatch(r"(\d+)Gi", container["resources"]["limits"]["memory"])
        assert limit
        assert models is None or float(models) * 1e6 <= 0.6 * int(limit[1]) * 2**30

    def test_it_is_given_longer_to_stop_than_it_takes_to_drain(self, built: list[Document]) -> None:
        pod = pod_of(built)
        (container,) = pod["containers"]
        pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain_s = float(option(container["args"], "--drain-s") or 0)
        assert drain_s > 0
        assert pod["terminationGracePeriodSeconds"] >= pause_s + drain_s + 10
        # A router that asks for readiness knows of the end before the drain is over.
        ready = container["readinessProbe"]
        assert ready["periodSeconds"] * ready["failureThreshold"] < pause_s + drain_s

    def test_it_may_do_little_and_write_nowhere_but_into_volumes(self, built: list[Document]) -> None:
        pod, stage = pod_of(built), image("cpu")
        uid, gid = (int(number) for number in stage.all("USER")[0].split(":"))
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (uid, gid, gid)
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        writable = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {stage.environment["XDG_CACHE_HOME"], "/tmp"}

    def test_every_mount_has_its_volume_and_every_volume_its_claim(self, built: list[Document]) -> None:
        pod = pod_of(built)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = [
            mount["name"]
            for container in [*pod["containers"], *pod.get("initContainers", [])]
            for mount in container["volumeMounts"]
        ]
        assert set(mounted) == volumes.keys()
        claims = {each["metadata"]["name"] for each in built if each["kind"] == "PersistentVolumeClaim"}
        asked = [volume.get("persistentVolumeClaim") for volume in volumes.values()]
        assert claims == {each["claimName"] for each in asked if each}

    def test_files_that_it_is_given_are_keys_of_secrets_that_the_example_has(self, built: list[Document]) -> None:
        pod = pod_of(built)
        (container,) = pod["containers"]
        secrets = {each["metadata"]["name"]: each for each in documents(KUBERNETES / "secrets.example.yaml")}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for name in ("--tls-cert", "--tls-key", "--token-file"):
            if path := option(container["args"], name):
                (mount,) = [each for each in container["volumeMounts"] if path.startswith(each["mountPath"] + "/")]
                assert "subPath" not in mount  # else a renewed one never comes
                secret = volumes[mount["name"]]["secret"]
                assert Path(path).name in secrets[secret["secretName"]]["stringData"]
                assert secret["defaultMode"] == 0o440  # an edge warns of a token file that every user can read

    def test_probes_speak_as_the_edge_does(self, built: list[Document]) -> None:
        (container,) = pod_of(built)["containers"]
        scheme = "HTTPS" if option(container["args"], "--tls-cert") else "HTTP"
        (port,) = container["ports"]
        assert str(port["containerPort"]) == option(container["args"], "--port")
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[kind]["httpGet"]["scheme"] == scheme
            assert container[kind]["httpGet"]["port"] == port["name"]
        (service_port,) = of_kind(built, "Service")["spec"]["ports"]
        assert service_port["targetPort"] == port["name"]
        assert service_port["appProtocol"] == "kubernetes.io/" + {"HTTP": "ws", "HTTPS": "wss"}[scheme]

    def test_all_others_select_the_pods_of_the_deployment(self, built: list[Document]) -> None:
        deployment = of_kind(built, "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        selectors = [of_kind(built, "Service")["spec"]["selector"]]
        for kind in ("Deployment", "PodDisruptionBudget"):
            selectors.append(of_kind(built, kind)["spec"]["selector"]["matchLabels"])
        selectors += [each["spec"]["selector"]["matchLabels"] for each in built if each["kind"] == "PodMonitor"]
        selectors.append(of_kind(built, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
        for selector in selectors:
            assert selector
            assert selector.items() <= labels
        for scaler in [each for each in built if each["kind"] == "HorizontalPodAutoscaler"]:
            target = scaler["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
            assert "replicas" not in deployment["spec"]  # else each apply would undo the autoscaler


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    path = tmp_path_factory.mktemp("probed") / "bundle"
    make_bundle(path)
    with serving(path) as running:
        yield running


class TestAgainstAnEdge:
    def test_every_probe_and_scrape_asks_for_a_page_that_is_there(self, edge: Edge) -> None:
        (deployment,) = documents(KUBERNETES / "base" / "deployment.yaml")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (monitor,) = documents(KUBERNETES / "components" / "monitoring" / "pod-monitor.yaml")
        paths = {container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
        paths |= {endpoint["path"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        assert paths == {"/healthz", "/readyz", "/metrics"}
        assert {path: get(edge, path)[0] for path in paths} == dict.fromkeys(paths, 200)

    def test_the_ingress_leads_to_routes_that_are_there_and_to_nothing_else(self, edge: Edge) -> None:
        (ingress,) = documents(KUBERNETES / "components" / "ingress" / "ingress.yaml")
        (rule,) = ingress["spec"]["rules"]
        paths = {each["path"] for each in rule["http"]["paths"]}
        assert paths == {"/v1/stream", "/v1/classify", "/v2", "/readyz"}
        # A GET of it is refused; without a route it would be 404. What is no WebSocket is no stream, and 404, too.
        assert get(edge, "/v1/classify")[0] == 405
        assert get(edge, "/v2")[0] == 200
        kinds = {each["path"]: each["pathType"] for each in rule["http"]["paths"]}
        assert {path for path, kind in kinds.items() if kind != "Exact"} == {"/v2"}  # with all below it

    def test_a_proxy_waits_longer_than_the_edge_keeps_a_silent_stream(self) -> None:
        (ingress,) = documents(KUBERNETES / "components" / "ingress" / "ingress.yaml")
        notes = ingress["metadata"]["annotations"]
        for name in ("read", "send"):
            assert int(notes[f"nginx.ingress.kubernetes.io/proxy-{name}-timeout"]) > 300  # --idle-s


class _Endpoint(msgspec.Struct, forbid_unknown_fields=True):
    port: str
    path: str
    interval: str
    scheme: str
    scrape_timeout: str = msgspec.field(name="scrapeTimeout")
    relabelings: list[dict[str, str | list[str]]]


class TestOperator:
    """Its CRDs are not among Kubernetes' schemas: their structure, as far as it is used here."""

    def test_the_rules_are_those_of_the_compose_file(self) -> None:
        (rules,) = documents(KUBERNETES / "components" / "monitoring" / "rules.yaml")
        (plain,) = documents(DEPLOY / "compose" / "prometheus" / "alerts.yml")
        assert (rules["apiVersion"], rules["kind"]) == (MONITORING, "PrometheusRule")
        assert rules["spec"] == plain

    def test_the_monitor_scrapes_the_edge_s_port_under_the_name_that_the_rules_use(self) -> None:
        (monitor,) = documents(KUBERNETES / "components" / "monitoring" / "pod-monitor.yaml")
        assert (monitor["apiVersion"], monitor["kind"]) == (MONITORING, "PodMonitor")
        assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
        (endpoint,) = msgspec.convert(monitor["spec"]["podMetricsEndpoints"], list[_Endpoint])
        (deployment,) = documents(KUBERNETES / "base" / "deployment.yaml")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert endpoint.port in {port["name"] for port in container["ports"]}
        named = {each["targetLabel"]: each.get("replacement") for each in endpoint.relabelings}
        rules = (DEPLOY / "compose" / "prometheus" / "alerts.yml").read_text()
        assert set(re.findall(r'job="([\w-]+)"', rules)) == {named["job"]}
