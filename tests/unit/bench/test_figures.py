import numpy as np
import pytest

from tests.bench.figures import MANY, held, longest_gaps, per_unit, percentiles, ratio, spread


def test_a_few_measurements_span_from_least_to_greatest() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.count) == (2.0, 1.0, 3.0, 3)


def test_of_many_measurements_the_extremes_do_not_count() -> None:
    found = spread([*range(1, 100), 1e9])
    assert found.count >= MANY and found.low == pytest.approx(25.75) and found.high < 100


def test_a_ratio_is_of_medians_and_spans_what_the_ranges_allow() -> None:
    found = ratio([10.0, 20.0, 30.0], [5.0, 10.0, 20.0])
    assert (found.median, found.low, found.high) == (2.0, 0.5, 6.0)


@pytest.mark.parametrize("peer", [[], [0.0, 1.0]])
def test_nothing_is_divided_by_nothing(peer: list[float]) -> None:
    with pytest.raises(ValueError, match="divided"):
        ratio([1.0], peer)


def test_percentiles_are_ages_that_occurred() -> None:
    found = percentiles(np.arange(100, 0, -1, dtype=np.float64))
    assert (found.p50, found.p95, found.p99, found.max, found.count) == (50, 95, 99, 100, 100)
    assert percentiles(np.array([7.0])).p99 == 7.0


def test_no_ages_are_no_percentiles() -> None:
    with pytest.raises(ValueError, match="no event"):
        percentiles(np.zeros(0))


def test_a_queue_that_grows_is_not_held_and_a_hiccup_is() -> None:
    assert not held(np.linspace(10, 5000, 100))
    assert held(np.linspace(10, 400, 100)) and held(np.full(100, 9000.0)) and held(np.array([3.0]))


def test_gaps_count_inside_their_window_alone() -> None:
    moments = np.array([0.0, 10.0, 11.0, 50.0, 60.0])
    assert longest_gaps(moments, [(10.0, 20.0), (45.0, 60.0), (20.0, 30.0)]) == [9.0, 10.0, 10.0]


def test_seconds_of_a_batch_are_microseconds_of_one() -> None:
    assert per_unit([0.001, 0.003, 0.002], 10).median == pytest.approx(200)
