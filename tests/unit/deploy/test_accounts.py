"""The least that each account needs: no right too many, and every one the job's own names ask for."""

import pytest
from confluent_kafka.admin._acl import AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from deploy.local.accounts import kafka_rights, table_rights
from deploy.local.config import GivenSettings
from schemas.topics import topics
from streaming.config import Settings

ALL = [topic.name for topic in topics(1)]
# account → what it reads, what it writes; written down once more, so that a right too many is seen.
READS = {"job": set(ALL), "trainer": set(ALL) - {"dead-letters"}}
WRITES = {
    "job": {"dead-letters", "roll-backs"},
    "trainer": {"model-releases"},
    "producer": {"clicks", "items", "erasures"},
}


def given(namespace: str, kind: ResourceType, operation: AclOperation) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for right in kafka_rights(GivenSettings(namespace=namespace)):
        if (right.restype, right.operation) == (kind, operation):
            found.setdefault(right.principal.removeprefix("User:"), set()).add(right.name)
    return found


@pytest.mark.parametrize("namespace", ["", "shop1"])
def test_each_account_reads_and_writes_what_it_must_and_no_more(namespace: str) -> None:
    prefix = f"{namespace}." if namespace else ""
    for operation, expected in ((AclOperation.READ, READS), (AclOperation.WRITE, WRITES)):
        found = given(namespace, ResourceType.TOPIC, operation)
        assert found == {account: {prefix + name for name in names} for account, names in expected.items()}


@pytest.mark.parametrize("namespace", ["", "shop1"])
def test_rights_are_to_read_and_write_things_of_one_name(namespace: str) -> None:
    rights = kafka_rights(GivenSettings(namespace=namespace))
    assert {right.restype for right in rights} == {ResourceType.TOPIC, ResourceType.GROUP}
    assert {right.operation for right in rights} == {AclOperation.READ, AclOperation.WRITE}
    assert {right.resource_pattern_type for right in rights} == {ResourcePatternType.LITERAL}
    assert {right.permission_type for right in rights} == {AclPermissionType.ALLOW}
    assert all(right.name != "*" for right in rights)
    assert len(rights) == len(set(rights)), "Kafka's client takes no right twice"


@pytest.mark.parametrize("namespace", ["", "shop1"])
def test_the_job_may_join_the_groups_it_joins(namespace: str) -> None:
    settings = Settings(namespace=namespace)
    groups = given(namespace, ResourceType.GROUP, AclOperation.READ)
    assert {settings.job_name, settings.control_group, f"{settings.job_name}-lease"} <= groups["job"]
    assert groups["trainer"] == {"freshrec-trainer"}
    assert set(groups) == {"job", "trainer"}


def test_rows_are_written_by_the_job_and_read_by_it_and_the_reader() -> None:
    assert set(table_rights(GivenSettings(namespace="shop1"))) == {
        f"GRANT {right} ON shop1.{table} TO {account}"
        for right, account in (("SELECT", "job"), ("MODIFY", "job"), ("SELECT", "reader"))
        for table in ("recommendations", "trending")
    }
