"""Holds TAKE_MIB of GPU memory by PyTorch, a bf16 matrix product included, and tells so like holder.rs.

With GREEDY=1 it then asks for more until that is refused, and goes on with what it has.
"""

import os
import sys
import time

# PyTorch is told its share of the GPU with four digits, which may be some MiB less than what is declared.
TAKE, STEP = int(os.environ["TAKE_MIB"]) - 32, 256
FILE = f"{os.environ['HELD']}/{os.environ['POD_NAME']}"


def tell(what, rest):
    with open(f"{FILE}.new", "w") as file:
        file.write(f"{what} {time.time():.3f} {rest}\n")
    os.rename(f"{FILE}.new", FILE)
    print(what, rest, flush=True)


def reserved():
    return torch.cuda.memory_reserved() >> 20


def more(mib):
    # Of the size of a segment, so that the allocator reserves exactly that.
    held.append(torch.ones(mib << 20, dtype=torch.uint8, device="cuda"))
    torch.cuda.synchronize()


try:
    import torch

    held = []
    matrix = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    (matrix @ matrix).sum().item()
    while reserved() + 2 <= TAKE:
        more(min(STEP, (TAKE - reserved()) // 2 * 2))
    told = str(reserved())
    tell("ready", told)
    if "GREEDY" in os.environ:
        try:
            while True:
                more(STEP)
        except torch.OutOfMemoryError as why:
            print(why, flush=True)
            tell("ready", f"{reserved()} refused")
    while True:
        (matrix @ matrix).sum().item()
        time.sleep(1)
except Exception as why:
    tell("died", f"{type(why).__name__}: {str(why).splitlines()[0]}")
    sys.exit(1)
