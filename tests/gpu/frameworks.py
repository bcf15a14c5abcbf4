#!/usr/bin/env python3
"""Whether what vramguard injects holds on a real GPU: frameworks.py torch|jax|mps [...].

It asks `vramguard explain` what a container gets, starts a process with exactly that, and lets it take memory until
something refuses more. No cluster is needed: the snapshot is one node with the GPU of this machine. `torch` and `jax`
need these packages; `mps` needs libcuda and nvidia-cuda-mps-control alone, and stops a daemon that it started.

Environment: B, the directory with the program `vramguard`; W, a directory for files; DECLARED, in MiB (8192).
Exit code: 0 if all holds, 1 if not, 2 if the machine cannot run it.
"""

import json
import os
import subprocess
import sys
import tempfile

B, W = os.environ["B"], os.environ.get("W") or tempfile.mkdtemp()
DECLARED = int(os.environ.get("DECLARED", "8192"))
OVERHEAD = 720  # perProcessOverhead, by default
BLOCK = 64  # MiB that are taken at once

failures = []


def expect(condition, what):
    print("  ok:" if condition else "  FAILED:", what, flush=True)
    if not condition:
        failures.append(what)


def smi(fields):
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"]
    return [int(value) for value in subprocess.run(query, check=True, capture_output=True, text=True).stdout.split(",")]


def explained(image, env=(), sharing="time-slicing"):
    """What vramguard injects into a container with this image on a node with this GPU, and what bounds it."""
    total, _ = smi("memory.total,memory.reserved")
    labels = {
        "nvidia.com/gpu.memory": str(total), "nvidia.com/gpu.count": "1", "nvidia.com/gpu.replicas": "4",
        "nvidia.com/gpu.sharing-strategy": sharing, "nvidia.com/gpu.product": "this-one",
    }
    node = {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "here", "labels": labels},
        "status": {"capacity": {"nvidia.com/gpu": "4"}, "allocatable": {"nvidia.com/gpu": "4"}},
    }
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ml", "annotations": {"vramguard.dev/vram": f"{DECLARED}Mi"}},
        "spec": {"containers": [{
            "name": "main", "image": image, "resources": {"limits": {"nvidia.com/gpu": "1"}},
            "env": [{"name": name, "value": value} for name, value in env],
        }]},
    }
    policy = {
        "apiVersion": "vramguard.dev/v1alpha1", "kind": "ClusterVramPolicy", "metadata": {"name": "cluster"},
        "spec": {"mode": "Enforce"},
    }
    os.makedirs(f"{W}/policies", exist_ok=True)
    for name, content in [("node.yaml", node), ("pod.yaml", pod), ("policies/cluster.yaml", policy)]:
        with open(f"{W}/{name}", "w") as file:
            json.dump(content, file)  # JSON is YAML
    command = [
        f"{B}/vramguard", "explain", "--policies", f"{W}/policies", "--pod", f"{W}/pod.yaml", "--snapshot",
        f"{W}/node.yaml", "--output", "json",
    ]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    container = answer["pod"]["containers"][0]
    told = dict(env) | dict(text.split("=", 1) for text in container["injectedEnv"] + container["editedEnv"])
    print(f"  told: {told}; {container['bound']}")
    return told, container["boundedBy"]


def run(code, env):
    """Runs Python with only these variables in addition, and returns the last line that it prints, as JSON."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTORCH_", "XLA_", "CUDA_MPS_PINNED"))}
    done = subprocess.run([sys.executable, "-c", code], env=inherited | env, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        expect(False, f"the process ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        return {"taken": 0, "used": 0}
    return json.loads(lines[-1])


def keeps_to(taken, most, what):
    expect(taken <= most, f"{what}: took {taken} MiB of at most {most}")
    expect(taken >= most * 0.95, f"{what}: could take {taken} MiB of {most}")


USED = """
def used():
    import os, subprocess
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    rows = [row.split(",") for row in subprocess.run(query, capture_output=True, text=True).stdout.splitlines()]
    return sum(int(mib) for pid, mib in rows if int(pid) == os.getpid() and mib.strip().isdigit())
"""

TORCH = USED + f"""
import json, torch
blocks = []
try:
    while True:
        blocks.append(torch.empty({BLOCK} << 20, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError:
    print(json.dumps({{"taken": {BLOCK} * len(blocks), "used": used(), "version": torch.__version__}}))
"""


def torch():
    version = subprocess.run(
        [sys.executable, "-c", "import torch; print('.'.join(torch.__version__.split('.')[:2]))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()
    for name, env in [("nothing of its own", ()), ("a list of its own", [("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")])]:
        told, by = explained(f"pytorch/pytorch:{version}.0-runtime", env)
        found = run(TORCH, told)
        expect(by == "allocator", f"torch {version}, {name}: bounded by the {by}")
        keeps_to(found["taken"], DECLARED, f"torch {version}, {name}")
        expect(found["used"] <= DECLARED + OVERHEAD, f"torch, {name}: the card shows {found['used']} MiB, demanded are {DECLARED + OVERHEAD}")


JAX = USED + f"""
import json, jax, jax.numpy as jnp
blocks, limit = [], jax.local_devices()[0].memory_stats()["bytes_limit"] >> 20
try:
    while True:
        blocks.append(jax.block_until_ready(jnp.zeros({BLOCK} << 20, dtype=jnp.uint8)))
except Exception as error:
    assert "RESOURCE_EXHAUSTED" in str(error), error
    print(json.dumps({{"taken": {BLOCK} * len(blocks), "limit": limit, "used": used()}}))
"""


def jax():
    for name, env in [("the name that is injected", ()), ("its own newer name", [("XLA_CLIENT_MEM_FRACTION", "0.01")])]:
        told, by = explained("nvcr.io/nvidia/jax:25.10-py3", env)
        found = run(JAX, told)
        expect(by == "allocator", f"jax, {name}: bounded by the {by}")
        total, reserved = smi("memory.total,memory.reserved")
        most = DECLARED if not env else -(-(total - reserved) // 100)
        keeps_to(found.get("limit", 0), most, f"jax, {name}, by its own word")
        expect(found["taken"] <= most, f"jax, {name}: took {found['taken']} MiB of at most {most}")
        expect(found["used"] <= DECLARED + OVERHEAD, f"jax, {name}: the card shows {found['used']} MiB")


DRIVER = f"""
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
device, context, pointer, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_size_t()
for status in [cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), 0),
               cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), cuda.cuCtxSetCurrent(context),
               cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)]:
    assert status == 0, status
taken = 0
while (status := cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t({BLOCK} << 20))) == 0:
    taken += {BLOCK}
assert status == 2, status
print(json.dumps({{"taken": taken, "total": total.value >> 20}}))
"""


def mps():
    folder = {"CUDA_MPS_PIPE_DIRECTORY": f"{W}/mps", "CUDA_MPS_LOG_DIRECTORY": f"{W}/mps-log"}
    for path in folder.values():
        os.makedirs(path, exist_ok=True)
    env = os.environ | folder
    subprocess.run(["nvidia-cuda-mps-control", "-d"], env=env, check=True)
    try:
        told, by = explained("example.com/agent:1", sharing="mps")
        expect(by == "driver", f"mps: bounded by the {by}")
        found = run(DRIVER, told | folder)
        # The limit is of the demand, and the context of the process is part of it.
        expect(DECLARED <= found["taken"] <= DECLARED + OVERHEAD, f"mps: any program took {found['taken']} MiB, {DECLARED} declared, {DECLARED + OVERHEAD} demanded")
        total, reserved = smi("memory.total,memory.reserved")
        expect(abs(found.get("total", 0) - (total - reserved)) < 64, f"mps: CUDA reports the whole GPU, {found.get('total')} MiB")
        free = run(DRIVER, folder)
        expect(free["taken"] > DECLARED + OVERHEAD, f"mps: without the variable a process takes {free['taken']} MiB")
    finally:
        subprocess.run(["nvidia-cuda-mps-control"], env=env, input="quit\n", text=True)


PHASES = {"torch": torch, "jax": jax, "mps": mps}


def main():
    names = sys.argv[1:]
    if not names or any(name not in PHASES for name in names):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    for name in names:
        print(name, flush=True)
        try:
            PHASES[name]()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name} cannot run here: {error}", file=sys.stderr)
            sys.exit(2)
    sys.exit(1 if failures else 0)


main()
