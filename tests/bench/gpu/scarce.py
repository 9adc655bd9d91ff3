"""A GPU with hardly any memory left: what the job's own code makes of a model there.

    python -m tests.bench.gpu.scarce [--items N] [--out FILE]

One release is loaded as the job loads it (see streaming/model.py) while the GPU is empty, while other processes hold
nearly all of its memory, and when they have let go; each time the same users are scored, whose lists must be those of
the CPU. A table last, and the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from schemas.release import WARMUP
from streaming.fetch import fetch
from streaming.model import CUDA, LARGEST, load
from streaming.sturdy import CPU
from tests.bench.world import announcement, make_release
from trainer.publish import Release
from trainer.sequences import Ints

MIB = 2**20
# Left to the model: from all that a batch of the largest size wants down to hardly anything.
LEFT_MIB = (1600, 800, 400, 200, 100, 40)


class Halvings(logging.Handler):
    """Counts what a session that goes on says about runs that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.halved = self.gave_up = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        said = record.getMessage()
        self.halved += "is halved" in said
        self.gave_up += "the CPU " in said


def filled(left_mib: int) -> list[torch.Tensor]:
    """All of the GPU's memory but so much, held until it is dropped."""
    free, _ = torch.cuda.mem_get_info()
    held = [torch.empty(max(0, free - left_mib * MIB), dtype=torch.uint8, device="cuda")]
    torch.cuda.synchronize()
    return held


def served(release: Release, what: str, providers: list[str], expected: Ints | None) -> dict[str, Any]:
    """Load the release, score the users of its warm-up, and say how that went."""
    counts = Halvings()
    log = logging.getLogger("score")
    log.addHandler(counts)
    try:
        model = load(announcement(release), providers, threads=4)
    finally:
        log.removeHandler(counts)
    _, files = fetch(announcement(release))
    with np.load(BytesIO(files[WARMUP])) as archive:
        arrays = {name: archive[name] for name in archive.files}
    rows = np.arange(LARGEST) % len(arrays["item_index"])
    inputs: Any = {name: arrays[name][rows] for name in model.manifest.inputs if name != "available"}
    available = np.ones(model.vocabulary.size + 1, np.bool_)
    log.addHandler(counts)
    started = time.perf_counter()
    index, _ = model.run(inputs, available)
    took = time.perf_counter() - started
    log.removeHandler(counts)
    same = 1.0 if expected is None else float(np.mean(np.sort(index, axis=1) == np.sort(expected, axis=1)))
    return {
        "what": what, "provider": model.session.get_providers()[0], "halved": counts.halved,
        "gave_up": counts.gave_up, "ms": took * 1000, "same": same, "index": index,
    }  # fmt: skip


def main() -> None:
    """Every step, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("scarce.json"))
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: there is no GPU; run it where there is one")
    with tempfile.TemporaryDirectory() as folder:
        release = make_release(Path(folder), "20260101-000001", items=asked.items)
        reference = served(release, "CPU", [CPU], None)
        expected = reference["index"]
        found = [reference, served(release, "GPU, empty", [CUDA, CPU], expected)]
        for left in LEFT_MIB:
            held = filled(left)
            found.append(served(release, f"GPU, {left} MiB left", [CUDA, CPU], expected))
            held.clear()
            torch.cuda.empty_cache()
        found.append(served(release, "GPU, empty again", [CUDA, CPU], expected))
    content = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "gpu": torch.cuda.get_device_name(), "items": asked.items,
        "onnxruntime": onnxruntime.__version__, "users": LARGEST,
        "found": [{name: value for name, value in row.items() if name != "index"} for row in found],
    }  # fmt: skip
    asked.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{'':<20} {'provider':<22} {'halved':>6} {'to CPU':>6} {'ms':>8} {'lists kept':>10}")
    for row in found:
        print(f"{row['what']:<20} {row['provider']:<22} {row['halved']:>6} {row['gave_up']:>6} {row['ms']:>8.1f} "
              f"{row['same']:>10.2%}")  # fmt: skip


if __name__ == "__main__":
    main()
