"""streaming → schemas ← trainer: who may know whom, read off the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"schemas", "streaming", "trainer", "deploy", "tests"}
MAY_IMPORT = {
    "schemas": set[str](),
    "streaming": {"schemas"},
    "trainer": {"schemas"},
    "deploy": {"schemas", "streaming", "trainer"},
}
# What opens connections or starts programs: no contract needs it.
CONNECTED = {
    "aiohttp", "asyncio", "cassandra", "confluent_kafka", "fsspec", "http", "httpx", "kafka",
    "pyflink", "requests", "socket", "ssl", "subprocess", "urllib",
}  # fmt: skip
# What a service that only encodes a click would have to install without need.
HEAVY = {"matplotlib", "onnx", "onnxruntime", "onnxscript", "polars", "tensorboard", "torch"}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Full names of all modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tops(file: Path) -> set[str]:
    """The packages a file imports from."""
    return {name.split(".")[0] for name in imported(file)}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_knows_itself_and_what_it_may_know_of_ours(package: str) -> None:
    files = files_of(package)
    assert files
    foreign = {str(file.relative_to(ROOT)): tops(file) & (OURS - MAY_IMPORT[package] - {package}) for file in files}
    assert {name: known for name, known in foreign.items() if known} == {}


@pytest.mark.parametrize("forbidden", [CONNECTED, HEAVY], ids=["connections", "heavy"])
def test_contracts_open_no_connection_and_need_no_large_library(forbidden: set[str]) -> None:
    found = {file.name: tops(file) & forbidden for file in files_of("schemas")}
    assert len(found) > 10
    assert {name: known for name, known in found.items() if known} == {}


def test_the_operators_do_not_import_at_the_top_what_deadlocks_in_a_task_thread() -> None:
    # See streaming/model.py: their bindings ask for the interpreter's lock in a wrong way.
    for file in files_of("streaming"):
        top = {n.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import) for n in node.names}
        assert not {name.split(".")[0] for name in top} & {"onnxruntime", "polars", "torch"}, file.name


def test_parsing_finds_imports_of_every_form(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import a.b, c\nfrom d.e import f\ndef g():\n    import h\n")
    assert set(imported(file)) == {"a.b", "c", "d.e.f", "h"}
    assert tops(file) == {"a", "c", "d", "h"}
