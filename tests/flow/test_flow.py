"""The flow on real servers: what producers send, readers find. One job; each test has users of its own."""

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.local.ports import answers
from schemas.click import Click, encode_click
from schemas.dead_letter import KEPT_BYTES
from schemas.item import Item
from schemas.topics import CLICKS, ITEMS, MODEL_RELEASES
from schemas.user_state import HISTORY
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST, ITEM_IDS, SECOND, make_clicks, told

# Metrics are at most so old.
METRICS_S = 2.5
# By what a Python process finds the JVM that started it.
GATEWAY = "PYFLINK_GATEWAY_PORT"


@pytest.fixture(scope="module")
def job(start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory) -> RunningJob:
    """A job that serves the release FIRST."""
    job = start_job()
    job.publish(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    probe = Click("probe-0", "probe", ITEM_IDS[0], int(time.time() * 1000))

    def serves() -> bool:
        row = job.row("probe")
        job.click([dataclasses.replace(probe, event_id=f"probe-{time.time_ns()}")])
        return row is not None and row.model_version == FIRST[2]

    job.eventually("the first release serves", serves)
    return job


def test_every_row_is_what_the_job_in_plain_python_computes(job: RunningJob) -> None:
    clicks = make_clicks("plain", 3000, users=30)
    oracle = told(clicks)
    assert max(len(events) for events in oracle.events.values()) > HISTORY, "rings must overflow"
    job.click(clicks)
    job.agree(oracle, FIRST)


def test_events_out_of_order_end_in_the_state_of_sorted_ones(job: RunningJob) -> None:
    clicks = make_clicks("shuffled", 1500, users=12)
    oracle = told(clicks)
    random.Random(1).shuffle(clicks)
    job.click(clicks)
    job.agree(oracle, FIRST)


def test_duplicates_change_nothing(job: RunningJob) -> None:
    clicks = make_clicks("twice", 200, users=10)
    oracle = told(clicks)
    job.click(clicks)
    job.agree(oracle, FIRST)
    written = {user: job.row(user) for user in oracle.events}
    before = job.metric("features_duplicates")
    job.click(clicks)
    job.eventually("all duplicates are counted", lambda: job.metric("features_duplicates") == before + 200)
    assert {user: job.row(user) for user in oracle.events} == written, "a row was written again"


def test_a_job_that_is_behind_makes_one_row_of_many_events_and_the_right_one(job: RunningJob) -> None:
    """Without waiting every micro-batch would make a row of nearly each of these users."""
    clicks = make_clicks("behind", 60_000, users=3_000)
    oracle = told(clicks)
    waited, rows = job.metric("features_waited"), job.metric("write_rows")
    with job.asleep():
        job.click(clicks)
    job.agree(oracle, FIRST)
    job.metric("features_waited")  # what Flink answers the second time is the present state
    time.sleep(METRICS_S)
    waited, rows = job.metric("features_waited") - waited, job.metric("write_rows") - rows
    assert waited > len(clicks) / 2
    assert rows < len(clicks) - waited + 3 * len(oracle.events)


def test_bad_records_are_dead_letters_and_their_neighbours_live(job: RunningJob) -> None:
    now = int(time.time() * 1000)
    good = make_clicks("neighbour", 60, users=6)
    oracle = told(good)
    whole = encode_click(Click("bad-1", "bad", "item-001", now))
    long = encode_click(Click("bad-2", "bad", "item-001", now, context={"x": "y" * 70_000}))
    cases: list[tuple[bytes | None, bytes | None, str]] = [
        (b"bad", whole[:-3], "malformed"),
        (b"bad", whole + b"\0", "malformed"),
        (b"bad", b"", "empty"),
        (b"bad", None, "empty"),
        (b"bad", long, "oversized"),
        (b"bad", b"\xc3\x01" + b"\xaa" * 8 + whole[10:], "unknown-schema"),
        (b"bad", b'{"user_id": "bad"}', "unknown-framing"),
        (b"someone else", whole, "wrong-key"),
        (None, whole, "wrong-key"),
        (b"bad", encode_click(Click("bad-3", "bad", "item-001", now + 3_600_000)), "future"),
        (b"bad", encode_click(Click("bad-4", "bad", "item-001", now // 1000)), "too-old"),
        (b"bad", encode_click(Click("bad-5", "bad", "", now)), "bad-id"),
    ]
    before = len(job.dead_letters())
    expected = {}
    for number, (key, value, reason) in enumerate(cases):
        job.click(good[number * 5 : number * 5 + 5])
        place = job.send(CLICKS, key, value)
        expected[place] = (reason, (value or b"")[:KEPT_BYTES], key or b"")
    job.agree(oracle, FIRST)
    job.eventually("all dead letters arrive", lambda: len(job.dead_letters()) >= before + len(cases))
    letters = [letter for letter in job.dead_letters() if letter.topic == job.settings.topic(CLICKS)]
    found = {(letter.partition, letter.offset): letter for letter in letters}
    for place, (reason, head, key) in expected.items():
        letter = found[place]
        assert (letter.reason, letter.value or b"", letter.key or b"") == (reason, head, key)
        assert letter.detail and letter.job_version
    assert len(letters) == len(cases), "only bad records are dead letters"
    assert job.row("bad") is None


def test_an_erased_user_is_forgotten_and_may_begin_anew(job: RunningJob) -> None:
    clicks = make_clicks("erased", 40, users=2)
    oracle = told(clicks)
    job.click(clicks)
    job.agree(oracle, FIRST)
    user = clicks[-1].user_id
    job.erase(user)
    job.eventually("the row is gone", lambda: job.row(user) is None)
    oracle.erase(user)
    again = Click("erased-again", user, "item-050", clicks[-1].event_time + 1)
    oracle.click(again)
    job.click([again])
    job.agree(oracle, FIRST)


def test_an_item_that_is_not_available_leaves_the_next_list_and_comes_back(job: RunningJob) -> None:
    now = int(time.time() * 1000)
    gone, dropped = ITEM_IDS[0], ITEM_IDS[1]

    def listed(number: int) -> set[str]:
        user = f"available-{number}"
        job.click([Click(f"available-{number}", user, ITEM_IDS[100], now)])
        job.eventually("a row", lambda: job.row(user) is not None)
        row = job.row(user)
        assert row is not None
        return {gone, dropped} & set(row.item_ids)

    def trending() -> set[str]:
        row = job.trending()
        return {gone, dropped} & set(row.item_ids) if row else set()

    assert listed(0) == {gone, dropped}
    # Enough clicks to have both among the trending, too.
    job.click([Click(f"trend-{n}", f"trend-{n}", ITEM_IDS[n % 2], now) for n in range(200)])
    job.eventually("both trend", lambda: trending() == {gone, dropped})
    job.catalogue([Item(gone, available=False)])
    job.send(ITEMS, dropped.encode(), None)
    job.eventually("both leave", lambda: not listed(time.time_ns()))
    job.eventually("both leave the trending row", lambda: not trending())
    job.catalogue([Item(gone), Item(dropped)])
    job.eventually("both come back", lambda: listed(time.time_ns()) == {gone, dropped})
    job.eventually("both trend again", lambda: trending() == {gone, dropped})


def test_a_release_that_is_not_whole_is_refused_and_the_old_one_serves(job: RunningJob, tmp_path: Path) -> None:
    missing = make_release(tmp_path / "missing", *FIRST[:2], version="20260101-000001")
    (tmp_path / "missing" / "model.onnx").unlink()
    truncated = make_release(tmp_path / "truncated", *FIRST[:2], version="20260101-000002")
    model = tmp_path / "truncated" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    altered = make_release(tmp_path / "altered", *FIRST[:2], version="20260101-000003")
    names = tmp_path / "altered" / "items"
    names.write_bytes(names.read_bytes().replace(b"item-000", b"item-zzz"))
    foreign = make_release(tmp_path / "foreign", *FIRST[:2], version="20260101-000004")
    foreign = dataclasses.replace(foreign, manifest_sha256="0" * 64)
    silent = make_release(tmp_path / "silent", *FIRST[:2], version="20260101-000005", model=b"no graph at all")
    for release in (missing, truncated, altered, foreign, silent):
        job.publish(release)
        user = f"refused-{release.version}"

        def refused(version: str = release.version, user: str = user) -> bool:
            # Refusals are told between two micro-batches, so there must be some.
            job.click([Click(f"{user}-{time.time_ns()}", user, ITEM_IDS[7], int(time.time() * 1000))])
            return any(version in letter.detail for letter in job.dead_letters() if letter.reason == "release-refused")

        job.eventually(f"{release.version} is refused", refused)
        row = job.row(user)
        assert row is not None and row.model_version == FIRST[2]
    told_of = " | ".join(
        letter.detail
        for letter in job.dead_letters()
        if letter.reason == "release-refused" and letter.topic == job.settings.topic(MODEL_RELEASES)
    )
    for word in (
        "model.onnx",
        "items",
        "manifest.json",
        "bytes, promised",
        "wrong digest",
        "cannot be read",
    ):
        assert word in told_of


def test_a_new_model_comes_in_while_events_flow_and_no_row_is_of_two(job: RunningJob, tmp_path: Path) -> None:
    clicks = make_clicks("swap", 1200, users=20)
    oracle = told(clicks)
    users = list(oracle.events)
    second = make_release(tmp_path / "second", *SECOND)
    known = {version: set(ids) for ids, _, version in (FIRST, SECOND)}
    best = {FIRST[2]: FIRST[1], SECOND[2]: SECOND[1]}
    written = dict.fromkeys(users, 0)
    seen = set()

    def look() -> None:
        for user in users:
            row = job.row(user)
            if row is None:
                continue
            assert row.write_time >= written[user], "a row went back"
            written[user] = row.write_time
            seen.add(row.model_version)
            order = [item for item in best[row.model_version] if item in set(row.item_ids)]
            assert set(row.item_ids) <= known[row.model_version] and row.item_ids == order, "a row of two models"

    for number in range(0, len(clicks), 60):
        if number == 240:
            job.publish(second)
        job.click(clicks[number : number + 60], per_second=200)
        look()
    assert seen == {FIRST[2], SECOND[2]}
    # Every user clicks once more, so that every row is of the new model.
    last = [Click(f"last-{user}", user, "new-1", int(time.time() * 1000)) for user in users]
    for click in last:
        oracle.click(click)
    job.click(last)
    job.agree(oracle, SECOND)


def test_the_ports_by_which_the_job_was_handed_over_are_closed(job: RunningJob) -> None:
    manager = psutil.Process(job.stack.server("jobmanager").process.pid)
    clients = [child for child in manager.children(recursive=True) if GATEWAY in child.environ()]
    assert clients, "the process that holds the lease stays"
    for client in clients:
        assert not answers(int(client.environ()[GATEWAY])), "anybody may run anything in the JobManager"
        assert not [one for one in client.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN]


def test_the_operators_and_their_metrics_bear_the_names_of_the_flow(job: RunningJob) -> None:
    names = job.operator_names()
    for word in ("read", "batch", "features", "trending", "control", "score", "write"):
        assert any(word in name for name in names), names
    # What was read is what was processed; the job is at rest by now.
    job.eventually(
        "all records are accounted for",
        lambda: (
            job.metric("features_records")
            == job.metric("features_events")
            + job.metric("features_duplicates")
            + job.metric("features_dead_letters")
            + job.metric("features_forgotten")
            + job.metric("features_erasures")
        ),
    )
    assert job.metric("score_users") == job.metric("write_rows") > 0
    assert job.metric("score_swaps") == 2
    assert job.metric("score_refused") == 5
    assert job.metric("score_model_version") == int(SECOND[2].replace("-", ""))
