"""Files appear whole or not at all, and what goes wrong is told in a sentence."""

import itertools
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lossatlas import files
from lossatlas.errors import FileError

WRITER = """
    import itertools, sys
    from pathlib import Path
    from lossatlas import files
    folder = Path(sys.argv[1])
    print("ready", flush=True)
    for round in itertools.count():
        content = bytes([round % 251]) * 300_000
        files.write_file(folder / "file", content)
        files.commit_folder(folder / "store" / f"{round}", {"a": content, "b": content}, scratch=folder / "store")
"""


def started(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that has printed its first line."""
    call = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{files.TEMPORARY}*"))


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    files.write_file(path, b"one")
    files.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_killed_writers_leave_whole_files_and_what_can_be_cleared(tmp_path: Path) -> None:
    moments = random.Random(0)
    left = 0
    for _ in range(8):
        with started(WRITER, tmp_path) as process:
            time.sleep(moments.uniform(0.01, 0.05))
            process.kill()
        left += len(temporaries(tmp_path))
        if (tmp_path / "file").exists():
            content = (tmp_path / "file").read_bytes()
            assert len(content) == 300_000
            assert len(set(content)) == 1
        for folder in (tmp_path / "store").glob("[0-9]*"):
            assert {p.name: p.stat().st_size for p in folder.iterdir()} == {"a": 300_000, "b": 300_000}
        files.remove_dead_temporaries(tmp_path)
        files.remove_dead_temporaries(tmp_path / "store")
        assert not temporaries(tmp_path)
    assert left > 0  # or no kill came in the middle of a write, and this test has shown nothing


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    files.write_file(tmp_path / "file", bytes(300_000))
    seen: set[bytes] = set()
    end = time.monotonic() + 60  # a slow disk takes long over each write
    with started(WRITER, tmp_path) as process:
        try:
            while len(seen) < 10 and time.monotonic() < end:
                seen |= {(tmp_path / "file").read_bytes() for _ in range(100)}
        finally:
            process.kill()
    assert len(seen) > 1  # the file changed under the reader
    assert all(len(content) == 300_000 and len(set(content)) == 1 for content in seen)


def test_a_folder_appears_at_once_and_the_first_writer_wins(tmp_path: Path) -> None:
    folder = tmp_path / "ab" / "abc"
    assert files.commit_folder(folder, {"a": b"1", "b": b"2"}, scratch=tmp_path)
    assert not files.commit_folder(folder, {"a": b"other"}, scratch=tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"a": b"1", "b": b"2"}
    assert not temporaries(tmp_path)


def test_of_writers_that_race_one_wins_each_folder(tmp_path: Path) -> None:
    racer = """
        import sys
        from pathlib import Path
        from lossatlas import files
        root, me = Path(sys.argv[1]), sys.argv[2].encode()
        print("ready", flush=True)
        for k in range(40):
            won = files.commit_folder(root / str(k), {"who": me, "again": me}, scratch=root)
            print(k if won else -1)
    """
    racers = [started(racer, tmp_path, name) for name in "xyz"]
    wins = [[int(line) for line in process.communicate()[0].split() if line != "-1"] for process in racers]
    assert all(process.returncode == 0 for process in racers)
    assert sorted(itertools.chain(*wins)) == list(range(40))
    for name, won in zip("xyz", wins, strict=True):
        for k in won:
            assert {p.read_text() for p in (tmp_path / str(k)).iterdir()} == {name}
    assert not temporaries(tmp_path)


def test_only_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    zombie = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], dict(os.environ))
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken note
    own = files.temporary_name("own-stem")
    try:
        stem, host, _pid, rest = own.rsplit("-", 3)
        kept = [
            own,
            f"{stem}-{host}-{sleeper.pid}-{rest}",
            f"{stem}-elsewhere-{finished.pid}-{rest}",  # another host's processes are not ours to judge
            f"{files.TEMPORARY}foreign",
            f"{files.TEMPORARY}a-{host}-x-{rest}",
            "file",
        ]
        gone = [f"{stem}-{host}-{finished.pid}-{rest}", f"{stem}-{host}-{zombie}-{rest}"]
        for name in (*kept, *gone):
            (tmp_path / name).touch()
        (tmp_path / gone[0]).unlink()
        (tmp_path / gone[0]).mkdir()
        (tmp_path / gone[0] / "part").touch()
        files.remove_dead_temporaries(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    finally:
        sleeper.kill()
        sleeper.wait()
        os.waitpid(zombie, 0)
    files.remove_dead_temporaries(tmp_path / "nowhere")


def test_names_of_temporaries_are_used_once() -> None:
    assert len({files.temporary_name("a") for _ in range(1000)}) == 1000


def test_a_file_is_as_it_was_written_or_damaged(tmp_path: Path) -> None:
    parts = {"a": b"1", "b c": b""}
    files.commit_folder(tmp_path / "folder", {**parts, files.SUMS: files.check_sums(parts)}, scratch=tmp_path)
    folder = tmp_path / "folder"
    assert {name: files.read_checked(folder, name) for name in parts} == parts
    # printf 1 | sha256sum; sha256sum < /dev/null
    assert files.saved_sums(folder) == {
        "a": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
        "b c": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    (folder / "new").touch()
    (folder / "b c").write_bytes(b"2")
    for name in ("new", "b c"):
        with pytest.raises(files.Damaged, match=f"folder/{name} is damaged: its check sum differs"):
            files.read_checked(folder, name)
    with pytest.raises(files.Damaged, match="folder/c is missing"):
        files.read_checked(folder, "c")
    (folder / files.SUMS).write_bytes((folder / files.SUMS).read_bytes()[:-1])
    with pytest.raises(files.Damaged, match="SHA256SUMS is damaged"):
        files.read_checked(folder, "a")


def test_what_is_damaged_is_set_aside_once(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "a").write_bytes(b"1")
    assert files.set_aside(tmp_path / "step", tmp_path / "damaged" / "step-1")
    assert not files.set_aside(tmp_path / "step", tmp_path / "damaged" / "step-2")  # somebody was first: harmless
    assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["step-1"]


def test_a_path_through_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"Cannot write .*/file/a: a part of this path is a file, not a folder"):
        files.write_file(tmp_path / "file" / "a", b"")
    with pytest.raises(FileError, match="a part of this path is a file"):
        files.commit_folder(tmp_path / "file" / "a", {}, scratch=tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="this is a folder, not a file"):
        files.write_file(tmp_path / "folder", b"")
    assert not temporaries(tmp_path)


@pytest.mark.parametrize(
    ("number", "told"),
    [("ENOSPC", "the disk is full"), ("EDQUOT", "quota"), ("EACCES", "permission denied"), ("EROFS", "read-only")],
)
def test_refusals_of_the_system_are_told(
    number: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(_handle: int) -> None:
        raise OSError(getattr(errno, number), "the system's own words")

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (
        lambda: files.write_file(tmp_path / "file", b"1"),
        lambda: files.commit_folder(tmp_path / "folder", {"a": b"1"}, scratch=tmp_path),
    ):
        with pytest.raises(FileError, match=f"Cannot write {tmp_path}.*{told}.*What was finished before is kept"):
            write()
    assert list(tmp_path.iterdir()) == []
