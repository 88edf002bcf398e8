"""The one module that writes files: whole or not at all, whatever dies in between; and check sums beside them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from lossatlas.errors import FileError

TEMPORARY = ".tmp-"
SUMS = "SHA256SUMS"  # of the other files of a folder; `sha256sum --check` reads it too


class Damaged(ValueError):
    """A file is missing or not as it was written; the text says which and how."""


def temporary_name(stem: str) -> str:
    """The name of what is being written, which no other writer uses: `.tmp-<stem>-<host>-<pid>-<random>`."""
    return TEMPORARY + unique_name(stem)


def unique_name(stem: str) -> str:
    """A name that no other writer uses and that tells whose it is: `<stem>-<host>-<pid>-<random>`."""
    host = socket.gethostname().replace("-", "_")
    return f"{stem}-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def write_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, never a part.

    Unless it is `durable`, a power cut may undo or empty it, and writing takes a fifth of the time.
    Raises FileError when the disk is full, or the folder cannot be written.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / temporary_name(path.name)
        try:
            if durable:
                _write_synced(temporary, content)
            else:
                temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
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


def check_sums(files: Mapping[str, bytes]) -> bytes:
    """The content of SUMS for these files: a line `<sha256>  <name>` for each, after one with its own sum."""
    lines = "".join(f"{_sha256(content)}  {name}\n" for name, content in sorted(files.items())).encode()
    return _header(lines) + lines


def read_checked(folder: Path, name: str) -> bytes:
    """A file of a folder with SUMS; raises Damaged if either is missing or differs in a bit, OSError else."""
    content = _read(folder / name)
    if saved_sums(folder).get(name) != _sha256(content):
        raise Damaged(f"{folder / name} is damaged: its check sum differs")
    return content


def saved_sums(folder: Path) -> dict[str, str]:
    """The check sums in SUMS by file; raises Damaged if it is missing or damaged itself, OSError else."""
    header, _, lines = _read(folder / SUMS).partition(b"\n")
    if header + b"\n" != _header(lines):
        raise Damaged(f"{folder / SUMS} is damaged: its check sum differs")
    return {name: value for value, _, name in (line.partition("  ") for line in lines.decode().splitlines())}


def _header(lines: bytes) -> bytes:
    return f"# sha256 of the lines below: {_sha256(lines)}\n".encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error


def set_aside(path: Path, aside: Path) -> bool:
    """Move a damaged file or folder out of the way; False if somebody else has done so already."""
    with _explained(path):
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        return True


def remove(path: Path) -> None:
    """Remove a file, as far as there is one and we may."""
    with contextlib.suppress(OSError):
        path.unlink()


def remove_dead_temporaries(folder: Path) -> None:
    """Remove what writers of this host that no longer live have left in `folder`, as far as we may."""
    host = socket.gethostname().replace("-", "_")
    for leftover in folder.glob(f"{TEMPORARY}*"):
        owner = leftover.name.rsplit("-", 3)[1:]  # host, pid, random
        if len(owner) < 3 or owner[0] != host or not owner[1].isdigit() or lives(int(owner[1])):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            remove(leftover)


def lives(pid: int) -> bool:
    """Whether a process of this host lives; one that is dead but not yet reaped does not."""
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
