"""The one module that writes files: whole or not at all, whatever dies in between."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from lossatlas.errors import FileError

TEMPORARY = ".tmp-"


def temporary_name(stem: str) -> str:
    """A name that no other writer uses and that tells whose it is: `.tmp-<stem>-<host>-<pid>-<random>`."""
    host = socket.gethostname().replace("-", "_")
    return f"{TEMPORARY}{stem}-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, never a part.

    Raises FileError when the disk is full, or the folder cannot be written.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / temporary_name(path.name)
        try:
            _write_synced(temporary, content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def commit_folder(folder: Path, files: Mapping[str, bytes], *, scratch: Path) -> bool:
    """Make `folder` appear with all `files` in it at once; False if another writer was first (its copy stays).

    The files are written and synced under `scratch` (on the same file system) and the folder is renamed:
    it exists if and only if it is complete.
    """
    with _explained(folder):
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = scratch / temporary_name(folder.name)
        try:
            temporary.mkdir()
            for name, content in files.items():
                _write_synced(temporary / name, content)
            _sync_folder(temporary)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.rename(folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_folder(folder.parent)
        return True


def set_aside(path: Path, aside: Path) -> None:
    """Move a damaged file or folder out of the way; harmless if somebody else has done so already."""
    with _explained(path):
        aside.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)


def remove_dead_temporaries(folder: Path) -> None:
    """Remove what writers of this host that no longer live have left in `folder`, as far as we may."""
    host = socket.gethostname().replace("-", "_")
    for leftover in folder.glob(f"{TEMPORARY}*"):
        owner = leftover.name.rsplit("-", 3)[1:]  # host, pid, random
        if len(owner) < 3 or owner[0] != host or not owner[1].isdigit() or _lives(int(owner[1])):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    try:
        # A zombie still answers kill(pid, 0); its state in /proc tells it from the living.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True  # no /proc here


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut; file systems that cannot are left as they are."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into sentences."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full. Free some space, or choose another folder with --out or --store",
            errno.EDQUOT: "the disk quota is used up. Free some space, or choose another folder with --out",
            errno.EACCES: "permission denied. Choose a folder that you may write with --out or --store",
            errno.EPERM: "permission denied. Choose a folder that you may write with --out or --store",
            errno.EROFS: "the file system is read-only. Choose another folder with --out or --store",
            errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another path",
            errno.EEXIST: "a part of this path is a file, not a folder. Choose another path",
            errno.EISDIR: "this is a folder, not a file. Choose another path",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise FileError(f"Cannot write {path}: {reason}. What was finished before is kept.") from error
