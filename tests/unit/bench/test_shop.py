import numpy as np
import pytest

from schemas.click import decode_clicks
from tests.bench.acks import VARIABLE, AckLog, read_acks
from tests.bench.feed import send
from tests.bench.report import shown
from tests.bench.world import Events, Shop, user_id


def test_every_event_of_the_shop_is_a_good_record_and_a_new_one() -> None:
    shop = Shop(1, users=50, items=20)
    first, second = shop.events(300), shop.events(200)
    values, keys = first.values + second.values, first.keys + second.keys
    clicks, bad = decode_clicks(values, keys, int(second.event_time[-1]))
    assert not bad and len(set(clicks.event_ids)) == 500
    assert (np.diff(clicks.event_time) > 0).all()


def test_few_users_and_items_are_wanted_much() -> None:
    events = Shop(2, users=1000, items=100).events(5000)
    counts = np.sort(np.bincount(events.user, minlength=1000))[::-1]
    assert counts[:100].sum() > 2.5 * counts[500:600].sum() > 0


def test_newest_is_the_last_event_of_each_and_who_came_last_is_last() -> None:
    user = np.array([4, 1, 2, 1, 4])
    events = Events([b""] * 5, [b""] * 5, user, np.array([10, 11, 12, 13, 14]))
    assert list(events.newest().items()) == [(user_id(2), 12), (user_id(1), 13), (user_id(4), 14)]


def test_one_each_names_every_user_once() -> None:
    assert Shop(3, users=10).one_each(3, 6).keys == [user_id(n).encode() for n in (3, 4, 5)]


def test_acknowledgements_come_back_as_written(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "acks"
    monkeypatch.setenv(VARIABLE, str(file))
    assert len(read_acks(file)[0]) == 0
    for part in ([5, 6], [7]):
        AckLog().count(np.array(part, np.int64))
    with file.open("ab") as half:
        half.write(b"\1" * 8)  # a writer in the midst of its next pair
    produced, acknowledged = read_acks(file)
    assert produced.tolist() == [5, 6, 7] and (np.diff(acknowledged) >= 0).all()


class _Sink:
    """Takes events and notes when."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def produce(self, _topic: str, _value: bytes, _key: bytes) -> None:
        import time

        self.moments.append(time.time())

    def poll(self, _s: float) -> None:
        return

    def flush(self, _s: float) -> None:
        return


def test_a_feed_keeps_its_rate_and_order() -> None:
    sink = _Sink()
    fed = send(sink, "t", [b"k"] * 200, [b"v"] * 200, rate=1000)  # type: ignore[arg-type]
    assert fed.events == len(sink.moments) == 200
    assert 0.19 < sink.moments[-1] - sink.moments[0] < 2.0
    assert fed.latest_ms >= 0


@pytest.mark.parametrize(
    ("cell", "text"), [(12345.6, "12 346"), (99.94, "99.9"), (1.234, "1.23"), ("x", "x"), (7, "7")]
)
def test_cells_have_three_figures(cell: object, text: str) -> None:
    assert shown(cell) == text
