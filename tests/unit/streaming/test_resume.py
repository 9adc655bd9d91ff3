"""What a checkpoint tells of itself, and which settings may not go on from it."""

import pytest

from schemas.errors import ConfigError
from streaming.batch import shard_name, shards_in
from streaming.checkpoint import Checkpoint
from streaming.resume import _require_shards, recovery


@pytest.mark.parametrize("shards", [1, 2, 128])
def test_the_number_of_shards_is_found_in_the_operators_name(shards: int) -> None:
    assert shards_in(shard_name(shards)) == shards
    assert shards_in("read_shard") is None
    assert shards_in("score") is None


def test_another_number_of_shards_than_the_checkpoints_is_refused() -> None:
    checkpoint = Checkpoint("file:/checkpoints/chk-7", 0, {}, 4)
    _require_shards(4, checkpoint)
    with pytest.raises(ConfigError, match=r"is 2, but the users in .*chk-7 are dealt to 4 shards; set it to 4"):
        _require_shards(2, checkpoint)
    _require_shards(2, Checkpoint("file:/checkpoints/chk-7", 0, {}, None))


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("file:/checkpoints/a1/chk-7", "CLAIM"),
        ("file:/checkpoints/a1/chk-7/", "CLAIM"),
        ("s3://ours/savepoint-a1-2b", "NO_CLAIM"),
    ],
)
def test_a_checkpoint_is_the_jobs_own_and_a_savepoint_stays_its_owners(path: str, mode: str) -> None:
    assert recovery(path) == {
        "execution.state-recovery.path": path, "execution.state-recovery.claim-mode": mode
    }  # fmt: skip
