import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.local.config import REPOSITORY
from schemas.errors import ConfigError, ModelRefused, UnreachableError
from tests.unit.trainer.learning import ALONE
from trainer import periodic
from trainer.config import Settings, ms_of, plan
from trainer.cycle import Stopped, cycle

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86_400), ("2w", 1_209_600)]
)
def test_periods_are_written_with_their_unit(text: str, seconds: int) -> None:
    assert ms_of("--every", text) == seconds * 1000


@pytest.mark.parametrize("text", ["15", "m", "0m", "-3s", "1y", "1d2h"])
def test_other_periods_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--every {text} is no period"):
        ms_of("--every", text)


def test_the_plan_keeps_checkpoints_out_of_the_releases(tmp_path: Path) -> None:
    settings = Settings(trainer={"data": tmp_path / "d", "releases": tmp_path / "r"})
    planned = plan(settings)
    assert planned.checkpoint("v") == tmp_path / "checkpoints" / "v.pt"
    assert planned.threads >= 1


class Clock:
    """Time that passes only while somebody waits or works."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Stop(threading.Event):
    """Lets the clock run while waiting; asked to stop at a given time."""

    def __init__(self, clock: Clock, at: float) -> None:
        super().__init__()
        self.clock, self.at = clock, at

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.now += timeout or 0.0
        return self.clock.now >= self.at


def run(monkeypatch: pytest.MonkeyPatch, outcomes: Sequence[float | Exception]) -> list[float]:
    """Start times of cycles with a period of 10 s; an outcome is how long one takes, or its end."""
    clock, starts = Clock(), []

    def cycle(*_: object) -> None:
        starts.append(clock.now)
        outcome = outcomes[len(starts) - 1] if len(starts) <= len(outcomes) else 0.0
        if isinstance(outcome, Exception):
            raise outcome
        clock.now += outcome

    monkeypatch.setattr(periodic, "cycle", cycle)
    monkeypatch.setattr(periodic, "time", clock)
    settings = Settings()
    periodic.run_periodically(settings, plan(settings), 10.0, Stop(clock, 60.0), ALONE)
    return starts


def test_cycles_start_at_fixed_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, [3.0, 7.0]) == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]


def test_overrun_times_become_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # 20 and 30 are over when the second cycle ends: one cycle makes up for both, and the times stay what they were.
    assert run(monkeypatch, [3.0, 25.0]) == [0.0, 10.0, 35.0, 40.0, 50.0]
    assert "2 overran times become one" in capsys.readouterr().out


def test_cycles_that_are_always_too_slow_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, [25.0] * 9) == [0.0, 25.0, 50.0]


def test_a_refused_model_or_a_missing_server_is_one_line_and_ends_one_cycle_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [ModelRefused("a", "b"), UnreachableError("c", "d")]
    assert run(monkeypatch, outcomes) == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert [line for line in capsys.readouterr().out.splitlines() if "published nothing" in line] == [
        "trainer: this cycle published nothing: a; b",
        "trainer: this cycle published nothing: c; d",
    ]


def test_every_other_error_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, [0.0, Stopped()]) == [0.0, 10.0]
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, [ZeroDivisionError()])


def test_a_cycle_that_is_asked_to_stop_ends_before_its_next_step(tmp_path: Path) -> None:
    settings = Settings(trainer={"data": tmp_path / "d", "releases": tmp_path / "r"})
    with pytest.raises(Stopped):  # and not UnreachableError: nothing was begun
        cycle(settings, plan(settings), lambda: True, ALONE)


def test_a_roll_back_waits_for_no_library_it_does_not_need() -> None:
    code = (
        "import sys; from trainer import __main__, publish; "
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'polars') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr
