"""What the phases share: pods that hold GPU memory, and four sources that are compared: the API server, the kubelet's
device checkpoint, nvidia-smi and the agent. Nothing here uses vramguard's code, so that it can check vramguard.
"""

import csv
import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

W, NODE, PRETEND = os.environ["W"], os.environ["NODE"], os.environ["GPU"] == "none"
CHECKPOINT = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
GPU, VRAM = "nvidia.com/gpu", "vramguard.dev/vram"
HELD = f"{W}/held"
REPLICAS = int(os.environ["REPLICAS"])
API = f"https://{os.environ['IP']}:443"

failures = []


def say(*words):
    print(time.strftime("[%H:%M:%S]"), *words, flush=True)


def expect(condition, what):
    """Notes a fact that has to hold. A phase goes on, so that one run shows all that is wrong."""
    print("  ok:" if condition else "  FAILED:", what, flush=True)
    if not condition:
        failures.append(what)


def finish():
    sys.exit(f"{len(failures)} expectations failed" if failures else 0)


def wait(what, seconds, look, pause=0.1):
    """Calls `look` until it returns something, and returns that; `None` after so many seconds."""
    end = time.time() + seconds
    while time.time() < end:
        if found := look():
            return found
        time.sleep(pause)
    say(f"after {seconds} s still no: {what}")
    return None


# The API server.


def api(method, path, body=None, kind="application/json"):
    request = urllib.request.Request(API + path, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("Authorization", "Bearer token-admin")
    request.add_header("Content-Type", kind)
    trust = ssl.create_default_context(cafile=f"{W}/tls/apiserver.crt")
    try:
        with urllib.request.urlopen(request, context=trust, timeout=20) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        error.msg = error.read().decode(errors="replace")
        raise


def exists(path):
    try:
        return bool(api("GET", path))
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return False


def namespace(name):
    try:
        api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
    wait(f"service account of {name}", 20, lambda: api("GET", f"/api/v1/namespaces/{name}/serviceaccounts")["items"])


def pods(space=None):
    path = f"/api/v1/namespaces/{space}/pods" if space else "/api/v1/pods"
    return api("GET", path)["items"]


def container(name, told, take, **settings):
    """A container with one process that takes `take` MiB, and tells about it in the file `told`. `settings` are those of
    holder.rs."""
    settings = {"TAKE_MIB": take, "HELD": "/held", "PRETEND": int(PRETEND), "POD_NAME": told, **settings}
    return {
        "name": name,
        "image": "gpu.test/holder:1",
        "imagePullPolicy": "Never",
        "command": ["/bin/holder"],
        "env": [{"name": key, "value": str(value)} for key, value in settings.items()],
        "resources": {"limits": {GPU: "1"}},
        "volumeMounts": [{"name": "held", "mountPath": "/held"}],
    }


def create(space, name, take, declare=None, grace=1, inits=(), others=(), change=lambda pod: None, **settings):
    """A pod with one process that takes `take` MiB, and declares `declare` MiB. `settings` are those of holder.rs, `inits`
    and `others` further containers, and `change` gets the pod before it is created."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": {VRAM: f"{declare}Mi"} if declare else {}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "dnsPolicy": "Default",
            "volumes": [{"name": "held", "hostPath": {"path": HELD}}],
            "initContainers": list(inits),
            "containers": [container("main", name, take, **settings), *others],
        },
    }
    change(pod)
    os.makedirs(HELD, exist_ok=True)
    if os.path.exists(f"{HELD}/{name}"):
        os.remove(f"{HELD}/{name}")
    return api("POST", f"/api/v1/namespaces/{space}/pods", pod)


def delete(space, name, grace=1):
    body = {"gracePeriodSeconds": grace, "propagationPolicy": "Background"}
    return api("DELETE", f"/api/v1/namespaces/{space}/pods/{name}", body)


def clear(space):
    """Deletes the pods, and waits until they and their processes are gone."""
    for pod in pods(space):
        delete(space, pod["metadata"]["name"])
    wait(f"empty namespace {space}", 90, lambda: not pods(space))
    wait("empty GPUs", 30, lambda: not processes())


def word(name):
    """What a holder last told: (what, seconds since 1970, rest), or `None`."""
    try:
        what, seconds, rest = open(f"{HELD}/{name}").read().strip().split(" ", 2)
        return what, float(seconds), rest
    except (OSError, ValueError):
        return None


def state(pod):
    """ready, died, done, rejected, waiting, or starting."""
    status, told = pod["status"], word(pod["metadata"]["name"])
    if status["phase"] == "Failed":
        # The kubelet gives a reason where it refuses a pod, and none where a container ended.
        return "rejected" if status.get("reason") else "died"
    if status["phase"] == "Succeeded":
        return "done"
    if told and told[0] == "died":
        return "died"
    if not pod["spec"].get("nodeName"):
        return "waiting"
    return "ready" if told else "starting"


def why(pod):
    """Why a pod has failed, as the kubelet or the process itself tells."""
    ended = [c["state"].get("terminated") for c in pod["status"].get("containerStatuses", [])]
    codes = [f"{e['reason']} {e['exitCode']}" for e in ended if e]
    told = word(pod["metadata"]["name"])
    return pod["status"].get("reason") or ", ".join(codes + [told[2]] if told and told[0] == "died" else codes) or "unknown"


def states(space):
    found = {}
    for pod in pods(space):
        found.setdefault(state(pod), []).append(pod["metadata"]["name"])
    return found


def tally(space):
    return {what: len(names) for what, names in sorted(states(space).items())}


def settle(space, seconds=90, quiet=5):
    """Waits until no pod is on its way for some seconds, and returns the tally."""
    end, since, last = time.time() + seconds, time.time(), None
    while time.time() < end:
        now = tally(space)
        if now != last or now.get("starting"):
            last, since = now, time.time()
        if time.time() - since >= quiet:
            return now
        time.sleep(0.3)
    say("not settled:", states(space))
    return last


def ledger():
    try:
        return api("GET", f"/apis/vramguard.dev/v1alpha1/gpuledgers/{NODE}")
    except urllib.error.HTTPError:
        return {}


def ledger_gpus():
    """{GPU: its part of the ledger's status}. Without an agent, a GPU is its position."""
    return {gpu["gpu"]: gpu for gpu in ledger().get("status", {}).get("gpus", [])}


def capacity():
    """What each GPU can be promised, in MiB, by uuid."""
    gpus = wait("ledger", 20, ledger_gpus) or {}
    by_index = {str(gpu["index"]): gpu["allocatableMiB"] for gpu in gpus.values()}
    return {uuid: by_index.get(str(card["index"]), 0) for uuid, card in cards().items()}


def node():
    return api("GET", f"/api/v1/nodes/{NODE}")


def mode():
    conditions = node()["status"]["conditions"]
    return next((c["reason"] for c in conditions if c["type"] == "VramAccounted"), "none")


def mib(quantity):
    units = {"Ki": 1 / 1024, "Mi": 1, "Gi": 1024, "": 1 / (1 << 20)}
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", quantity).groups()
    return int(int(number) * units[unit])


def requested(containers):
    return [mib(c["resources"].get("requests", {}).get(VRAM, "0")) for c in containers]


def demand(pod):
    """What the pod counts with in MiB, by its requests: all containers that run together, or an init container."""
    inits = pod["spec"].get("initContainers", [])
    sidecars = sum(requested([c for c in inits if c.get("restartPolicy") == "Always"]))
    once = requested([c for c in inits if c.get("restartPolicy") != "Always"])
    return max([sidecars + sum(requested(pod["spec"]["containers"])), *(sidecars + size for size in once)])


# The kubelet.


def placements():
    """The GPU of each container by the kubelet's checkpoint: {(pod uid, container): uuid}."""
    entries = json.load(open(CHECKPOINT))["Data"]["PodDeviceEntries"] or []
    found = {}
    for entry in entries:
        if entry["ResourceName"] == GPU:
            ids = [i for group in entry["DeviceIDs"].values() for i in group]
            found[entry["PodUID"], entry["ContainerName"]] = {i.split("::")[0] for i in ids}
    return found


# The driver, by nvidia-smi.


def smi(query):
    out = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True)
    return [[cell.strip() for cell in row] for row in csv.reader(out.stdout.splitlines()) if row]


def cards():
    """{uuid: {index, total, reserved, used}}, in MiB."""
    rows = smi("--query-gpu=index,uuid,memory.total,memory.reserved,memory.used")
    return {r[1]: {"index": int(r[0]), "total": int(r[2]), "reserved": int(r[3]), "used": int(r[4])} for r in rows}


def processes():
    """[(pid, gpu uuid, MiB)]"""
    return [(int(r[0]), r[1], int(r[2])) for r in smi("--query-compute-apps=pid,gpu_uuid,used_memory")]


def pod_of(pid):
    """The uid of the pod of a process, by its cgroup."""
    try:
        text = open(f"/proc/{pid}/cgroup").read()
    except OSError:
        return None
    found = re.search(r"pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})", text)
    return found and found[1].replace("_", "-")


def used_text():
    return ", ".join(f"GPU {c['index']}: {c['used']} of {c['total']} MiB" for c in cards().values())


# The agent.


def agent_pod():
    found = [p for p in pods("vramguard-agent") if p["status"].get("podIP") and not p["metadata"].get("deletionTimestamp")]
    return found[0] if found else None


def agent_id():
    """The id of the agent's process on this machine."""
    pod = agent_pod()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = open(f"/proc/{pid}/cmdline").read().split("\0")
        except OSError:
            continue
        if pod and command[0].endswith("/vramguard") and "agent" in command and pod_of(pid) == pod["metadata"]["uid"]:
            return int(pid)
    return None


def metrics(address=None):
    """The agent's metrics: [(name, labels, value)]."""
    address = address or agent_pod()["status"]["podIP"]
    text = urllib.request.urlopen(f"http://{address}:8081/metrics", timeout=5).read().decode()
    found = []
    for line in text.splitlines():
        if match := re.fullmatch(r"vramguard_agent_(\w+?)(\{(.*)\})? (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[3] or ""))
            found.append((match[1], labels, float(match[4])))
    return found


# The check.


def check(space, steered=True):
    """Compares where pods are with where the ledger has them, and what each GPU holds with what it can."""
    on, most, holds, wrong, unplaced = placements(), capacity(), {}, [], []
    running = [p for p in pods(space) if state(p) in ("ready", "starting")]
    for pod in running:
        name = pod["metadata"]["name"]
        for each in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            found = on.get((pod["metadata"]["uid"], each["name"]))
            if not found:
                unplaced.append(f"{name}/{each['name']}")
                continue
            (gpu,) = found
            if each["name"] == "main":
                holds.setdefault(gpu, []).append(demand(pod))
            reserved = pod["metadata"]["annotations"].get(f"vramguard.dev/gpu.{each['name']}")
            if steered and reserved != gpu:
                wrong.append(f"{name}/{each['name']}: annotation {reserved}, kubelet {gpu}")
    if steered:
        expect(running and not wrong, f"{len(running)} of {len(running)} pods are on the GPU of their annotation {wrong or ''}")
    expect(not unplaced, f"the kubelet's checkpoint has a GPU for each of them {unplaced or ''}")
    for gpu, demands in sorted(holds.items()):
        expect(sum(demands) <= most[gpu], f"{gpu}: {len(demands)} pods hold {sum(demands)} of {most[gpu]} MiB")
    return {gpu: sum(demands) for gpu, demands in holds.items()}
