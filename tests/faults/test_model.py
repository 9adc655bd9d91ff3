"""A model that fails on some users, in ONNX Runtime itself: they get the trending list and their rows say so."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from schemas.click import ACTIONS
from tests.harness import RunningJob
from tests.releases import make_graph, make_release
from tests.traffic import ITEM_IDS, make_clicks, told
from tests.trial import note

POISON = "IMPRESSION"


def poisoned_graph() -> bytes:
    """The usual graph, that fails on every batch with a user whose newest event is a POISON."""
    model = onnx.load_from_string(make_graph(ITEM_IDS, ITEM_IDS))
    graph = model.graph
    padded = next(node for node in graph.node if node.output[0] == "scores")
    padded.output[0] = "scores_before"
    top = graph.node.pop()
    # A table of zeros for all actions but the last: its row would lie outside, and Gather fails.
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.zeros((ACTIONS.index(POISON) + 1, 1), np.float32), "zeros"),
            numpy_helper.from_array(np.array(-1, np.int64), "newest"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Gather", ["action", "newest"], ["last_action"], axis=1),
            helper.make_node("Gather", ["zeros", "last_action"], ["nothing"], axis=0),
            helper.make_node("Add", ["scores_before", "nothing"], ["scores"]),
            top,
        ]
    )
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.long
def test_a_user_on_whom_the_model_fails_gets_the_trending_list_and_nobody_else_notices(
    job: RunningJob, tmp_path: Path
) -> None:
    version = "20260103-000000"
    job.serve(make_release(tmp_path / "poisoned", ITEM_IDS, ITEM_IDS, version, model=poisoned_graph()))
    running = job.stack.rest.jobs()[-1].id
    restarts = job.stack.rest.restarts(running)
    clicks = [dataclasses.replace(c, action="VIEW") for c in make_clicks("poisoned", 900, users=40)]
    poisoned = {f"poisoned-user-{number}" for number in range(3)}
    now = int(time.time() * 1000)
    last = {click.user_id: click for click in clicks}
    clicks += [
        dataclasses.replace(last[user], event_id=f"poison-{user}", action=POISON, event_time=now) for user in poisoned
    ]
    oracle = told(clicks)
    job.click(clicks)
    job.agree(oracle, (ITEM_IDS, ITEM_IDS, version), users=sorted(oracle.events.keys() - poisoned))
    for user in poisoned:

        def trending(user: str = user) -> bool:
            row = job.row(user)
            return row is not None and row.source == "trending" and row.event_time == now

        job.eventually("the row is the trending list and says so", trending)
    assert job.stack.rest.restarts(running) == restarts, "the job restarted"
    job.halt()  # the next test wants another model
    note("the model fails on some users: their rows are the trending list")
