"""A release's files, as they were promised, or a refusal: nothing is parsed before its digest fits.

    message (signed, if keys are configured) ─names▶ digest of the manifest ─names▶ digest and size of every file
No more of a file is read than was promised. On a disk the folder and its files must be what they seem: links, pipes
and devices are not opened, and all files come through one handle of the folder, whatever is put in its place meanwhile.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import unquote, urlparse

import fsspec

from schemas.errors import ModelRefused
from schemas.release import FILES, MANIFEST, MANIFEST_BYTES, Manifest, ModelRelease, check_file, open_manifest

READABLE = "make the folder readable for the job's machines"
# Reads at most so many bytes of a file of the release.
Read = Callable[[str, int], bytes]


def fetch(release: ModelRelease) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and the content of every one of FILES, all digests checked. Raises ModelRefused."""
    if ".." in PurePosixPath(unquote(urlparse(release.uri).path)).parts:
        raise ModelRefused(f"release {release.version} lies at {release.uri}, which leads elsewhere", "name its folder")
    with _folder(release) as read:
        content = read(MANIFEST, MANIFEST_BYTES + 1)
        if len(content) > MANIFEST_BYTES:
            raise ModelRefused(
                f"{MANIFEST} of release {release.version} has more than {MANIFEST_BYTES} bytes",
                "publish the release again",
            )
        manifest = open_manifest(content, release)
        if strange := sorted(set(manifest.files) - set(FILES)):
            raise ModelRefused(
                f"{MANIFEST} of release {release.version} names {strange[0]!r}, which no release has",
                "publish the release again",
            )
        files = {}
        for name in FILES:
            promised = manifest.files[name].size if name in manifest.files else 0
            # One byte more tells a file that is longer than promised.
            files[name] = read(name, promised + 1)
            check_file(manifest, name, files[name])
        return manifest, files


@contextmanager
def _folder(release: ModelRelease) -> Iterator[Read]:
    place = urlparse(release.uri)
    if place.scheme not in ("", "file"):
        yield lambda name, most: _read_remote(release, name, most)
        return
    path = unquote(place.path).rstrip("/")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _unreadable(release, MANIFEST, error) from error
    try:
        yield lambda name, most: _read_local(release, handle, name, most)
    finally:
        os.close(handle)


def _read_local(release: ModelRelease, folder: int, name: str, most: int) -> bytes:
    try:
        # A pipe would be waited for; O_NONBLOCK opens it at once, and then it is refused.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError("it is no plain file")
            return opened.read(most)
    except OSError as error:
        raise _unreadable(release, name, error) from error


def _read_remote(release: ModelRelease, name: str, most: int) -> bytes:
    try:
        with fsspec.open(f"{release.uri.rstrip('/')}/{name}", "rb") as file:
            content: bytes = file.read(most)
            return content
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(release, name, error) from error


def _unreadable(release: ModelRelease, name: str, error: Exception) -> ModelRefused:
    return ModelRefused(f"{name} of release {release.version} cannot be read at {release.uri} ({error})", READABLE)
