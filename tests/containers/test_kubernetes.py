"""The manifests: what Kubernetes' own schemas say of them, and what keeps the program behind the gate."""

import copy
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest
import yaml
from docker.errors import APIError
from docker.models.containers import Container

from box_policy.policy.document import parse_document
from tests.containers import attacks
from tests.containers.pod import REPOSITORY, Pod, PodMaker, curl, python, run, wait_until
from tests.lab import Lab, plan

pytest_plugins = ["tests.containers.fixtures"]

DIRECTORY: Final = REPOSITORY / "configs" / "kubernetes"
OLDEST: Final = "1.29"
"""The first Kubernetes in which sidecars are on by default."""
NEWEST: Final = "1.33"

RESTRICTED_CAPABILITIES: Final = {"NET_BIND_SERVICE"}
"""What Pod Security's level "restricted" lets containers add."""

type Object = dict[str, Any]


def _documents(name: str) -> list[Object]:
    return [document for document in yaml.safe_load_all((DIRECTORY / name).read_text()) if document]


@pytest.fixture(scope="module")
def kustomization() -> Object:
    (document,) = _documents("kustomization.yaml")
    return document


@pytest.fixture(scope="module")
def objects(kustomization: Object) -> dict[str, Object]:
    documents = [document for name in kustomization["resources"] for document in _documents(name)]
    return {document["kind"]: document for document in documents}


@pytest.fixture
def pod_spec(objects: dict[str, Object]) -> Object:
    return copy.deepcopy(objects["Deployment"]["spec"]["template"]["spec"])


@pytest.fixture
def gate(pod_spec: Object) -> Object:
    return next(container for container in pod_spec["initContainers"] if container["name"] == "gate")


@pytest.fixture
def app(pod_spec: Object) -> Object:
    (container,) = pod_spec["containers"]
    return dict(container)


@pytest.fixture(scope="module")
def validate() -> Callable[[Object, str], None]:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate isn't installed")

    def validate(document: Object, version: str) -> None:
        assert kubernetes.validate(document, version, strict=True) == version

    return validate


def _walk(value: Any) -> Iterator[Object]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(part)


# What Kubernetes would say


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", ["Namespace", "Deployment", "NetworkPolicy"])
def test_objects_are_what_kubernetes_takes(
    validate: Callable[[Object, str], None], objects: dict[str, Object], kind: str, version: str
) -> None:
    validate(objects[kind], version)


def test_the_schemas_refuse_a_misspelt_field(
    validate: Callable[[Object, str], None], objects: dict[str, Object]
) -> None:
    deployment = copy.deepcopy(objects["Deployment"])
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["securityContext"]["allowPriviligeEscalation"] = False
    with pytest.raises(Exception, match="allowPriviligeEscalation"):
        validate(deployment, NEWEST)


def test_the_kustomization_names_what_is_there(kustomization: Object, objects: dict[str, Object]) -> None:
    assert kustomization["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    assert kustomization.keys() == {
        *("apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images"),
    }
    (generator,) = kustomization["configMapGenerator"]
    there = {path.name for path in DIRECTORY.iterdir()}
    assert there == {"kustomization.yaml", *kustomization["resources"], *generator["files"]}
    assert objects["Namespace"]["metadata"]["name"] == kustomization["namespace"]
    images = {found["image"] for found in _walk(objects["Deployment"]) if "image" in found}
    assert images == {image["name"] for image in kustomization["images"]}


def test_the_kustomization_renders() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which has kustomize in it, isn't installed")
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(DIRECTORY)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
    )
    objects = {document["kind"]: document for document in yaml.safe_load_all(rendered.stdout)}
    assert objects.keys() == {"Namespace", "ConfigMap", "Deployment", "NetworkPolicy"}
    assert objects["ConfigMap"]["metadata"]["name"] == "box-policy"
    assert {document["metadata"].get("namespace") for document in objects.values()} == {None, "sandbox"}


def test_the_policy_is_one(kustomization: Object) -> None:
    (generator,) = kustomization["configMapGenerator"]
    assert generator["files"] == ["policy.yaml"]
    assert parse_document((DIRECTORY / "policy.yaml").read_text(), name="policy.yaml").kind == "allowlist"


def test_the_policy_keeps_its_name_so_that_a_change_is_followed(
    kustomization: Object, pod_spec: Object, gate: Object
) -> None:
    (generator,) = kustomization["configMapGenerator"]
    assert generator["options"]["disableNameSuffixHash"] is True
    volumes = {volume["name"]: volume for volume in pod_spec["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in gate["volumeMounts"]}
    assert volumes[mounts["/etc/box-policy"]["name"]]["configMap"]["name"] == generator["name"]
    assert "subPath" not in mounts["/etc/box-policy"], "what is mounted by subPath isn't updated"


# What keeps the program behind the gate


def test_the_gate_is_a_sidecar_that_the_program_waits_for(pod_spec: Object, gate: Object) -> None:
    assert pod_spec["initContainers"][0] is gate, "what comes before it is held to no policy"
    assert gate["restartPolicy"] == "Always"
    assert gate["startupProbe"]["exec"]["command"] == ["box-policy", "status", "--ready"]


def test_the_gate_has_one_capability(gate: Object) -> None:
    context = gate["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert context["runAsUser"] == 0
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is context["privileged"] is False


def test_the_program_keeps_to_pod_security_restricted(pod_spec: Object, app: Object) -> None:
    context = {**pod_spec["securityContext"], **app["securityContext"]}
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not set(context["capabilities"].get("add", [])) - RESTRICTED_CAPABILITIES
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["allowPrivilegeEscalation"] is context["privileged"] is False
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["readOnlyRootFilesystem"] is True, "the containers share /etc/hosts and /etc/resolv.conf"


def test_the_pod_shares_nothing_with_its_node(pod_spec: Object) -> None:
    assert [pod_spec[name] for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")] == [
        False
    ] * 4
    assert pod_spec["automountServiceAccountToken"] is False
    assert not [volume for volume in pod_spec["volumes"] if "hostPath" in volume]


def test_the_control_socket_is_the_gates_alone(pod_spec: Object, gate: Object, app: Object) -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in gate["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_spec["volumes"]}
    assert "emptyDir" in volumes[mounts["/run/box-policy"]]
    assert not {mount["name"] for mount in app["volumeMounts"]} & set(mounts.values())


def test_the_network_policy_is_for_these_pods_and_knows_private_ranges(objects: dict[str, Object]) -> None:
    policy = objects["NetworkPolicy"]["spec"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    excepted = {cidr for block in _walk(policy["egress"]) for cidr in block.get("except", [])}
    assert {"10.0.0.0/8", "169.254.0.0/16", "fc00::/7", "fe80::/10"} <= excepted


def test_the_namespace_admits_the_gate(objects: dict[str, Object]) -> None:
    labels = objects["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged", "no other level admits NET_ADMIN"


# The pod's containers, on a Docker engine


class Kubelet:
    """Does with the manifest's containers what a node would, as far as Docker has it."""

    def __init__(self, maker: PodMaker, pod: Pod) -> None:
        self._maker = maker
        self._pod = pod
        self.control = maker.directory / f"{pod.directory.name}-control"
        """The emptyDir: everybody may write to it."""
        self.control.mkdir()
        self.control.chmod(0o777)
        self.config = maker.directory / f"{pod.directory.name}-config"
        """The ConfigMap's volume: everybody might write to it, but it is mounted read-only."""
        self.config.mkdir()
        self.config.chmod(0o777)
        self._generations = 0

    def project(self, policy: str) -> None:
        """Give the ConfigMap new data, by the swap of one link."""
        self._generations += 1
        data = self.config / f"..{self._generations}"
        data.mkdir()
        (data / "policy.yaml").write_text(policy)
        (self.config / "..data_tmp").symlink_to(data.name)
        (self.config / "..data_tmp").rename(self.config / "..data")
        if self._generations == 1:
            (self.config / "policy.yaml").symlink_to("..data/policy.yaml")

    def options(self, pod_spec: Object, container: Object) -> dict[str, Any]:
        """A container's security context, as Docker has it."""
        context = {**pod_spec["securityContext"], **container["securityContext"]}
        assert context["allowPrivilegeEscalation"] is False
        return {
            "user": f"{context['runAsUser']}:{context['runAsGroup']}",
            "cap_drop": context["capabilities"]["drop"],
            "cap_add": context["capabilities"].get("add", []),
            "read_only": context["readOnlyRootFilesystem"],
            "security_opt": ["no-new-privileges:true"],
        }

    def gate(self, pod_spec: Object, container: Object, environment: Mapping[str, str]) -> Container:
        """Start the gate, and wait for what the startup probe asks."""
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        started = self._maker.start(
            self._maker.image,
            entrypoint=container["command"],
            environment={**given, **environment},
            network_mode=f"container:{self._pod.holder.id}",
            volumes=[f"{self.config}:/etc/box-policy:ro", f"{self.control}:/run/box-policy"],
            healthcheck={"test": ["NONE"]},
            **self.options(pod_spec, container),
        )
        probe = container["startupProbe"]["exec"]["command"]
        wait_until(lambda: run(started, *probe).status == 0, "the startup probe")
        return started


def test_its_containers_do_what_they_should(
    make_pod: PodMaker, world: Lab, pod_spec: Object, gate: Object, app: Object
) -> None:
    pod = make_pod()
    kubelet = Kubelet(make_pod, pod)
    kubelet.project("mode: custom\nallowed_domains: [allowed.test]\n")
    running = kubelet.gate(pod_spec, gate, {"BOX_POLICY_NAME_SERVERS": plan.NAMESERVER4})
    program = pod.program(**kubelet.options(pod_spec, app))
    assert run(running, *gate["livenessProbe"]["exec"]["command"]).status == 0
    assert curl(program, "http://allowed.test/").output.endswith(" 200")
    assert curl(program, "http://evil.test/").status != 0
    print(python(program, attacks.program(attacks.DIRECT)).output)
    assert world.packets(plan.EVIL4) == world.packets(plan.EVIL6) == []
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        assert run(program, "sh", "-c", f"echo x >> {path}").status != 0

    kubelet.project("mode: custom\nallowed_domains: [evil.test]\n")
    wait_until(lambda: curl(program, "http://evil.test/").output.endswith(" 200"), "the new ConfigMap", 10)
    assert curl(program, "http://allowed.test/").status != 0


def test_the_gate_has_to_close_its_volume_to_others_first(
    make_pod: PodMaker, pod_spec: Object, gate: Object
) -> None:
    kubelet = Kubelet(make_pod, make_pod())
    kubelet.project("mode: deny-all\n")
    with pytest.raises(APIError, match="is not running"):
        kubelet.gate(pod_spec, {**gate, "command": ["box-policy", "gate"]}, {})
