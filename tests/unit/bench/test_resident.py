"""Resident memory of a process: what it takes is seen, and nothing here is Java's."""

import os

import numpy as np

from tests.resident import resident

MIB = 2**20


def test_what_a_process_takes_is_seen() -> None:
    before = resident(os.getpid())
    taken = np.ones(64 * MIB, np.uint8)
    after = resident(os.getpid())
    assert 60 * MIB < after.native - before.native < 80 * MIB
    assert after.whole >= after.native
    assert taken[-1] == 1
