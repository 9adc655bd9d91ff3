"""Loops over records and users, compiled to machine code by numba.

With numpy a micro-batch of ten events costs some hundred calls of some microseconds each, whatever they do; a compiled
loop costs what its work costs. Machine code is kept beside the module (or in NUMBA_CACHE_DIR), so that the next process
has it in milliseconds.

What is compiled is a plain C function of addresses and numbers, called with the interpreter's lock held. numba's own
way of calling asks for that lock once more (PyGILState_Ensure) when an array is let go, and so does its compiler for
its cache: both would wait for ever in a task's thread of Flink, where CPython is embedded. So functions are called
through ctypes, and compiled in a thread of Python's own.
"""

import builtins
import ctypes
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, NewType, TypeVar

import numpy as np
from numpy.typing import NDArray

# What a compiled function gets for an array or bytes: in its body `carray(address, shape, dtype)` is that array.
Address = NewType("Address", int)
Part = TypeVar("Part", bound=Callable[..., Any])
Result = TypeVar("Result")


def _apart(work: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1, "compiler") as thread:
        return thread.submit(work).result()


def _numba() -> Any:
    # PyFlink's worker processes have a print of their own, which numba, asked to compile calls of print, does not know.
    told = builtins.print
    builtins.print = getattr(getattr(told, "__self__", None), "_print", told)
    try:
        return importlib.import_module("numba")
    finally:
        builtins.print = told


_NUMBA: Any = _apart(_numba)
carray: Any = _NUMBA.carray


class Compiled:
    """A function that returns nothing; each parameter is annotated as Address or int.

    Called with C-contiguous arrays or bytes for the former. It raises nothing, and stays inside its arrays by itself.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self._call: Callable[..., None] | None = None
        _ALL.append(self)

    def __call__(self, *values: NDArray[Any] | bytes | int) -> None:
        call = self._call or self.prepare()
        call(*[value.ctypes.data if isinstance(value, np.ndarray) else value for value in values])

    @property
    def ready(self) -> bool:
        """Whether it is compiled."""
        return self._call is not None

    def prepare(self) -> Callable[..., None]:
        """Compile it, or find it where it was kept: not before its module is imported, which numba imports again."""
        kinds = [kind for name, kind in self._function.__annotations__.items() if name != "return"]
        types = _NUMBA.types
        signature = types.void(*[types.voidptr if kind is Address else types.int64 for kind in kinds])
        self._native = _apart(lambda: _native(self._function, signature))
        takes = [ctypes.c_void_p if kind is Address else ctypes.c_int64 for kind in kinds]
        self._call = ctypes.PYFUNCTYPE(None, *takes)(self._native.address)
        return self._call


def _native(function: Callable[..., None], signature: Any) -> Any:
    # Nothing here divides by what may be 0, and so need not ask.
    compile_it = partial(_NUMBA.cfunc, signature, error_model="numpy")
    try:
        return compile_it(cache=True)(function)
    except RuntimeError:  # there is no place to keep it: seconds at each start instead
        return compile_it()(function)


_ALL: list[Compiled] = []
_PREPARING = Lock()


def prepare() -> None:
    """Make every function of the modules imported so far ready, so that no first call waits for its compiler."""
    # Several operators may begin at once in one process: one of them compiles.
    with _PREPARING:
        for function in _ALL:
            if not function.ready:
                function.prepare()


def inlined(function: Part) -> Part:
    """A part of compiled functions, compiled with each of them."""
    part: Part = _apart(lambda: _NUMBA.njit(error_model="numpy")(function))
    return part
