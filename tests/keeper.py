"""Keep hold of a command and of every process that descends from it, daemons too.

The keeper, a process of its own, adopts orphans (Linux: "child subreaper"), so nothing that the command starts can
get away. It ends when the last of them has ended; SIGTERM makes it kill them all, as if a plug were pulled.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Process:
    """A process; its start time tells it from a later one with the same number."""

    pid: int
    born: int  # clock ticks since boot

    @classmethod
    def named(cls, pid: int) -> "Process":
        return cls(pid, int(_fields(pid)[19]))

    def runs(self) -> bool:
        """False for a zombie too: without an init nobody takes those away."""
        with contextlib.suppress(ChildProcessError):  # it may be our own child, or not
            os.waitpid(self.pid, os.WNOHANG)
        try:
            fields = _fields(self.pid)
        except OSError:
            return False
        return int(fields[19]) == self.born and fields[0] not in "ZX"


def descendants(root: int) -> list[Process]:
    """The processes below `root`, parents first."""
    children: dict[int, list[Process]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = _fields(int(folder.name))
            if fields[0] not in "ZX":
                children.setdefault(int(fields[1]), []).append(Process(int(folder.name), int(fields[19])))
    found = list(children.get(root, []))
    for process in found:  # which grows on the way
        found += children.get(process.pid, [])
    return found


def keep(command: Sequence[str], *, env: dict[str, str], cwd: Path, log: Path, with_parent: bool) -> Process:
    """Start a command in the hands of a keeper, in a session that Ctrl-C does not reach, with its output in `log`.

    `with_parent`: the death of the calling thread ends it, even by `kill -9` of its process.
    """
    parent = str(os.getpid() if with_parent else 0)
    arguments = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), parent, str(cwd), *command]
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(sys.executable, arguments, env, file_actions=streams, setsid=True)
    return Process.named(pid)


def end(process: Process, seconds: float = 10) -> None:
    """End a keeper and all that it holds; raises TimeoutError."""
    limit = time.monotonic() + seconds
    if process.runs():
        os.kill(process.pid, signal.SIGTERM)
    while process.runs():
        if time.monotonic() > limit:
            raise TimeoutError(f"process {process.pid} still runs {seconds:g} s after SIGTERM")
        time.sleep(0.01)


def _fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: state, parent, ...; the name before may hold anything but a last ')'."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _main(parent: str, cwd: str, *command: str) -> None:
    signals = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    if int(parent):
        assert libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0
        if os.getppid() != int(parent):  # it has died in the meantime
            return
    os.chdir(cwd)
    os.posix_spawnp(command[0], command, os.environ, setsigmask=[])
    ending = False
    while True:
        received = signal.sigtimedwait(signals, 0.05 if ending else 3600)
        ending = ending or (received is not None and received.si_signo == signal.SIGTERM)
        if ending:
            for process in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


if __name__ == "__main__":
    _main(*sys.argv[1:])
