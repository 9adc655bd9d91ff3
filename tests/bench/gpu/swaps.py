"""(d) again, where a GPU scores: what many swaps do to the flow of rows, to memory, and to the GPU's memory.

    python -m tests.bench.gpu.whole_job prepare FOLDER --items 20000 --seed N     # three times, N of 1, 2, 3
    python -m tests.bench.gpu.swaps FOLDER [--swaps 400] [--every 2]

As `tests.bench.swap`, of which it is the other half, with one TaskManager that must say that it serves on CUDA.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from streaming.model import CUDA
from streaming.sturdy import CPU
from tests.bench.figures import spread
from tests.bench.gpu.host import gpu, gpu_mib, large_stack, serving_on
from tests.bench.gpu.whole_job import version_of
from tests.bench.report import RESULTS, Run, show
from tests.bench.swap import LOOK_EVERY, ROTATION, Plan, report, swapping
from tests.bench.systems import Job, session
from tests.bench.world import ITEMS
from trainer.publish import verify


def measure(asked: argparse.Namespace) -> None:
    """Run, print and write down everything. Raises RuntimeError when any model served on something else than CUDA."""
    run = Run("swap-gpu", quick=False)
    plan = Plan(asked.swaps, every_s=asked.every, rate=asked.rate)
    releases = [verify(asked.folder / version_of(asked.items, seed)) for seed in range(1, ROTATION + 1)]
    held: list[int] = []
    with large_stack(run, 1, asked.state) as stack:
        job = Job(stack, "bench", releases[0])
        job.env["FRESHREC_STREAMING__PROVIDERS"] = json.dumps([CUDA, CPU])
        with session(job):
            found = swapping(run, job, releases, plan, lambda: held.append(gpu_mib()))
        on = serving_on(stack)
    if set(on) != {CUDA}:
        raise RuntimeError(
            f"models served on {', '.join(on) or 'nothing'}; see that the GPU is free and its libraries load"
        )
    figures = report(found, plan)
    looked = figures["settings"]["settled"] // LOOK_EVERY
    first, last = spread(held[looked : looked + 5]), spread(held[-5:])
    show(f"memory in use on {gpu()}", ["MiB", ""], [("settled", first), ("in the end", last), ("most", max(held))])
    more = {"gpu": gpu(), "items": asked.items, "gpu_mib_every_tenth_swap": held}
    run.write({**figures, **more, "gpu_mib_settled": first, "gpu_mib_in_the_end": last}, asked.out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the releases")
    parser.add_argument("--items", type=int, default=ITEMS, help="size of the catalogue")
    parser.add_argument("--swaps", type=int, default=400)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two announcements")
    parser.add_argument("--rate", type=int, default=1000, help="events a second")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--state", type=Path, help="of the servers, with their logs; without it, gone in the end")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
