"""One small exported model for all tests that need a release; one thread for all that learn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schemas.features import Vocabulary
from tests.unit.trainer.shop import chain_clicks
from trainer.export import export
from trainer.publish import Release, building_folder, seal
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories, histories
from trainer.start import first_network

ITEM_IDS = [f"i{n:03d}" for n in range(80)]
UNTIL_MS = 1_700_000_000_000


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks here are small: on a busy machine threads wait for each other longer than they work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shop() -> Histories:
    return histories(chain_clicks(80, users=90, events=20, seed=8), Vocabulary(ITEM_IDS))


@pytest.fixture(scope="session")
def exported(shop: Histories, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, items and warmup."""
    folder = tmp_path_factory.mktemp("exported")
    export(first_network(NetworkConfig(len(ITEM_IDS)), shop, seed=2), ITEM_IDS, shop, folder, threads=1)
    return folder


@pytest.fixture
def make_release(exported: Path, tmp_path: Path) -> Callable[..., Release]:
    """Seals copies of the exported model as releases in tmp_path / "releases"."""

    def make(version: str, parent: str | None = None, receipt: dict[str, float] | None = None) -> Release:
        releases = tmp_path / "releases"
        folder = building_folder(releases, version)
        for file in exported.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        metrics = {"ndcg": 0.5, "hr": 0.6, "popularity_ndcg": 0.1, "popularity_hr": 0.2}
        trained_on = {"events": 1800, "until_ms": UNTIL_MS}
        return seal(folder, releases, version, parent, metrics, trained_on, receipt or {})

    return make
