#!/usr/bin/env python3
"""$GPUS GPUs that are not there, to try the phases on any machine.

  pretend.py FILE       keeps FILE, which the stand-in for the driver's library reads (../nvml/fake.rs), in step with the
                        processes named `holder` on this machine
  nvidia-smi ...        answers the two queries of lab.py from $VRAMGUARD_FAKE_NVML, if it is called by that name
"""

import os
import sys
import time

TOTAL, RESERVED, CONTEXT, GPUS = 143771, 616, 518, int(os.environ["GPUS"])


def uuid(index):
    return f"GPU-{index:08x}-0000-4000-8000-{index:012x}"


def holders():
    """(pid, index of the GPU, MiB) of each holder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if open(f"/proc/{pid}/comm").read() != "holder\n":
                continue
            variables = dict(v.split("=", 1) for v in open(f"/proc/{pid}/environ").read().split("\0") if "=" in v)
            what, _, mib = open(f"{os.environ['W']}/held/{variables['POD_NAME']}").read().split(" ", 2)
            index = next(i for i in range(GPUS) if variables.get("NVIDIA_VISIBLE_DEVICES") == uuid(i))
            if what == "ready":
                found.append((int(pid), index, int(mib) + CONTEXT))
        except (OSError, ValueError, KeyError, StopIteration):
            continue
    return found


def keep(file):
    while True:
        lines, found = ["driver 580.0"], holders()
        for index in range(GPUS):
            lines.append(f"gpu {uuid(index)} {TOTAL} {RESERVED} {sum(m for _, i, m in found if i == index)}")
            lines += [f"process {pid} {mib} 0" for pid, i, mib in found if i == index]
        with open(f"{file}.new", "w") as new:
            new.write("\n".join(lines) + "\n")
        os.rename(f"{file}.new", file)
        time.sleep(0.3)


def answer(query):
    index = -1
    for line in open(os.environ["VRAMGUARD_FAKE_NVML"]):
        words = line.split()
        if words[0] == "gpu":
            index += 1
        if words[0] == "gpu" and query.startswith("--query-gpu=index"):
            print(", ".join([str(index), *words[1:5]]))
        if words[0] == "process" and query.startswith("--query-compute-apps"):
            print(f"{words[1]}, {uuid(index)}, {words[2]}")


if __name__ == "__main__":
    answer(sys.argv[1]) if os.path.basename(sys.argv[0]) == "nvidia-smi" else keep(sys.argv[1])
