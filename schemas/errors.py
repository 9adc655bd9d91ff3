"""Every error the project raises on purpose.

    FreshrecError            1
    ├── ConfigError          2   a setting is unknown, of the wrong type, or contradicts another
    ├── ContractError        3   a schema, a table or a file is not what the contract says
    ├── UnreachableError     4   a server or a tool that must answer does not
    └── ModelRefused         5   a release does not hold what it promises

The number is the exit code of a command that ends with it.
A record that cannot be used is no error: it is a `BadRecord`, a value on its way to the dead letters.
"""

import re
import sys
from collections.abc import Callable, Sequence

# A flag of such a name, or an address with a password in it.
_SECRET = re.compile(
    r"--[\w.-]*(password|passwd|secret|token|api-?key)(?!-file|_file)|\w+://[^/@\s]*:[^/@]+@", re.IGNORECASE
)


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
        _refuse_secrets(sys.argv[1:])
        command()
    except FreshrecError as error:
        print(f"{prefix}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _refuse_secrets(arguments: Sequence[str]) -> None:
    """Before anything else, for what stands on a command line is read by every user of the machine and kept in logs."""
    for place, argument in enumerate(arguments):
        if _SECRET.search(argument):
            named = [word for word in (argument, *arguments[place - 1 : place]) if word.startswith("--")]
            flag = named[0].split("=")[0] if named else "an address"
            raise ConfigError(
                f"{flag} puts a secret on the command line, where every user of this machine can read it",
                "set FRESHREC_KAFKA__PASSWORD or FRESHREC_CASSANDRA__PASSWORD, or name a file of it as password_file",
            )
