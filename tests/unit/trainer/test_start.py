"""Where a network begins: from counts, or from one that was saved, for the items of today."""

from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.features import Vocabulary
from tests.unit.trainer.learning import item_ids
from tests.unit.trainer.shop import START_MS, clicks_of
from tests.unit.trainer.test_network import history, newest
from trainer.config import DAY_MS
from trainer.cooccurrence import item_vectors
from trainer.network import Network, log_share
from trainer.recipe import NetworkConfig
from trainer.sequences import histories
from trainer.start import grown_network, meet, recent_popularity, save_checkpoint, start_network

THEN = item_ids(20)


@pytest.fixture
def before() -> Network:
    torch.manual_seed(0)
    made = Network(NetworkConfig(items=20, width=16, heads=2, text=8)).eval()
    made.set_popularity(torch.arange(21))
    return made


@pytest.fixture
def checkpoint(before: Network, tmp_path: Path) -> Path:
    save_checkpoint(before, THEN, tmp_path / "c" / "v.pt")
    return tmp_path / "c" / "v.pt"


def test_the_same_items_give_the_same_network(before: Network, checkpoint: Path) -> None:
    after = grown_network(checkpoint, THEN, 8, seed=9).eval()
    assert after.config == before.config
    inputs = history(4, 20)
    inputs["item_index"] %= 21
    for network in (before, after):
        network.set_text(torch.ones(21, 8))
    assert torch.equal(newest(after, inputs), newest(before, inputs))


def test_what_is_known_of_an_item_follows_it_by_its_id(before: Network, checkpoint: Path) -> None:
    """Reordered, two gone, three new: as the catalogue of another day."""
    today = ["new-a", *reversed(THEN[2:]), "new-b", "new-c"]
    after = grown_network(checkpoint, today, 8, seed=9)
    assert after.config.items == 21
    for index, item_id in enumerate(today, start=1):
        if item_id in THEN:
            then = THEN.index(item_id) + 1
            assert torch.equal(after.item.weight[index], before.item.weight[then]), item_id
            assert after.popularity[index] == before.popularity[then], item_id
        else:
            assert 0 < after.item.weight[index].norm() < 0.2, item_id
            assert after.popularity[index] == before.popularity.min(), item_id
    assert not after.item.weight[0].any()
    of_items = {"item.weight", "popularity"}
    old, new = before.state_dict(), after.state_dict()
    assert set(old) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in set(old) - of_items)


@pytest.mark.parametrize("width", [0, 12])
def test_texts_of_another_width_begin_silent(checkpoint: Path, width: int) -> None:
    after = grown_network(checkpoint, THEN, width, seed=9)
    assert after.config.text == width
    after.set_text(torch.ones(21, width))
    assert torch.equal(after.table(), after.item.weight)


def test_a_first_network_knows_what_is_popular() -> None:
    rows = [(f"u{n}", f"i{n % 4 // 2}", n) for n in range(40)]  # i0 and i1, never i2
    events = histories(clicks_of(rows), Vocabulary(["i0", "i1", "i2"]))
    network = start_network(None, NetworkConfig(3, width=8, heads=2), events, ["i0", "i1", "i2"], seed=1)
    assert torch.equal(network.popularity, log_share(torch.tensor([0, 20, 20, 0])))


def test_recent_popularity_counts_back_from_the_newest_event() -> None:
    ago = [("old", 20.0), ("week", 3.0), ("week", 3.0), ("day", 0.5), ("day", 0.0)]
    rows = [(f"u{n}", item, START_MS - int(days * DAY_MS)) for n, (item, days) in enumerate(ago)]
    recent = recent_popularity(histories(clicks_of(rows), Vocabulary(["day", "week", "old"])), 3)
    counts = [[0, 2, 0, 0], [0, 2, 2, 0], [0, 2, 2, 1]]
    assert torch.equal(recent, torch.stack([log_share(torch.tensor(count)) for count in counts], dim=1))
    nothing = recent_popularity(histories(clicks_of(rows[:0]), Vocabulary(["day"])), 1)
    assert nothing.tolist() == [[0.0] * 3] * 2


def test_an_item_that_is_met_begins_among_those_it_came_with(before: Network) -> None:
    """Of two new items one came with i002 and i003, the other never; all of this after the network had learned."""
    known = [(f"u{n}", item, n) for n, item in enumerate(THEN[:18])]
    new = [
        (f"v{n}", item, 1_000 + 10 * n + place) for n in range(9) for place, item in enumerate(THEN[2:4] + THEN[18:19])
    ]
    events = histories(clicks_of(known + new), Vocabulary(THEN))
    old = before.item.weight.detach().clone()
    meet(before, events.before(1_000), events)
    own = before.item.weight.detach()
    like = torch.nn.functional.cosine_similarity(own[19][None], own)
    assert set(like.topk(3).indices.tolist()) == {3, 4, 19}
    assert own[19].norm() == pytest.approx(float(old[1:19].norm(dim=1).mean()), rel=1e-5)
    assert before.popularity[19] == log_share(torch.tensor([0, *[1] * 2, *[10] * 2, *[1] * 14, 9, 0]))[19]
    others = [index for index in range(21) if index != 19]
    assert torch.equal(own[others], old[others])


def test_items_that_go_together_begin_close_to_each_other() -> None:
    rows = []
    for user in range(40):  # two kinds of customers, who never buy of the other kind
        kind = "ab"[user % 2]
        rows += [(f"u{user}", f"{kind}{(user + n) % 8}", 1_000 * n + 1) for n in range(6)]
    vocabulary = Vocabulary([f"{kind}{n}" for kind in "ab" for n in range(8)])
    vectors = item_vectors(histories(clicks_of(rows), vocabulary), 16, 8, seed=0)
    unit = torch.nn.functional.normalize(vectors[1:], dim=1)
    likeness = unit @ unit.T
    same = likeness[:8, :8][~torch.eye(8, dtype=torch.bool)].mean()
    assert same > 0.5
    assert likeness[:8, 8:].abs().mean() < 0.2
    assert not vectors[0].any()
    assert np.isfinite(vectors.numpy()).all()
