"""Creates the keyspace and the tables of the contract, for one tenant."""

from cassandra import DriverException

from deploy.local.cassandra import cql
from schemas.errors import ContractError
from schemas.recommendation import table_statements
from schemas.settings import CommonSettings

# A schema change waits for its files; the first one of a new node can take seconds.
CREATE_S = 30.0


def create_tables(settings: CommonSettings, replication: int = 1) -> None:
    """Create what is missing.

    Raises UnreachableError without Cassandra, ContractError when it refuses a statement.
    """
    with cql(settings.cassandra) as session:
        try:
            for statement in table_statements(settings.keyspace, replication):
                session.execute(statement, timeout=CREATE_S)
        except DriverException as error:
            raise ContractError(
                f"Cassandra refuses the tables of {settings.keyspace}: {error}",
                "see schemas/recommendation.cql",
            ) from error
