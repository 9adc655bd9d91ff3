"""Every error the project raises on purpose.

    FreshrecError            1
    ├── ConfigError          2   a setting is unknown, of the wrong type, or contradicts another
    ├── ContractError        3   a schema, a table or a file is not what the contract says
    ├── UnreachableError     4   a server or a tool that must answer does not
    └── ModelRefused         5   a release does not hold what it promises

The number is the exit code of a command that ends with it.
A record that cannot be used is no error: it is a `BadRecord`, a value on its way to the dead letters.
"""

import sys
from collections.abc import Callable


class FreshrecError(Exception):
    """An error with its cause and its remedy, together one line."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}; {self.remedy}"


class ConfigError(FreshrecError):
    """A setting is unknown, of the wrong type or unit, or contradicts another."""

    exit_code = 2


class ContractError(FreshrecError):
    """A schema, a table or a file is not what the contract says."""

    exit_code = 3


class UnreachableError(FreshrecError):
    """A server or a tool that must answer does not."""

    exit_code = 4


class ModelRefused(FreshrecError):  # noqa: N818 (a refusal is the expected answer to a bad release)
    """A release does not hold what it promises."""

    exit_code = 5


def run_command(command: Callable[[], None], prefix: str = "error") -> None:
    """Run a command line; an error of the tree becomes one line on stderr and the exit code of the process."""
    try:
        command()
    except FreshrecError as error:
        print(f"{prefix}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
