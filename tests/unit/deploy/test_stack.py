"""The plan of a stack: kept in its folder, found by anyone, not changed under running servers."""

import sys
from pathlib import Path

import pytest

from deploy.local.config import load_local_settings
from deploy.local.process import Process
from deploy.local.reach import without_logins
from deploy.local.stack import Stack
from schemas.errors import ConfigError


def test_another_process_finds_the_same_plan(tmp_path: Path) -> None:
    stack = Stack.create(load_local_settings(state=tmp_path / "s", port_base=12_000), namespace="shop1")
    again = Stack.open(tmp_path / "s")
    assert again.plan == stack.plan
    assert again.settings.kafka.bootstrap == "127.0.0.1:12092"
    assert again.settings.topic("clicks") == "shop1.clicks"
    assert again.environment["FRESHREC_CASSANDRA__PORT"] == "12042"


def test_free_ports_stay_the_same_from_one_start_to_the_next(tmp_path: Path) -> None:
    local = load_local_settings(state=tmp_path)
    first = Stack.create(local, free_ports=True).ports.base
    assert Stack.create(local, free_ports=True).ports.base == first


def test_a_folder_without_a_stack_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no stack.*run up first"):
        Stack.open(tmp_path)


def test_a_running_stack_is_not_planned_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack.create(load_local_settings(state=tmp_path, port_base=12_000))
    monkeypatch.setattr(Stack, "running", lambda _: ["kafka"])
    with pytest.raises(ConfigError, match=r"kafka already run.*another port_base; run down first"):
        Stack.create(load_local_settings(state=tmp_path, port_base=13_000))
    assert Stack.create(load_local_settings(state=tmp_path, port_base=12_000)).plan == stack.plan


def test_wiping_leaves_the_jars_and_refuses_while_something_runs(tmp_path: Path) -> None:
    stack = Stack.create(load_local_settings(state=tmp_path, jars=tmp_path / "jars"))
    (tmp_path / "jars" / "kafka-1").mkdir(parents=True)
    (tmp_path / "kafka" / "data").mkdir(parents=True)
    supervisor = Process("supervisor", tmp_path)
    supervisor.start([sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.raises(ConfigError, match="supervisor still run"):
        stack.wipe()
    supervisor.stop()
    stack.wipe()
    assert [path.name for path in tmp_path.iterdir()] == ["jars"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"taskmanagers": 0}, "taskmanagers = 0"),
        ({"port_base": "ninety"}, "port_base = 'ninety'"),
        ({"taskmanagers": 15, "spares": 10}, "too many"),
        ({"metrics": True, "secure": True}, "metrics are for everybody"),
    ],
)
def test_a_wrong_setting_is_named(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_local_settings(**flags)


def test_a_setting_from_the_environment_counts_and_a_flag_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FRESHREC_LOCAL_TASKMANAGERS", "3")
    assert load_local_settings().taskmanagers == 3
    assert load_local_settings(taskmanagers=2).taskmanagers == 2


def test_a_secure_stack_tells_where_secrets_are_and_not_what_they_are(tmp_path: Path) -> None:
    stack = Stack.create(load_local_settings(state=tmp_path / "s", secure=True))
    keys = stack.keys
    assert keys is not None
    job = stack.environment_of("job")
    for section in ("KAFKA", "CASSANDRA"):
        assert job[f"FRESHREC_{section}__USERNAME"] == "job"
        assert job[f"FRESHREC_{section}__PASSWORD_FILE"] == str(keys.password_file("job"))
        assert job[f"FRESHREC_{section}__CA_FILE"] == str(keys.ca_file)
    assert stack.environment["FRESHREC_KAFKA__USERNAME"] == "admin"
    assert stack.settings_of("reader").cassandra.secret() == keys.password_file("reader").read_text()
    assert stack.flink_url.startswith("https://")
    passwords = [file.read_text() for file in keys.folder.glob("*.password")]
    told = f"{job} {(tmp_path / 's' / 'stack.json').read_text()}"
    assert not [password for password in passwords if password in told]


def test_a_plain_stack_has_no_keys_and_all_accounts_are_alike(tmp_path: Path) -> None:
    stack = Stack.create(load_local_settings(state=tmp_path / "s"))
    assert stack.keys is None
    assert not (tmp_path / "s" / "secure").exists()
    assert stack.environment_of("job") == stack.environment
    assert not [name for name in stack.environment if "PASSWORD" in name]


def test_who_somebody_is_elsewhere_is_nothing_to_a_stack() -> None:
    own = {"FRESHREC_KAFKA__PASSWORD": "x", "FRESHREC_CASSANDRA__CA_FILE": "x", "FRESHREC_KAFKA__USERNAME": "x"}
    others = {"PATH": "/bin", "FRESHREC_KAFKA__SCHEMA_REGISTRY_URL": "http://r"}
    assert without_logins({**own, **others}) == others


def test_data_made_without_locks_are_not_locked_afterwards_nor_the_other_way_round(tmp_path: Path) -> None:
    for secure, word in ((False, "without"), (True, "with")):
        state = tmp_path / word
        stack = Stack.create(load_local_settings(state=state, secure=secure))
        (state / "kafka").mkdir()
        with pytest.raises(ConfigError, match=f"were made {word} --secure; start it so, or run down --wipe first"):
            Stack.create(load_local_settings(state=state, secure=not secure))
        stack.wipe()
        assert Stack.create(load_local_settings(state=state, secure=not secure)).plan.secure is not secure


def test_a_plan_of_an_earlier_version_is_one_without_locks_that_lets_the_disk_wait(tmp_path: Path) -> None:
    stack = Stack.create(load_local_settings(state=tmp_path))
    file = tmp_path / "stack.json"
    for key in ("secure", "durable"):
        file.write_text(file.read_text().replace(f'"{key}": false,', ""))
    assert "durable" not in file.read_text()
    assert (stack.plan.secure, stack.plan.durable) == (False, False)
