"""(f) again: millions of users in the state of one TaskManager, on a host with the cores to fill it.

    python -m tests.bench.gpu.whole_job prepare FOLDER --items N
    python -m tests.bench.gpu.crowd FOLDER --items N [--users 100000,1000000,10000000]

As `tests.bench.growth`, of whose users this is the other half: a minute and 3 GB of disk for a million.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from streaming.model import CUDA
from streaming.sturdy import CPU
from tests.bench.gpu.host import ROOMIER, gpu, large_stack, serving_on
from tests.bench.gpu.whole_job import version_of
from tests.bench.growth import TIMED_EVENTS, grow_users, show_users
from tests.bench.report import RESULTS, Run
from tests.bench.systems import Job, session
from trainer.publish import verify


def measure(asked: argparse.Namespace) -> None:
    """Run, print and write down each step. Raises RuntimeError when a model served on something else than asked."""
    run = Run("growth-gpu", quick=False)
    release = verify(asked.folder / version_of(asked.items))
    with large_stack(run, 1, asked.state) as stack:
        job = Job(stack, "bench", release)
        job.env["FRESHREC_STREAMING__PROVIDERS"] = json.dumps([asked.provider, CPU])
        with session(job):
            for found in grow_users(run, job, tuple(map(int, asked.users.split(","))), TIMED_EVENTS):
                if set(on := serving_on(stack)) != {asked.provider}:
                    raise RuntimeError(f"served on {', '.join(on) or 'nothing'}; see that the GPU's libraries load")
                run.write({"gpu": gpu(), "items": asked.items, "roomier": ROOMIER, "users": found}, asked.out)
    show_users(found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the releases")
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalogue")
    parser.add_argument("--users", default="100000,1000000,10000000", help="in state, one step after the other")
    parser.add_argument("--provider", default=CUDA, help="what the TaskManager must say that it serves on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--state", type=Path, help="of the servers, with their logs; without it, gone in the end")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
