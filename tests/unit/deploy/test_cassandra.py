"""What a full disk leaves of Cassandra's commit log does not keep it from starting."""

from pathlib import Path

from deploy.local.cassandra import remove_unbegun


def test_segments_that_were_never_begun_go_and_all_others_stay(tmp_path: Path) -> None:
    begun, zeros, nothing = (tmp_path / f"CommitLog-8-{number}.log" for number in range(3))
    begun.write_bytes(b"\0\0\0\x08" + bytes(100))
    zeros.write_bytes(bytes(100))
    nothing.touch()
    other = tmp_path / "CommitLog-8-3_cdc.idx"
    other.touch()
    remove_unbegun(tmp_path)
    assert sorted(tmp_path.iterdir()) == [begun, other]
    remove_unbegun(tmp_path / "there is none yet")
