"""The Helm chart, as helm renders it: what Kubernetes' schemas say of it, what percept says of its
configuration, and what it promises."""

import base64
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/percept"
CASES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
# The oldest that the chart is for, and the newest whose schemas there are.
KUBERNETES = ["1.30", "1.37"]
# What others define, of which there are no schemas here.
OTHERS = {
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("inference.networking.k8s.io/v1", "InferencePool"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
}


def helm(*arguments):
    command = [os.environ["HELM"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=CHART, check=False)


def render(case, *more):
    """What is made of some values: objects by kind."""
    done = helm("template", "rel", ".", "--namespace", "space", "--values", f"ci/{case}.yaml", *more)
    assert done.returncode == 0, done.stderr
    objects = [part for part in yaml.safe_load_all(done.stdout) if part]
    # Claims come in two.
    found = {part["kind"]: part for part in objects}
    assert len({(part["kind"], part["metadata"]["name"]) for part in objects}) == len(objects)
    return objects, found


def pod(found):
    return found["Deployment"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("case", CASES)
def test_it_has_no_warnings(case):
    done = helm("lint", "--strict", ".", "--values", f"ci/{case}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_as_kubernetes_has_it(case, version):
    objects, _ = render(case, "--kube-version", f"{version}.0")
    assert len(objects) > 4
    for part in objects:
        if (part["apiVersion"], part["kind"]) not in OTHERS:
            kubernetes_validate.validate(part, version, strict=True)
        assert part["metadata"]["labels"]["app.kubernetes.io/instance"] == "rel"


@pytest.mark.parametrize("case", CASES)
def test_percept_starts_with_its_configuration(case, tmp_path):
    _, found = render(case)
    config = tomllib.loads(found["ConfigMap"]["data"]["config.toml"])
    assert (config["host"], config["port"]) == ("0.0.0.0", 8000)
    # As in the pod, but for where it is: models that are here, this machine, folders that can be written.
    model = ROOT / "tests/fixtures/llava"
    config |= {"host": "127.0.0.1", "port": 0, "model": [f"hear={model}"], "device": "cpu", "alias": []}
    config |= {"memory": 0.02} if "memory" in config else {}
    if "keys" in config:
        file = tmp_path / "keys.toml"
        secret = found.get("Secret", {}).get("data", {}).get("keys.toml")
        file.write_bytes(base64.b64decode(secret) if secret else b"")
        file.chmod(0o440)
        config["keys"] = str(file)
    if "audit" in config:
        config["audit"] = str(tmp_path / "audit")
    shown = "\n".join(f"{name} = {toml(value)}" for name, value in config.items())
    (tmp_path / "config.toml").write_text(shown)
    command = [os.environ["PERCEPT"], "serve", "--config", str(tmp_path / "config.toml")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        line = server.stdout.readline()
        server.terminate()
        assert "http://127.0.0.1:" in line, server.stderr.read()
        assert server.wait(timeout=60) == 0


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_values_come_as_they_were_said():
    _, found = render("one")
    config = tomllib.loads(found["ConfigMap"]["data"]["config.toml"])
    assert config["max_image_pixels"] == 40_000_000 and isinstance(config["max_image_pixels"], int)
    assert config["memory"] == 0.8
    assert config["alias"] == ["gpt-4o", "whisper-1=hear"]
    assert config["model"] == ["llava-hf/llava-1.5-7b-hf", "hear=openai/whisper-large-v3-turbo"]
    assert "insecure_no_keys" not in config
    _, found = render(
        "one", "--set-json", r'config.chat_template="a \"b\" \\ c"', "--set", "config.no_ui=true"
    )
    config = tomllib.loads(found["ConfigMap"]["data"]["config.toml"])
    assert (config["chat_template"], config["no_ui"]) == ('a "b" \\ c', True)


@pytest.mark.parametrize("case", CASES)
def test_it_may_do_as_little_as_it_can(case):
    _, found = render(case)
    spec = pod(found)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert found["ServiceAccount"]["automountServiceAccountToken"] is False
    # PERCEPT_PORT would be an address in a namespace that has a Service of that name.
    assert spec["enableServiceLinks"] is False
    written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert written <= {"/data", "/tmp", "/var/lib/percept/audit"}
    image = (ROOT / "Dockerfile.cuda").read_text()
    assert "--uid 10001" in image and "HF_HOME=/data" in image


def test_probes_ask_what_percept_answers():
    _, found = render("one", "--set", "startupSeconds=601")
    (container,) = pod(found)["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ["startup", "liveness", "readiness"]
    }
    assert paths == {"startup": "/live", "liveness": "/live", "readiness": "/ready"}
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 605
    drain = tomllib.loads(found["ConfigMap"]["data"]["config.toml"])["drain_seconds"]
    assert (
        pod(found)["terminationGracePeriodSeconds"]
        > drain + container["lifecycle"]["preStop"]["sleep"]["seconds"]
    )


def test_a_gpu_is_asked_for_where_there_is_one():
    _, found = render("one", "--set", "gpu.count=2")
    resources = pod(found)["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 2
    assert resources["limits"]["memory"] == "32Gi" and resources["requests"]["cpu"] == "4"
    _, found = render("processors")
    assert "nvidia" not in str(pod(found))
    assert tomllib.loads(found["ConfigMap"]["data"]["config.toml"])["device"] == "cpu"


def test_replicas_are_the_scalers_where_there_is_one():
    _, found = render("pool")
    assert "replicas" not in found["Deployment"]["spec"]
    scaled = found["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    trigger = scaled["triggers"][0]["metadata"]
    assert trigger["query"] == 'sum(percept_requests_waiting{namespace="space", service="rel-percept"})'
    assert trigger["threshold"] == "4"
    _, found = render("processors")
    assert "replicas" not in found["Deployment"]["spec"]
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "percept_requests_waiting"
    figures = (ROOT / "src/operations/metrics.rs").read_text()
    assert '"percept_requests_waiting"' in figures


def test_a_pool_and_its_service_choose_the_same_pods():
    _, found = render("pool")
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    spec = found["InferencePool"]["spec"]
    policies = [found["Service"]["spec"]["selector"], spec["selector"]["matchLabels"]]
    policies += [
        found[kind]["spec"]["selector"]["matchLabels"] for kind in ["PodDisruptionBudget", "Deployment"]
    ]
    policies.append(found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
    for selector in policies:
        assert selector and selector.items() <= labels.items()
    assert (
        found["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= found["Service"]["metadata"]["labels"].items()
    )
    assert spec["targetPorts"] == [{"number": 8000}]
    assert spec["endpointPickerRef"] == {
        "name": "percept-epp",
        "port": {"number": 9002},
        "failureMode": "FailOpen",
    }
    # What endpoint pickers look for.
    assert tomllib.loads(found["ConfigMap"]["data"]["config.toml"])["vllm_metrics"] is True


def test_rules_are_those_of_prometheus():
    _, found = render("one")
    assert found["PrometheusRule"]["spec"] == yaml.safe_load(
        (ROOT / "deploy/prometheus/alerts.yaml").read_text()
    )
    monitor = found["ServiceMonitor"]["spec"]
    # The rules say job="percept".
    assert found["Service"]["metadata"]["labels"][monitor["jobLabel"]] == "percept"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "percept-metrics-key", "key": "key"}


WRONG = {
    "who may ask?": ["--set", "keys.insecureNoKeys=false"],
    "which is meant?": ["--set", "keys.existingSecret=a"],
    "set persistence.accessModes={ReadWriteMany}": ["--set", "replicaCount=2"],
    "which one server writes": ["--set", "replicaCount=2,audit.enabled=true,persistence.enabled=false"],
    "config.port is set by the chart": ["--set", "config.port=1"],
    "minReplicas is above": ["--set", "autoscaling.minReplicas=9"],
    "additional properties 'replicas' not allowed": ["--set", "replicas=2"],
    "at '/gpu/count': minimum: got -1, want 0": ["--set", "gpu.count=-1"],
    "at '/autoscaling/mode'": ["--set", "autoscaling.mode=magic"],
    "invalid propertyName 'Port'": ["--set", "config.Port=1"],
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_would_not_work_is_told(reason):
    done = helm("template", ".", "--values", "ci/least.yaml", *WRONG[reason])
    assert done.returncode != 0
    assert reason in done.stderr, done.stderr


def test_notes_say_what_to_do_next(tmp_path):
    shutil.copytree(CHART, tmp_path / "chart")
    done = helm(
        "install",
        "rel",
        str(tmp_path / "chart"),
        "--dry-run=client",
        "--values",
        str(CHART / "ci/least.yaml"),
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    assert "port-forward service/rel-percept 8000:80" in notes
    assert "There are no keys" in notes


def test_every_value_is_explained():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    for name in values:
        assert f"`{name}" in readme, name
