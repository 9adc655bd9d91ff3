"""A session that goes on where a run fails: with fewer users at a time, on the CPU, and at last without the one user.

    1. a run that fails is halved until its parts go well
    2. where even one user fails, and not on the CPU, the CPU takes over until the next release brings a new session
    3. where the CPU fails, too, that user has no scores: the row becomes the trending list, and its `source` says so
A GPU that is out of memory, lost, or at odds with a graph thus makes rows late and never stops the job.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.release import OUTPUT_INDEX, OUTPUT_SCORE

log = logging.getLogger("score")

CPU = "CPUExecutionProvider"
# The one input that is not a row a user.
_SHARED = "available"
Feeds = dict[str, NDArray[Any]]


class Sturdy:
    """In place of an ONNX Runtime session of one release, with as much of its face as scoring needs.

    on_cpu: makes the same graph's session on the CPU; only asked when that is needed. in_turn: one run at a time,
    whoever asks; else each thread's runs go beside the others'.
    """

    def __init__(self, session: Any, on_cpu: Callable[[], Any], top_k: int, in_turn: bool = False) -> None:
        self._session = session
        self._on_cpu = on_cpu
        self._top_k = top_k
        self._turn: AbstractContextManager[Any] = threading.Lock() if in_turn else nullcontext()
        self._changing = threading.Lock()

    def get_providers(self) -> list[str]:
        """As of the session that runs now."""
        providers: list[str] = self._session.get_providers()
        return providers

    def run(self, outputs: Sequence[str], feeds: Feeds) -> list[NDArray[Any]]:
        """Top items of B users, index and score; score -inf in the rows of users whom the graph cannot score."""
        count = len(next(values for name, values in feeds.items() if name != _SHARED))
        session = self._session
        try:
            with self._turn:
                found: list[NDArray[Any]] = session.run(list(outputs), feeds)
            return found
        except Exception as error:  # ONNX Runtime raises whatever its kernels, or CUDA, stumbled over
            if count == 1:
                return self._alone(session, outputs, feeds, error)
            log.warning("score: a run with %d users failed and is halved (%s)", count, _first_line(error))
        half = -(-count // 2)
        parts = [self.run(outputs, _rows(feeds, start, start + half)) for start in (0, half)]
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]

    def _alone(self, session: Any, outputs: Sequence[str], feeds: Feeds, error: Exception) -> list[NDArray[Any]]:
        if session.get_providers()[0] == CPU:
            log.warning("score: a user cannot be scored (%s)", _first_line(error))
            nothing: dict[str, NDArray[Any]] = {
                OUTPUT_INDEX: np.zeros((1, self._top_k), np.int64),
                OUTPUT_SCORE: np.full((1, self._top_k), -np.inf, np.float32),
            }
            return [nothing[name] for name in outputs]
        with self._changing:
            if self._session is session:  # else another thread's run has failed, too, and was first
                log.warning("score: %s fails, the CPU takes over (%s)", session.get_providers()[0], _first_line(error))
                self._session = self._on_cpu()
        return self.run(outputs, feeds)


def _rows(feeds: Feeds, start: int, end: int) -> Feeds:
    return {name: values if name == _SHARED else values[start:end] for name, values in feeds.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
