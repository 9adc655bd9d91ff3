"""Two processes learn what one learns; what goes wrong in one ends both."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.local.config import REPOSITORY
from deploy.local.ports import HOST, free_base
from tests.unit.trainer.learning import ALONE
from tests.unit.trainer.together import DROPOUTS, Learned, learned
from trainer.files import only_one

pytestmark = pytest.mark.filterwarnings("ignore")
PATIENCE_S = 90.0
# A process needs some seconds to import torch.
SOON_S = 30.0
# Two float32 sums of the same numbers in another order, over all steps.
ROUNDING = 1e-4
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}
# By dropout: what one process has learned, and what each of two has.
Fits = dict[float, tuple[Learned, Sequence[Learned]]]


@dataclass
class Ended:
    codes: list[int]
    outputs: list[str]
    seconds: float


def together(what: str, folder: Path) -> Ended:
    """Two processes as torchrun starts them, until both have ended."""
    environment = {**os.environ, "MASTER_ADDR": HOST, "MASTER_PORT": str(free_base()), "WORLD_SIZE": "2", **LOOPBACK}
    began = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.trainer.together", what, str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return Ended([process.returncode for process in running], outputs, time.monotonic() - began)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Fits:
    folder = tmp_path_factory.mktemp("fits")
    ended = together("learn", folder)
    assert ended.codes == [0, 0], ended.outputs
    assert not any("gloo" in output for output in ended.outputs), "its threads end before the interpreter does"
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {
        dropout: (learned(ALONE, dropout), [Learned(**rank[place]) for rank in ranks])
        for place, dropout in enumerate(DROPOUTS)
    }


def test_two_processes_take_the_steps_of_one(fits: Fits) -> None:
    one, two = fits[0.0]
    losses = np.mean([rank.losses for rank in two], axis=0)
    assert len(one.losses) > 20
    np.testing.assert_allclose(losses, one.losses, atol=ROUNDING)
    assert one.losses[-1] < one.losses[0] - 0.2  # and they lead somewhere
    for name in one.state:
        ours, theirs = one.state[name], two[0].state[name]
        if name.endswith("key_value.bias"):
            # What is added to all keys changes no softmax: the gradient is rounding alone, of which Adam makes steps.
            ours, theirs = (bias[len(bias) // 2 :] for bias in (ours, theirs))
        torch.testing.assert_close(theirs, ours, atol=ROUNDING, rtol=0)


def test_two_processes_reach_the_loss_of_one_where_chance_is_not_the_same(fits: Fits) -> None:
    one, two = fits[0.2]
    assert two[0].loss_at_end == pytest.approx(one.loss_at_end, rel=0.01)
    assert two[0].loss_at_end != one.loss_at_end


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_both_end_with_the_same_network(fits: Fits, dropout: float) -> None:
    first, second = (rank.state for rank in fits[dropout][1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_they_stay_in_step_and_an_error_of_one_is_an_error_of_both(tmp_path: Path) -> None:
    with only_one(tmp_path):
        ended = together("in_step", tmp_path)
    assert (tmp_path / "log").read_text().split() == ["0", "0", "1"]  # led; then the leader first
    for rank in range(2):
        assert (tmp_path / f"found-{rank}").read_text().splitlines() == [
            "0",
            "UnreachableError: Kafka is not there",
            f"{rank}",
            "ConfigError: one process sees no files",
            f"{2 * rank}",
            "ContractError: the 2 processes do not work on the same: [0, 1]",
            f"ConfigError: another trainer works in {tmp_path}",
            "0",
            "3",
        ]
    assert ended.codes == [4, 4]
    assert all("trainer: Kafka is not there; start it\n" in output for output in ended.outputs)


@pytest.mark.parametrize(("what", "said"), [("leader_crash", "ZeroDivisionError"), ("death_of_one", "Error")])
def test_none_waits_for_one_that_is_gone(tmp_path: Path, what: str, said: str) -> None:
    ended = together(what, tmp_path)
    assert 0 not in ended.codes
    assert said in ended.outputs[0]
    assert ended.seconds < SOON_S
