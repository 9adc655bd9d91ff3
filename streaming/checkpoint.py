"""A checkpoint of Flink's as it lies on disk: whether all of it is there, and where it left off in Kafka.

Flink's own classes read it, in the JVM that also runs the job, so every file system that Flink knows will do.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyflink.java_gateway import get_gateway

from streaming.batch import shards_in
from streaming.offsets import Partition

# How Flink names the folder of a checkpoint.
FOLDER = "chk-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    completed_ms: when it was. positions: the next offset of each partition. shards: how many users are dealt to; None
    where the version that wrote it did not say.
    """

    path: str
    completed_ms: int
    positions: dict[Partition, int]
    shards: int | None


class Damaged(Exception):  # noqa: N818 - an answer to a question
    """A checkpoint cannot be restored; the message says what is wrong with it."""


def open_checkpoint(path: str, topics: Iterable[str]) -> Checkpoint:
    """Read a checkpoint, and see that each file it names is there in its full length. Raises Damaged."""
    jvm: Any = get_gateway().jvm
    flink = jvm.org.apache.flink
    try:
        location = flink.runtime.state.filesystem.AbstractFsCheckpointStorageAccess.resolveCheckpointPointer(path)
        handle = location.getMetadataHandle()
        source = jvm.java.io.DataInputStream(handle.openInputStream())
        try:
            loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
            metadata = flink.runtime.checkpoint.Checkpoints.loadCheckpointMetadata(source, loader, path)
        finally:
            source.close()
        completed_ms = _status(handle.maybeGetPath().get()).getModificationTime()
    except Py4JJavaError as error:
        raise Damaged(f"its _metadata cannot be read ({_reason(error)})") from error
    positions: dict[Partition, int] = {}
    for state in _operator_states(metadata):
        content = _content(state)
        for topic in topics:
            positions.update({(topic, number): offset for number, offset in _offsets(content, topic)})
    for part in _handles(metadata):
        if (where := part.maybeGetPath()).isPresent():
            _require(where.get(), part.getStateSize())
    names = [operator.getOperatorName().orElse("") for operator in _each(metadata.getOperatorStates())]
    shards = next((found for name in names if (found := shards_in(name)) is not None), None)
    return Checkpoint(path, completed_ms, positions, shards)


def owned(path: str) -> bool:
    """Whether it is a checkpoint, which the job made for itself; what a person chose is a savepoint."""
    return path.rstrip("/").rpartition("/")[2].startswith(FOLDER)


def others(path: str) -> list[str]:
    """The completed checkpoints that lie beside one, of this run of the job and those before, the newest first."""
    jvm: Any = get_gateway().jvm
    root = jvm.org.apache.flink.core.fs.Path(path).getParent().getParent()
    found: list[tuple[int, str]] = []
    for run in _listed(root):
        for folder in _listed(run.getPath()) if run.isDir() else ():
            if folder.getPath().getName().startswith(FOLDER):
                found += [
                    (file.getModificationTime(), folder.getPath().toString())
                    for file in _listed(folder.getPath())
                    if file.getPath().getName() == "_metadata"
                ]
    return [other for _, other in sorted(found, reverse=True) if other.rstrip("/") != path.rstrip("/")]


def _operator_states(metadata: Any) -> Iterator[Any]:
    """Handles of operator state, where sources keep their offsets."""
    for subtask in _subtasks(metadata):
        for state in _each(subtask.getManagedOperatorState()):
            yield state.getDelegateStateHandle()


def _handles(metadata: Any) -> Iterator[Any]:
    """Handles of everything the checkpoint consists of."""
    yield from _operator_states(metadata)
    for subtask in _subtasks(metadata):
        for state in _each(subtask.getRawOperatorState()):
            yield state.getDelegateStateHandle()
        for state in _each(subtask.getManagedKeyedState(), subtask.getRawKeyedState()):
            if state.getClass().getSimpleName() == "IncrementalRemoteKeyedStateHandle":
                yield state.getMetaDataStateHandle()
                for file in _each(state.getSharedState(), state.getPrivateState()):
                    yield file.getHandle()
            else:
                yield state.getDelegateStateHandle()
        for state in _each(subtask.getInputChannelState(), subtask.getResultSubpartitionState()):
            yield state.getDelegate()


def _subtasks(metadata: Any) -> Iterator[Any]:
    for operator in _each(metadata.getOperatorStates()):
        yield from _each(operator.getStates())


def _each(*collections: Any) -> Iterator[Any]:
    """The elements of Java's collections."""
    for collection in collections:
        yield from collection.toArray()


def _content(handle: Any) -> bytes:
    """What a handle stands for. Raises Damaged."""
    held = handle.asBytesIfInMemory()
    if held.isPresent():
        return bytes(held.get())
    try:
        source = handle.openInputStream()
        try:
            return bytes(get_gateway().jvm.org.apache.commons.io.IOUtils.toByteArray(source))
        finally:
            source.close()
    except Py4JJavaError as error:
        raise Damaged(_reason(error)) from error


def _offsets(content: bytes, topic: str) -> Iterator[tuple[int, int]]:
    """Partition and offset of the topic's splits, which Flink writes as length, name, partition, offset, end.

    A split of which nothing was read yet has no offset but a negative mark.
    """
    name = topic.encode()
    mark = re.escape(len(name).to_bytes(2, "big") + name)
    for found in re.finditer(mark + rb"(.{4})(.{8}).{8}", content, re.DOTALL):
        if (offset := int.from_bytes(found[2], "big", signed=True)) >= 0:
            yield int.from_bytes(found[1], "big"), offset


def _require(path: Any, size: int) -> None:
    try:
        actual = _status(path).getLen()
    except Py4JJavaError as error:
        raise Damaged(f"{path.getName()} is missing ({_reason(error)})") from error
    if actual < size:
        raise Damaged(f"{path.getName()} has {actual} bytes, not {size}")


def _status(path: Any) -> Any:
    return path.getFileSystem().getFileStatus(path)


def _listed(path: Any) -> list[Any]:
    return list(path.getFileSystem().listStatus(path) or ())


def _reason(error: Py4JJavaError) -> str:
    return str(error.java_exception.toString()).splitlines()[0][:200]
