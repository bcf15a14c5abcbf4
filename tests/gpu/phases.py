"""The phases: phase.sh NAME [ARGUMENT]. Each prints what it saw, and exits with 1 if something did not hold."""

import os
import random
import sys
import threading
import time

from lab import *

OVERHEAD = 720  # perProcessOverhead, by default
GIB = 1024
TORCH = os.environ.get("TORCH", "2.11")  # version of the PyTorch under /opt
CROWD = 12 * len(cards())


def arrivals(count):
    """Demands of a mixed crowd in MiB, small ones and large ones, in an order that is always the same."""
    shares = [7] * 12 + [20] * 5 + [60] * 2 + [100]
    sizes = [shares[i % len(shares)] * GIB for i in range(count)]
    random.Random(11).shuffle(sizes)
    return sizes


def crowd(space, sizes, **settings):
    namespace(space)
    for number, size in enumerate(sizes):
        create(space, f"{space}-{number:02}-{size // GIB}g", size, size, **settings)


def held(space):
    return sum(demand(p) for p in pods(space) if state(p) in ("ready", "starting"))


def taken(space):
    """What the processes were given, in MiB, by their own word."""
    return sum(int(word(n)[2]) for n in states(space).get("ready", []))


def out_of_band():
    """What counts as out of band by the agent's report: {index of the GPU: MiB}."""
    gpus = ledger().get("status", {}).get("agent", {}).get("gpus", [])
    return {gpu["index"]: gpu["outOfBandMiB"] for gpu in gpus if gpu.get("outOfBandMiB")}


def nothing_out_of_band(seconds=130):
    """Waits until the agent reports that pods may use all of each GPU again, and says what it measured meanwhile."""
    start, last = time.time(), None
    while time.time() - start < seconds:
        by_metric = {l["index"]: int(v / (1 << 20)) for n, l, v in metrics() if n == "gpu_memory_out_of_band_bytes" and v}
        now = (out_of_band(), by_metric)
        if now != last:
            say(f"  out of band after {time.time() - start:.1f} s: reported {now[0]}, by the metrics {now[1]}; {used_text()}")
        last = now
        if not now[0]:
            return
        time.sleep(0.5)


def unguarded():
    """The mixed crowd before vramguard is installed."""
    sizes = arrivals(CROWD)
    say(f"without the guard: {CROWD} pods that take {sum(sizes) // GIB} GiB in all")
    crowd("bare", sizes)
    tally = settle("bare")
    say(f"  {tally}; taken {taken('bare')} MiB; {used_text()}")
    for name in states("bare").get("died", [])[:3]:
        say("  ", name, word(name))
    clear("bare")


def burst(label):
    """The same crowd at once, under the guard."""
    sizes, space = arrivals(CROWD), f"burst-{label}"
    total = sum(capacity().values())
    say(f"{label} ({mode()}): {CROWD} pods that declare {sum(sizes) // GIB} GiB in all, on {total} MiB")
    crowd(space, sizes)
    found = settle(space)
    say(f"  {found}; {held(space)} MiB held = {held(space) * 100 // total} %; taken {taken(space)} MiB; {used_text()}")
    expect(not found.get("died") and not found.get("rejected"), "none died")
    check(space, label == "steered")
    if label == "steered":
        # Two that hold much end, and what waits takes their place.
        for name in sorted(states(space)["ready"], key=lambda n: -int(n.split("-")[-1][:-1]))[:2]:
            say(f"  {name} ends")
            delete(space, name)
        found = settle(space)
        say(f"  {found}; {held(space)} MiB held = {held(space) * 100 // total} %; {used_text()}")
        expect(not found.get("died") and not found.get("rejected"), "none died")
        check(space)
    clear(space)


def churn(label):
    """Pods that come one by one and end after a while, for 60 s: how much of the memory is promised on average."""
    space, length, stay = f"churn-{label}", 60, 12
    namespace(space)
    sizes = arrivals(length)
    total = sum(capacity().values())
    say(f"{label} ({mode()}): a pod a second for {length} s, each ends {stay} s after it was ready")
    stop, samples = threading.Event(), []

    def sample():
        while not stop.wait(1):
            live, on = pods(space), placements()
            sums = {}
            for pod in live:
                gpu = on.get((pod["metadata"]["uid"], "main"))
                if gpu and state(pod) in ("ready", "starting"):
                    sums[min(gpu)] = sums.get(min(gpu), 0) + demand(pod)
            samples.append((sum(demand(p) for p in live if state(p) in ("ready", "starting")), sums))

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.time()
    for number, size in enumerate(sizes):
        create(space, f"{space}-{number:02}-{size // GIB}g", size, size, HOLD_S=stay)
        time.sleep(max(0, start + number + 1 - time.time()))
    stop.set()
    sampler.join()
    half = samples[len(samples) // 4 :]
    mean = sum(s[0] for s in half) / len(half)
    say(f"  {tally(space)}; mean of {len(half)} samples after the first quarter: {mean:.0f} MiB held = {mean * 100 / total:.1f} %")
    most = capacity()
    over = [s[1] for s in samples if any(v > most[g] for g, v in s[1].items())]
    expect(not over, f"in none of {len(samples)} samples a GPU is overcommitted {over[:2] or ''}")
    expect(not states(space).get("died") and not states(space).get("rejected"), "none died")
    large = {s: [p for p in pods(space) if p["metadata"]["name"].endswith(f"-{s}g")] for s in (7, 20, 60, 100)}
    started = {s: f"{sum(state(p) != 'waiting' for p in of)} of {len(of)}" for s, of in large.items()}
    say(f"  started, by GiB: {started}")
    clear(space)


def truth():
    """The agent's figures beside those of nvidia-smi."""
    namespace("truth")
    for number, size in enumerate([1000, 2048, 3333, 5000, 7000]):
        create("truth", f"truth-{number}", size, size)
    say(f"five pods: {settle('truth', quiet=4)}")
    time.sleep(3)
    once = json.loads(subprocess.run(["vramguard", "agent", "--once", "--output", "json"], capture_output=True, text=True, check=True).stdout)
    for gpu in once["gpus"]:
        card = cards()[gpu["uuid"]]
        theirs, ours = [card[k] for k in ("total", "reserved", "used")], [gpu[k] for k in ("totalMiB", "reservedMiB", "usedMiB")]
        # nvidia-smi counts the reserve apart from what is used, as NVML's second version does.
        expect(theirs == ours, f"GPU {card['index']} total, reserved, used: nvidia-smi {theirs}, agent --once {ours}")
        listed = {p["pid"]: (p["usedMiB"], p.get("podUid")) for p in gpu["processes"]}
        real = {pid: (size, pod_of(pid)) for pid, on, size in processes() if on == gpu["uuid"]}
        expect(listed == real, f"  {len(real)} processes with memory and pod: nvidia-smi and cgroups, agent --once: {sorted(real.values())}")
        say("  one more than", listed) if listed != real else None
    seen = {(l["pod"], l["container"]): v / (1 << 20) for n, l, v in metrics() if n == "container_memory_used_bytes"}
    by_pod = {p["metadata"]["uid"]: p["metadata"]["name"] for p in pods("truth")}
    real = {(by_pod.get(pod_of(pid), "?"), "main"): size for pid, _, size in processes()}
    expect(seen == real, f"the agent's pod sees the use of {len(real)} containers: {seen} nvidia-smi {real}")
    on = placements()
    section = wait("placements in the report", 10, lambda: (s := ledger()["status"]["agent"]) and len(s.get("pods", [])) >= 5 and s)
    told = {(p["uid"], p["container"]): {p["gpu"]} for p in (section or {}).get("pods", [])}
    live = {key: gpu for key, gpu in on.items() if key[0] in by_pod}
    expect(told == live, f"status.agent.pods has the GPUs of the kubelet's checkpoint: {len(told)} of {len(live)}")
    expect(all(g["totalMiB"] == cards()[g["uuid"]]["total"] for g in section["gpus"]), f"status.agent.gpus {[(g['uuid'], g['totalMiB'], g['reservedMiB'], g.get('outOfBandMiB')) for g in section['gpus']]}")
    extra = sorted(size - take for (pod, _), size in real.items() for take in [int(word(pod)[2])])
    say(f"  beside its allocation each process took {extra} MiB")
    say("  " + " ".join(f"{g['index']}: used {g.get('usedMiB')} (report of {section['time']})" for g in section["gpus"]) + f"; {used_text()}")
    print(subprocess.run(["kubectl", "get", "gpuledgers", "-o", "wide"], capture_output=True, text=True).stdout)
    clear("truth")


def twelve():
    """Twelve of 8 GiB where nine fit: pods hold the rest of all GPUs."""
    namespace("twelve")
    nothing_out_of_band()
    most = min(capacity().values())
    size = 8 * GIB + OVERHEAD
    for number in range(1, len(cards())):
        create("twelve", f"rest-{number}", most - OVERHEAD, most - OVERHEAD)
    rest = most - 9 * size - size // 2
    create("twelve", "rest-0", rest - OVERHEAD, rest - OVERHEAD)
    say(f"the rest is held: {settle('twelve', quiet=3)}; {used_text()}")
    for number in range(12):
        create("twelve", f"agent-{number:02}", 8 * GIB, 8 * GIB)
    found = settle("twelve")
    say(f"twelve of 8 GiB: {found}; {used_text()}")
    agents = [s for p in pods("twelve") if p["metadata"]["name"].startswith("agent") for s in [state(p)]]
    expect((agents.count("ready"), agents.count("waiting"), agents.count("died")) == (9, 3, 0), f"9 run, 3 wait, 0 died: {len(agents)} are {sorted(set(agents))}")
    check("twelve")
    clear("twelve")


def slots():
    """As many pods as there are replicas, each of exactly a slot, which take exactly what they declare."""
    namespace("slots")
    size, count = min(capacity().values()) // REPLICAS - OVERHEAD, len(cards()) * REPLICAS
    say(f"{count} pods that declare and take {size} MiB")
    for number in range(count):
        create("slots", f"slot-{number:02}", size, size)
    found = settle("slots")
    say(f"  {found}; {used_text()}")
    expect(found == {"ready": count}, f"all {count} run and none died")
    check("slots")


def cost(seconds):
    """What the agent costs with the pods of `slots` running, and how long the kubelet waited for its answers."""
    seconds, agent = int(seconds), agent_id()
    tick = os.sysconf("SC_CLK_TCK")

    def used():
        fields = open(f"/proc/{agent}/stat").read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / tick

    before, start = used(), time.time()
    time.sleep(seconds)
    share = (used() - before) / (time.time() - start) * 100
    memory = {k: v.split()[0] for k, v in (l.strip().split(":", 1) for l in open(f"/proc/{agent}/status")) if k.startswith(("VmRSS", "VmHWM", "RssAnon"))}
    say(f"agent with {len(processes())} processes on {len(cards())} GPUs: {share:.2f} % of a core over {seconds} s; {memory} KiB")
    expect(share <= 0.5, "CPU is at most 0.5 % of a core")
    # What the container's limit is compared with. RSS also counts pages of mapped files, which can be dropped any time.
    group = "/sys/fs/cgroup" + open(f"/proc/{agent}/cgroup").read().strip().split("::")[-1]
    if os.path.exists(f"{group}/memory.current"):
        stat = dict(line.split() for line in open(f"{group}/memory.stat"))
        current, peak = (int(open(f"{group}/memory.{name}").read()) >> 10 for name in ("current", "peak"))
        expect(peak <= 30 * 1024, f"its container has never used more than 30 MB: {peak} KiB")
        say(f"  its container: {current} KiB; anon {int(stat['anon']) >> 10}, file {int(stat['file']) >> 10}, kernel {int(stat['kernel']) >> 10}")
    mapped, path = {}, ""
    for line in open(f"/proc/{agent}/smaps"):
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            path = words[5] if len(words) > 5 else "[anonymous]"
        elif words[0] == "Rss:":
            mapped[path] = mapped.get(path, 0) + int(words[1])
    for path, size in sorted(mapped.items(), key=lambda i: -i[1])[:8]:
        print(f"    {size} KiB {path}")
    answers()
    clear("slots")


def answers():
    wanted = ("steer_", "findings", "report_write", "look_duration")
    for name, labels, value in metrics():
        if name.startswith(wanted) and (value or "fallbacks" not in name):
            print("   ", name, labels or "", value)


def forced(rounds=3):
    """A pod is deleted by force, and its process goes on for a while; a pod that waits takes its place."""
    namespace("forced")
    size = 90 * GIB
    for number in range(int(rounds)):
        nothing_out_of_band()
        old, new = f"old-{number}", f"new-{number}"
        for name in (old, *(f"other-{number}-{n}" for n in range(1, len(cards()))), new):
            create("forced", name, size, size, grace=30, IGNORE_TERM=1)
            wait(f"{name} is ready", 0 if name == new else 20, lambda: word(name), 0.05)
        time.sleep(2)
        expect(tally("forced") == {"ready": len(cards()), "waiting": 1}, "one runs on each GPU, one waits")
        uid = next(p["metadata"]["uid"] for p in pods("forced") if p["metadata"]["name"] == old)
        ids = [pid for pid, _, _ in processes() if pod_of(pid) == uid]
        start, seen = time.time(), {}
        delete("forced", old, grace=0)
        while time.time() - start < 60 and not {"ready", "died"} & set(seen):
            now = time.time() - start
            if ids and not any(os.path.exists(f"/proc/{pid}") for pid in ids):
                seen.setdefault("old process gone", now)
            pod = next(p for p in pods("forced") if p["metadata"]["name"] == new)
            if pod["spec"].get("nodeName"):
                seen.setdefault("new pod bound", now)
            if state(pod) in ("died", "rejected"):
                seen["died"] = now
            elif state(pod) == "ready":
                seen["ready"] = word(new)[1] - start
            time.sleep(0.02)
        say("  deleted by force: " + ", ".join(f"{what} after {t:.2f} s" for what, t in sorted(seen.items(), key=lambda i: i[1])))
        expect("ready" in seen, f"{new} lives")
        clear("forced")


def greedy():
    """One declares 8 GiB and takes 2 GiB more a while later."""
    nothing_out_of_band()
    namespace("greedy")
    create("greedy", "honest", 8 * GIB, 8 * GIB)
    for number in range(3):
        create("greedy", f"greedy-{number}", 8 * GIB, 8 * GIB, GROW_MIB=2 * GIB, GROW_AFTER_S=8 + 6 * number)
    settle("greedy", quiet=2)
    for number in range(3):
        name = f"greedy-{number}"
        wait("growth", 40, lambda: (word(name) or ("", 0, "0"))[2] == str(10 * GIB), 0.02)
        grown = word(name)[1]

        def finding():
            found = ledger().get("status", {}).get("agent", {}).get("containers", [])
            return next((c for c in found if c["pod"] == name and c.get("problem") == "OverDeclaration"), None)

        by_metric = wait("metric", 15, lambda: any(n == "findings" and l.get("problem") == "OverDeclaration" and v > number for n, l, v in metrics()) and time.time(), 0.05)
        found = wait("finding", 15, finding, 0.05)
        after = time.time() - grown
        say(f"  {name}: metric after {(by_metric or 0) - grown:.2f} s, status.agent after {after:.2f} s: {found and found.get('message')}")
        expect(found and after <= 5, f"{name} is named within 5 s")
    named = [c["pod"] for c in ledger()["status"]["agent"]["containers"] if c.get("problem") == "OverDeclaration"]
    expect(sorted(named) == ["greedy-0", "greedy-1", "greedy-2"], f"only those that took more are named: {named}")
    clear("greedy")


def containers():
    """Pods with several GPU containers: an init container, a sidecar, a second app container."""
    namespace("containers")
    count = 3 * len(cards())
    say(f"{count} pods with two or three GPU containers each ({mode()})")
    for number in range(count):
        name, size = f"several-{number:02}", [3, 9, 17][number // 3 % 3] * GIB
        kind = ["init", "sidecar", "second"][number % 3]
        # An init container that ends leaves its replica to an app container, for which the kubelet does not ask again.
        more = container("more", f"{name}-more", size, **({"HOLD_S": 1} if kind == "init" else {}))
        if kind == "sidecar":
            more["restartPolicy"] = "Always"
        places = {"others": [more]} if kind == "second" else {"inits": [more]}

        def declared(pod):
            pod["metadata"]["annotations"] = {f"{VRAM}.{each}": f"{size}Mi" for each in ("main", "more")}

        create("containers", name, size, change=declared, **places)
    found = settle("containers", quiet=6)
    say(f"  {found}; {held('containers')} MiB held; {used_text()}")
    expect(not found.get("died") and not found.get("rejected"), "none died")
    check("containers")
    answers()
    clear("containers")


def torch():
    """PyTorch: a mixed crowd, of which one in four asks for more than it declared once it has that."""
    namespace("torch")
    sizes = arrivals(CROWD)
    say(f"{len(sizes)} pods with PyTorch that declare {sum(sizes) // GIB} GiB in all ({mode()})")

    def framework(pod):
        main, spec = pod["spec"]["containers"][0], pod["spec"]
        # The image does not tell its framework by its name.
        pod["metadata"]["annotations"]["vramguard.dev/framework"] = f"PyTorch@{TORCH}"
        main["image"], main["command"] = "gpu.test/python:1", ["python3", "-B", "-u", "/scripts/torch_holder.py"]
        for place, folder in {"/opt": "/opt", "/scripts": os.path.dirname(os.path.abspath(__file__))}.items():
            spec["volumes"].append({"name": place[1:], "hostPath": {"path": folder}})
            main["volumeMounts"].append({"name": place[1:], "mountPath": place, "readOnly": True})

    for number, size in enumerate(sizes):
        greedy = {"GREEDY": 1} if number % 4 == 3 else {}
        name = f"torch-{number:02}-{size // GIB}g{'-greedy' if greedy else ''}"
        create("torch", name, size, size, change=framework, **greedy)
    found = settle("torch", seconds=150, quiet=15)
    say(f"  {found}; {held('torch')} MiB held = {held('torch') * 100 // sum(capacity().values())} %; {used_text()}")
    expect(not found.get("died") and not found.get("rejected"), "none died")
    check("torch")
    live = {p["metadata"]["uid"]: p for p in pods("torch") if state(p) == "ready"}
    greedy = [p["metadata"]["name"] for p in live.values() if p["metadata"]["name"].endswith("greedy")]
    refused = {name: (word(name) or ("", 0, ""))[2] for name in greedy}
    expect(all(told.endswith("refused") for told in refused.values()), f"the allocator refused more to each of {len(greedy)}: {refused}")
    use = {}
    for pid, _, size in processes():
        use[pod_of(pid)] = use.get(pod_of(pid), 0) + size
    over = {live[uid]["metadata"]["name"]: (size, demand(live[uid])) for uid, size in use.items() if uid in live and size > demand(live[uid])}
    expect(len(use) == len(live) and not over, f"the card shows {len(use)} of {len(live)}, and none over its demand {over or ''}")
    extra = sorted(use[uid] - (demand(pod) - OVERHEAD) for uid, pod in live.items() if uid in use)
    say(f"  by the card, each less what it declared: {extra} MiB")
    for pod in list(live.values())[:1]:
        set_here = [e for e in pod["spec"]["containers"][0]["env"] if e["name"].startswith(("PYTORCH", "CUDA", "VRAM"))]
        say(f"  {pod['metadata']['name']} got {set_here}")
    for name in states("torch").get("died", [])[:3]:
        say("  ", name, word(name))
    clear("torch")


def gap(how):
    """A small pod every 0.3 s, while the agent is killed (`kill`) or deleted in order (`stop`), its manifests are deleted
    (`remove`) or applied (`install`), or while the device plugin or the kubelet restarts (`plugin`, `kubelet`)."""
    space = f"gap-{how}"
    namespace(space)
    before, started = placements(), []

    def come():
        for number in range(50):
            create(space, f"{space}-{number:02}", 256, 256, HOLD_S=4)
            started.append(time.time())
            time.sleep(0.3)

    coming = threading.Thread(target=come)
    coming.start()
    time.sleep(3)
    event, manifests = time.time(), f"{W}/agent"
    if how == "kill":
        os.kill(agent_id(), 9)
    elif how == "stop":
        delete("vramguard-agent", agent_pod()["metadata"]["name"], grace=30)
    elif how == "remove":
        subprocess.run(["kubectl", "delete", "-k", manifests, "--wait=false"], check=True, stdout=subprocess.DEVNULL)
    elif how == "install":
        subprocess.run(["kubectl", "apply", "-k", manifests], check=True, stdout=subprocess.DEVNULL)
    else:
        subprocess.run([f"{os.path.dirname(__file__)}/{how}.sh"], check=True)
    coming.join()
    settle(space, quiet=6)
    found = pods(space)
    bad = sorted((p["metadata"]["name"], why(p)) for p in found if state(p) in ("rejected", "died"))
    when = [started[int(n.rsplit("-", 1)[1])] - event for n, _ in bad]
    say(f"  {how}: {tally(space)}; failed {len(bad)} {sorted({r for _, r in bad})}" + (f", created {min(when):.2f} to {max(when):.2f} s after it" if bad else ""))
    on, moved = placements(), []
    for pod in found:
        gpu = on.get((pod["metadata"]["uid"], "main"))
        # In mode slot no GPU is reserved.
        reserved = pod["metadata"]["annotations"].get("vramguard.dev/gpu.main")
        if gpu and reserved and reserved not in gpu:
            moved.append((pod["metadata"]["name"], f"{started[int(pod['metadata']['name'].rsplit('-', 1)[1])] - event:+.1f} s"))
    say(f"  not on the GPU that was reserved: {len(moved)} {moved[:12]}; mode now {mode()}")
    if fallbacks := [(l["why"], int(v)) for n, l, v in metrics() if n == "steer_fallbacks_total" and v] if agent_pod() else []:
        say(f"  answers of this agent that were not the reserved GPU: {fallbacks}")
    lost = [key for key, gpu in before.items() if on.get(key) != gpu and key[0] in {p['metadata']['uid'] for p in pods()}]
    expect(not lost, "pods that ran keep their GPU")
    expect(not moved, "each pod is on the GPU that was reserved for it")
    # Of these alone, a pod that the kubelet admits in that moment has to fail.
    expect(not bad or how in ("kill", "kubelet"), "none failed")
    if how == "remove":
        expect(wait("another mode", 60, lambda: mode() not in ("Steered", "none")), "the node is in another mode")
        gone = wait("the end of the agent's namespace", 60, lambda: not exists("/api/v1/namespaces/vramguard-agent"))
        expect(gone, "all of the agent is gone")
        replicas = int(node()["status"]["allocatable"].get(GPU, 0))
        expect(replicas == REPLICAS * len(cards()), f"the node has its {REPLICAS * len(cards())} replicas: {replicas}")
    else:
        expect(wait("steered again", 60, lambda: mode() == "Steered"), "the node is steered again")
    say(f"  mode {mode()} {time.time() - event:.1f} s after it")
    clear(space)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    finish()
