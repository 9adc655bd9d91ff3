"""Text vectors are made once, and stand for items that nobody has clicked yet."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.features import Vocabulary
from tests.unit.trainer.learning import learn
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer import text as module
from trainer.config import PACKAGED
from trainer.fit import score_all
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories, histories
from trainer.start import first_network, grown_network, save_checkpoint
from trainer.text import text_vectors
from trainer.tune import Course

pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH = 6


class Encoder:
    """Says of each text how its words are spelt; remembers what it was asked."""

    max_seq_length = 256

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str], **_: object) -> NDArray[np.float64]:
        self.asked += texts
        return np.stack([np.random.default_rng(list(text.encode())).normal(size=WIDTH) for text in texts])


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    encoder = Encoder()
    monkeypatch.setattr(module, "_load", lambda _: encoder)
    return encoder


def test_what_was_encoded_is_not_encoded_again(encoder: Encoder, tmp_path: Path) -> None:
    first = text_vectors(["red shoe", "", "blue shoe", "red shoe"], "some/model", tmp_path)
    assert sorted(encoder.asked) == ["blue shoe", "red shoe"]
    again = text_vectors(["blue shoe", "red shoe"], "some/model", tmp_path)
    assert len(encoder.asked) == 2
    assert torch.equal(again[1:], first[[3, 1]])
    text_vectors(["green shoe", "red shoe"], "some/model", tmp_path)
    assert encoder.asked[2:] == ["green shoe"]
    text_vectors(["red shoe"], "another/model", tmp_path)
    assert encoder.asked[3:] == ["red shoe"]


def test_index_0_and_items_without_text_have_no_vector(encoder: Encoder, tmp_path: Path) -> None:
    vectors = text_vectors(["red", "", "blue"], "m", tmp_path)
    assert vectors.shape == (4, WIDTH) and vectors.dtype == torch.float32
    assert vectors.any(dim=1).tolist() == [False, True, False, True]


def test_without_texts_or_without_a_model_there_are_no_vectors(encoder: Encoder, tmp_path: Path) -> None:
    assert text_vectors(["", ""], "m", tmp_path).shape == (3, 0)
    assert text_vectors(["red"], "", tmp_path).shape == (2, 0)
    assert encoder.asked == []


def test_a_cache_that_is_not_whole_is_made_again(encoder: Encoder, tmp_path: Path) -> None:
    whole = text_vectors(["red", "blue"], "m", tmp_path)
    (tmp_path / "m.npz").write_bytes(b"no archive")
    assert torch.equal(text_vectors(["red", "blue"], "m", tmp_path), whole)
    assert len(encoder.asked) == 4
    text_vectors(["red", "blue"], "m", tmp_path)
    assert len(encoder.asked) == 4


def test_a_model_that_cannot_be_had_is_a_setting_to_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the text model .*no-such-model cannot be loaded"):
        text_vectors(["red"], str(tmp_path / "no-such-model"), tmp_path)


def test_the_packaged_model_knows_what_texts_are_about(tmp_path: Path) -> None:
    texts = ["Red lipstick, matte", "Rouge for the lips", "Cordless drill 18 V", "Electric screwdriver"]
    vectors = text_vectors(texts, PACKAGED, tmp_path)[1:]
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(vectors.norm(dim=1), 1.0, atol=1e-3)
    likeness = vectors @ vectors.T
    assert min(likeness[0, 1], likeness[2, 3]) > 1.5 * likeness[:2, 2:].max()
    began = time.monotonic()
    text_vectors(texts, PACKAGED, tmp_path)
    assert time.monotonic() - began < 0.5  # no model is loaded for what is known


KINDS, OF_EACH, LONG = 5, 12, 8


def shop_of_kinds() -> Histories:
    """Users who stay with one kind of items; item n is of kind n % KINDS."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(150):
        chosen = user % KINDS + KINDS * rng.permutation(OF_EACH)[:LONG]
        rows += [(f"u{user:03d}", f"i{item:02d}", START_MS + user * 1_000 + n) for n, item in enumerate(chosen)]
    return histories(clicks_of(rows), Vocabulary([f"i{n:02d}" for n in range(KINDS * OF_EACH)]), history=LONG)


def test_an_item_that_was_never_learned_is_known_by_its_text(tmp_path: Path) -> None:
    events, items = shop_of_kinds(), [f"i{n:02d}" for n in range(KINDS * OF_EACH)]
    rng = np.random.default_rng(2)
    about = rng.normal(size=(KINDS, 16))

    def told(count: int) -> torch.Tensor:
        """Texts of a kind say nearly the same."""
        text = about[np.arange(count) % KINDS] + 0.5 * np.random.default_rng(3).normal(size=(100, 16))[:count]
        made = torch.zeros(count + 1, 16)
        made[1:] = torch.nn.functional.normalize(torch.from_numpy(text).float(), dim=1)
        return made

    network = first_network(NetworkConfig(len(items), width=32, heads=4, text=16, history=LONG), events, seed=1)
    network.set_text(told(len(items)))
    learn(network, Course(events, None, None, None), passes=12)
    save_checkpoint(network, items, tmp_path / "then.pt")
    today = [*items, *(f"new{n}" for n in range(KINDS))]
    grown = grown_network(tmp_path / "then.pt", today, 16, seed=1).eval()
    with torch.no_grad():
        grown.item.weight[len(items) + 1 :] = 0.0
    grown.set_text(told(len(today)))
    users = np.unique(events.last)
    scores = score_all(grown, grown.table(), events, users)[:, 1:].numpy()
    kind_of_user = np.array([(events.item_index[place] - 1) % KINDS for place in users])
    kind_of_item = np.arange(len(today)) % KINDS
    own_new = scores[np.arange(len(users)), len(items) + kind_of_user]
    unrelated = kind_of_item[None] != kind_of_user[:, None]
    above = (own_new[:, None] > scores)[unrelated].reshape(len(users), -1)
    assert above.mean() > 0.9
