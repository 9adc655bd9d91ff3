"""What the trainer says to the job, and in which order: stages, signatures, sequence numbers, roll-backs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import ConfigError, ContractError, ModelRefused
from schemas.release import ModelRelease, Stage, decode_release
from schemas.roll_back import RollBack, Standing
from schemas.signing import Trust, make_key, read_trust, stale
from trainer import __main__ as cli
from trainer import announce as announcing
from trainer.announce import Told, folder_of, promote, roll_back, served, trust_of
from trainer.config import DAY_MS, Settings
from trainer.publish import Release

pytestmark = pytest.mark.filterwarnings("ignore")
MakeRelease = Callable[..., Release]
FIRST, SECOND, THIRD = "20260101-000000", "20260101-000001", "20260101-000002"


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch, blocked: dict[str, RollBack]) -> list[ModelRelease]:
    """The release topic as a list: what is announced is appended."""
    messages: list[ModelRelease] = []

    def send(_: object, __: str, key: bytes, value: bytes) -> int:
        release = decode_release(value)
        assert isinstance(release, ModelRelease) and key == release.version.encode()
        messages.append(release)
        return len(messages) - 1

    monkeypatch.setattr(announcing, "send", send)
    monkeypatch.setattr(announcing, "told", lambda _: Told(list(messages), blocked))
    return messages


@pytest.fixture
def blocked() -> dict[str, RollBack]:
    """What the job has rolled back, by digest."""
    return {}


def announce(settings: Settings, release: Release, stage: Stage = "full", percent: int = 100) -> ModelRelease:
    return announcing.announce(settings, announcing.told(settings), release, stage, percent)


def stands(settings: Settings) -> Standing:
    return announcing.told(settings).standing


def test_a_roll_back_goes_to_the_parent_and_then_to_its_parent(
    make_release: MakeRelease, topic: list[ModelRelease], tmp_path: Path
) -> None:
    versions = ["20260101-000000", "20260101-000001", "20260101-000002"]
    for version, parent in zip(versions, [None, *versions], strict=False):
        announce(Settings(), make_release(version, parent))
    for expected in (versions[1], versions[0]):
        assert roll_back(Settings(), tmp_path / "releases", None).version == expected
    assert [message.version for message in topic] == [*versions, versions[1], versions[0]]
    with pytest.raises(ContractError, match="20260101-000000 has no parent"):
        roll_back(Settings(), tmp_path / "releases", None)


def test_a_damaged_release_can_be_left(make_release: MakeRelease, topic: list[ModelRelease], tmp_path: Path) -> None:
    announce(Settings(), make_release("20260101-000000"))
    damaged = make_release("20260101-000001", "20260101-000000")
    announce(Settings(), damaged)
    (damaged.folder / "model.onnx").unlink()
    assert roll_back(Settings(), tmp_path / "releases", None).version == "20260101-000000"
    announce(Settings(), damaged)
    (damaged.folder / "manifest.json").write_text("{}")
    with pytest.raises(ContractError, match=r"does not say what came before it .*; name a version"):
        roll_back(Settings(), tmp_path / "releases", None)
    assert roll_back(Settings(), tmp_path / "releases", "20260101-000000").version == "20260101-000000"


def test_a_roll_back_to_nothing_or_to_a_damaged_release_is_refused(
    make_release: MakeRelease, topic: list[ModelRelease], tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match="no release was ever announced"):
        roll_back(Settings(), tmp_path / "releases", None)
    damaged = make_release("20260101-000000")
    (damaged.folder / "items").write_text("")
    with pytest.raises(ModelRefused, match="items of release"):
        roll_back(Settings(), tmp_path / "releases", "20260101-000000")
    with pytest.raises(ContractError, match=r"there is no release 20250101-000000 .*known: 20260101-000000"):
        roll_back(Settings(), tmp_path / "releases", "20250101-000000")
    assert topic == []


# ── stages ──────────────────────────────────────────────────────────────────────────────────────


def said(messages: list[ModelRelease]) -> list[tuple[str, Stage, int]]:
    return [(message.version, message.stage, message.percent) for message in messages]


def test_a_release_goes_from_shadow_to_canary_to_everybody(
    make_release: MakeRelease, topic: list[ModelRelease]
) -> None:
    first, second = make_release(FIRST), make_release(SECOND, FIRST)
    announce(Settings(), first)
    announce(Settings(), second, "shadow")
    assert [m and m.version for m in stands(Settings())] == [FIRST, SECOND]
    promote(Settings(), "canary", 20)
    assert served(Settings()) == first, "the next cycle goes on from what serves, not from what is tried"
    promote(Settings())
    assert said(topic)[1:] == [(SECOND, "shadow", 100), (SECOND, "canary", 20), (SECOND, "full", 100)]
    assert [m and m.version for m in stands(Settings())] == [SECOND, None]
    assert served(Settings()) == second
    with pytest.raises(ContractError, match="no release is in shadow or canary"):
        promote(Settings())


def test_a_roll_back_during_a_trial_ends_the_trial_first(
    make_release: MakeRelease, topic: list[ModelRelease], tmp_path: Path
) -> None:
    announce(Settings(), make_release(FIRST))
    announce(Settings(), make_release(SECOND, FIRST))
    announce(Settings(), make_release(THIRD, SECOND), "canary", 5)
    assert roll_back(Settings(), tmp_path / "releases", None).version == SECOND
    assert stands(Settings()).trial is None
    assert roll_back(Settings(), tmp_path / "releases", None).version == FIRST


def test_what_the_job_rolled_back_is_neither_served_nor_promoted_nor_announced_again(
    make_release: MakeRelease, topic: list[ModelRelease], blocked: dict[str, RollBack], tmp_path: Path
) -> None:
    first, second, third = make_release(FIRST), make_release(SECOND, FIRST), make_release(THIRD, SECOND)
    for each in (first, second):
        announce(Settings(), each)
    announce(Settings(), third, "canary", 5)
    blocked[third.manifest_sha256] = RollBack(THIRD, third.manifest_sha256, "latency: 9 ms a user", 1, "1")
    with pytest.raises(ContractError, match="no release is in shadow or canary"):
        promote(Settings())
    with pytest.raises(ModelRefused, match=r"the job has rolled release 20260101-000002 back \(latency: 9 ms a user\)"):
        announce(Settings(), third)
    assert served(Settings()) == second
    blocked[second.manifest_sha256] = RollBack(SECOND, second.manifest_sha256, "drift", 1, "1")
    assert served(Settings()) == first
    with pytest.raises(ModelRefused, match="has rolled release 20260101-000001 back"):
        roll_back(Settings(), tmp_path / "releases", SECOND)
    assert len(topic) == 3


@pytest.mark.parametrize(
    ("stage", "percent", "cause"),
    [
        ("canary", None, "--percent says"),
        ("full", 5, "--percent says"),
        ("shadow", 5, "--percent says"),
        ("beta", None, "is no stage"),
    ],
)
def test_a_stage_and_its_percentage_go_together(stage: str, percent: int | None, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        cli._share(stage, percent)


def test_a_stage_as_it_is_asked_for() -> None:
    asked: list[tuple[str, int | None]] = [("full", None), ("shadow", None), ("canary", 5)]
    assert [cli._share(*each) for each in asked] == [("full", 100), ("shadow", 100), ("canary", 5)]


# ── signatures ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def signing(tmp_path: Path) -> Settings:
    """Settings of a trainer that signs."""
    make_key(tmp_path / "keys" / "release.key")
    return Settings(trainer={"signing_key": tmp_path / "keys" / "release.key", "valid_days": 2})


def test_every_message_is_signed_numbered_and_ends(
    make_release: MakeRelease, topic: list[ModelRelease], signing: Settings, tmp_path: Path
) -> None:
    trust = read_trust(tmp_path / "keys")
    announce(signing, make_release(FIRST))
    announce(signing, make_release(SECOND, FIRST), "canary", 5)
    promote(signing)
    roll_back(signing, tmp_path / "releases", None)
    taken = 0
    for message in topic:
        assert trust.refusal(message, "model-releases") is None
        assert stale(message, taken, message.published_at) is None
        assert message.expires_at == message.published_at + 2 * DAY_MS
        taken = message.sequence
    # The honest roll-back is a new message for an old release: it passes where the old message would not.
    assert said(topic)[-1] == (FIRST, "full", 100)
    assert [message.sequence for message in topic] == [1, 2, 3, 4]


def test_nothing_is_signed_without_a_key(make_release: MakeRelease, topic: list[ModelRelease]) -> None:
    message = announce(Settings(), make_release(FIRST))
    assert (message.signature, message.sequence, message.expires_at) == (None, 0, 0)


def test_a_trainer_trusts_its_own_key_and_those_it_is_told_of(signing: Settings, tmp_path: Path) -> None:
    assert trust_of(Settings()) == Trust()
    assert trust_of(signing) == read_trust(tmp_path / "keys")
    older = make_key(tmp_path / "keys" / "older.key")
    both = Settings(trainer=signing.trainer.model_dump(), release_keys=tmp_path / "keys")
    assert len(trust_of(both).keys) == 2
    with pytest.raises(ConfigError, match="the job would refuse what it signs"):
        trust_of(Settings(trainer=signing.trainer.model_dump(), release_keys=older))


def test_a_message_names_its_folder_even_with_odd_letters(tmp_path: Path) -> None:
    folder = tmp_path / "größe 1%20"
    assert folder_of(ModelRelease("v", folder.as_uri(), "", 0)) == folder
