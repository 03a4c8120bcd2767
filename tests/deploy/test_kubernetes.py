"""`deploy/kubernetes/`: its objects fit together, and the times add up."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.reading import DEPLOY, LAST_SAVES_SECONDS, configuration, documents, tool

FOLDER = DEPLOY / "kubernetes"
(SECRET,) = documents(FOLDER / "secret.example.yaml")
(KUSTOMIZATION,) = documents(FOLDER / "kustomization.yaml")
(SET,) = documents(FOLDER / "statefulset.yaml")
SERVICES = {each["metadata"]["name"]: each for each in documents(FOLDER / "services.yaml")}
POD: Any = SET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
CONFIG = configuration(FOLDER / "config.yaml", **SECRET["stringData"])
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
LABELS = SET["spec"]["template"]["metadata"]["labels"]


def mount_of(path: str) -> str:
    """The volume that a path is in."""
    (name,) = (
        each["name"]
        for each in CONTAINER["volumeMounts"]
        if Path(path).is_relative_to(each["mountPath"])
    )
    return str(name)


def test_every_file_is_used() -> None:
    """By the kustomization, but for the two that it must not have."""
    generated = [file for each in KUSTOMIZATION["configMapGenerator"] for file in each["files"]]
    apart = {"kustomization.yaml", "secret.example.yaml", "podmonitor.yaml"}
    named = {*KUSTOMIZATION["resources"], *generated, *apart}
    assert named == {path.name for path in FOLDER.iterdir()}


def test_the_pod_is_given_what_it_reads() -> None:
    """The configuration where the command looks, the secrets in the environment, the image's name."""
    path = CONTAINER["args"][CONTAINER["args"].index("--config") + 1]
    volumes = {each["name"]: each for each in POD["volumes"]}
    (generator,) = KUSTOMIZATION["configMapGenerator"]
    assert {"name": generator["name"]} == volumes[mount_of(path)]["configMap"]
    assert [{"secretRef": {"name": SECRET["metadata"]["name"]}}] == CONTAINER["envFrom"]
    assert [CONTAINER["image"]] == [each["name"] for each in KUSTOMIZATION["images"]]
    assert CONFIG.fleet.url == SECRET["stringData"]["FLEET_URL"]
    assert KUSTOMIZATION["namespace"] == SECRET["metadata"]["namespace"]


def test_each_pod_has_a_journal_of_its_own_that_fits() -> None:
    """On a volume that outlives it, with room for what the journal may have; named as the pod is."""
    (claim,) = SET["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == mount_of(str(CONFIG.journal.directory))
    storage = claim["spec"]["resources"]["requests"]["storage"]
    assert int(storage.removesuffix("Gi")) << 30 >= 2 * CONFIG.journal.max_bytes
    assert CONFIG.fleet.replica is None
    assert "hostname" not in POD


def test_the_grace_covers_a_whole_stop() -> None:
    """The wait for balancers, the drain, the last saves, and then some."""
    _, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    least = float(pause) + CONFIG.server.drain_timeout_seconds + LAST_SAVES_SECONDS
    assert POD["terminationGracePeriodSeconds"] >= least + 10
    ready = CONTAINER["readinessProbe"]
    assert float(pause) > ready["periodSeconds"] * ready["failureThreshold"]


def test_probes_ask_what_they_are_for() -> None:
    """Whether it lives, of those that restart it; whether it can take traffic, of the other."""
    asked = {
        kind: (CONTAINER[kind]["httpGet"]["path"], CONTAINER[kind]["httpGet"]["port"])
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {
        "startupProbe": ("/healthz", "http"),
        "livenessProbe": ("/healthz", "http"),
        "readinessProbe": ("/readyz", "http"),
    } == asked


def test_ports_are_those_of_the_configuration() -> None:
    """Everywhere: the container's, the services', the scrapers', the firewall's."""
    configured = {"http": CONFIG.server.port, "operators": CONFIG.admin.port}
    assert configured == {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for each in SERVICES.values():
        for port in each["spec"]["ports"]:
            assert PORTS[port["targetPort"]] == port["port"]
    annotations = SET["spec"]["template"]["metadata"]["annotations"]
    assert str(CONFIG.admin.port) == annotations["prometheus.io/port"]
    (monitor,) = documents(FOLDER / "podmonitor.yaml")
    assert ["operators"] == [each["port"] for each in monitor["spec"]["podMetricsEndpoints"]]
    (policy,) = documents(FOLDER / "network.yaml")
    open_to = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert list(PORTS) == open_to


def test_everything_selects_the_pods() -> None:
    """By the labels that they have."""
    (budget,) = documents(FOLDER / "disruption.yaml")
    (policy,) = documents(FOLDER / "network.yaml")
    (monitor,) = documents(FOLDER / "podmonitor.yaml")
    selectors = [SET["spec"]["selector"]["matchLabels"]]
    selectors += [each["spec"]["selector"] for each in SERVICES.values()]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in (budget, monitor)]
    selectors += [policy["spec"]["podSelector"]["matchLabels"]]
    selectors += [each["labelSelector"]["matchLabels"] for each in POD["topologySpreadConstraints"]]
    assert [LABELS] * len(selectors) == selectors
    assert SET["spec"]["serviceName"] in SERVICES
    assert "None" == SERVICES[SET["spec"]["serviceName"]]["spec"]["clusterIP"]


def test_the_pod_has_no_rights() -> None:
    """Neither root nor a writable image, nor a token for the cluster."""
    assert POD["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert not CONTAINER["securityContext"]["allowPrivilegeEscalation"]
    assert not POD["automountServiceAccountToken"]


def test_replicas_stop_one_at_a_time() -> None:
    """In a rolling deploy, and when nodes are drained; one that stays is enough for what comes."""
    (budget,) = documents(FOLDER / "disruption.yaml")
    assert 1 == budget["spec"]["maxUnavailable"] < SET["spec"]["replicas"]
    assert "rollingUpdate" not in SET["spec"]["updateStrategy"]


@pytest.mark.parametrize("version", ["1.31.0", "1.37.0"])
def test_objects_are_those_of_kubernetes(version: str, tmp_path: Path) -> None:
    """Each as it is, by Kubernetes' own schemas, no key too many."""
    validate = tool("kubernetes-validate")
    if validate is None:
        pytest.skip("needs kubernetes-validate: make deploy")
    names = (*KUSTOMIZATION["resources"], "secret.example.yaml")
    files = [str(FOLDER / name) for name in names]
    done = subprocess.run(
        [validate, "--strict", "-k", version, *files], capture_output=True, text=True
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    count = sum(len(documents(Path(file))) for file in files)
    assert count == (done.stdout + done.stderr).count(" passed ")


def test_the_kustomization_builds() -> None:
    """With the real program: the map's name in the set is the generated one, and so is the image's."""
    kubectl = tool("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, and `make deploy`")
    done = subprocess.run([kubectl, "kustomize", str(FOLDER)], capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
    built = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    pod = built["StatefulSet"]["spec"]["template"]["spec"]
    (named,) = (each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each)
    assert built["ConfigMap"]["metadata"]["name"] == named != "verbatim"
    (image,) = KUSTOMIZATION["images"]
    assert f"{image['newName']}:{image['newTag']}" == pod["containers"][0]["image"]
