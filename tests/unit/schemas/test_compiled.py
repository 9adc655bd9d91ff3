"""Compiled functions get what they are called with, wherever that is, and are kept for the next process."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from schemas.compiled import Address, Compiled, carray, inlined, prepare


@inlined
def _shifted(value: int, by: int) -> int:
    return value // by - 1


@Compiled
def _fill(raw_at: Address, count: int, by: int, out_at: Address) -> None:
    raw, out = carray(raw_at, count, np.uint8), carray(out_at, (2, count), np.int64)
    for place in range(count):
        out[0, place], out[1, place] = _shifted(raw[place], by), by


def test_bytes_arrays_and_numbers_arrive_as_they_are() -> None:
    out = np.zeros((2, 3), np.int64)
    _fill(b"\0\7\xff", 3, -(2**40), out)
    assert out.tolist() == [[-1, -2, -2], [-(2**40)] * 3]
    _fill(np.array([9, 8, 7], np.uint8), 3, 4, out)
    assert out.tolist() == [[1, 1, 0], [4, 4, 4]]


def test_any_thread_may_call_and_be_the_first_to_do_so() -> None:
    out = np.zeros((2, 1), np.int64)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_fill.prepare).result()
        thread.submit(_fill, b"\5", 1, 5, out).result()
    assert out.tolist() == [[0], [5]]


def test_several_threads_prepare_each_function_once() -> None:
    fresh = Compiled(_fill._function)
    assert not fresh.ready
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(prepare) for _ in range(2)]:
            done.result()
    native = fresh._native
    prepare()
    assert fresh.ready and fresh._native is native


def first_calls(*environments: dict[str, str]) -> list[list[str]]:
    """Of processes one after the other: how many of one function were found, and where they are kept."""
    script = (
        "from schemas import columns, compiled; compiled.prepare();"
        "print(columns._walk._native.cache_hits, columns._walk._native._cache.cache_path)"
    )
    return [
        subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=Path(__file__).parents[3],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for environment in environments
    ]


def test_what_was_compiled_is_found_by_the_next_process(tmp_path: Path) -> None:
    first, second = first_calls(*[{"NUMBA_CACHE_DIR": str(tmp_path)}] * 2)
    assert (first[0], second[0]) == ("0", "1")
    assert str(tmp_path) in second[1]


def test_where_nothing_can_be_kept_it_is_compiled_each_time() -> None:
    [[found, where]] = first_calls({"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"})
    assert (found, where) == ("0", "None")


def test_a_worker_process_of_pyflink_whose_print_is_its_own_may_import_it() -> None:
    script = (
        "import builtins; from pyflink.fn_execution.beam.beam_sdk_worker_main import CustomPrint;"
        "builtins.print = CustomPrint(print).print; before = builtins.print;"
        "import schemas.compiled; assert builtins.print == before"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], check=True)
