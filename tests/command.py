"""The command `lossatlas` in processes of its own, which may be killed, without 3 s of imports for each.

A fork server imports the libraries once; each command is a fork of it that runs `lossatlas.cli.main`.
"""

import ast
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

TINY = Path(__file__).parent / "specs" / "tiny.toml"

_PRELOADED = ["lossatlas.cli.running", "lossatlas.figures", "lossatlas.phases", "lossatlas.landscape.trace"]
_PRELOADED += ["lossatlas.cli.local_running", "lossatlas.cli.mining_running", "lossatlas.cli.pair_running"]
_PRELOADED += ["lossatlas.landscape.curve_fitting", "lossatlas.landscape.similarity", "sklearn.datasets", __name__]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


class Running:
    """A command that is running, with its output in files."""

    def __init__(self, folder: Path, arguments: Sequence[object], **options: Any) -> None:
        self._streams = (folder / f"out-{time.monotonic_ns()}", folder / f"err-{time.monotonic_ns()}")
        argv = ["lossatlas", *map(str, arguments)]
        self.process: BaseProcess = _context().Process(target=_main, args=(argv, *self._streams), kwargs=options)
        self.process.start()

    @property
    def out(self) -> str:
        return self._streams[0].read_text() if self._streams[0].exists() else ""

    @property
    def err(self) -> str:
        return self._streams[1].read_text() if self._streams[1].exists() else ""

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is true, or the command has ended."""
        end = time.monotonic() + seconds
        while not condition() and self.process.is_alive():
            assert time.monotonic() < end, self.err
            time.sleep(0.005)

    def finish(self, seconds: float = 120) -> Finished:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"the command hangs: {self.err}"
        return Finished(self.process.exitcode, self._streams[0].read_text(), self.err)


def run(folder: Path, *arguments: object, **options: Any) -> Finished:
    """Run a command to its end; `folder` is its working directory unless `cwd` says otherwise."""
    return Running(folder, arguments, **{"cwd": folder, **options}).finish()


def steps_done(store: Path) -> dict[str, int]:
    """Every finished step of a store, with the time of its folder: a step that is done again changes it."""
    found = store.glob("[!.]*/??/*/result.json")  # not what is being written
    return {f"{file.parent.parent.parent.name}/{file.parent.name}": file.stat().st_mtime_ns for file in found}


def edited(folder: Path, name: str = "spec.toml", **replacements: str) -> Path:
    """The tiny spec with whole lines replaced, found by the key that they start with; None of them may miss."""
    lines = TINY.read_text().splitlines()
    for key, line in replacements.items():
        (index,) = [i for i, old in enumerate(lines) if old.split("=")[0].strip() == key]
        lines[index] = line
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def status(folder: Path, run_folder: Path) -> dict[str, Any]:
    """`lossatlas status --json` of a run."""
    finished = run(folder, "status", run_folder, "--json")
    assert finished.code == 0, finished.err
    content: dict[str, Any] = json.loads(finished.out)
    return content


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _main(
    argv: list[str],
    out: Path,
    err: Path,
    *,
    cwd: Path | None = None,
    obeys: bool = False,
    group: bool = False,
    env: Mapping[str, str] | None = None,
) -> None:
    # As in a command of a shell; processes of pytest-xdist ignore it, which is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if group:  # one of its own, as a shell gives to a command
        os.setpgid(0, 0)
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
    os.environ.pop("LOSSATLAS_STORE", None)
    os.environ.update({"MPLBACKEND": "agg", **(env or {})})
    if cwd:
        os.chdir(cwd)
    if obeys and os.geteuid() == 0:
        _give_up_capabilities()
    sys.argv = argv
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    from lossatlas.cli import main

    main()


def _give_up_capabilities() -> None:
    """Make root obey the permissions of files, as everybody else does."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0


def modules_loaded(arguments: Sequence[str], watched: Sequence[str], cwd: Path) -> tuple[list[str], str]:
    """Which of the watched modules a command has loaded when it ends without an error, and what it printed."""
    program = (
        "import sys\n"
        "from lossatlas.cli import main\n"
        f"sys.argv = ['lossatlas', *{list(arguments)!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        f"print([name for name in {list(watched)!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=cwd)
    printed, _, loaded = done.stdout.rstrip("\n").rpartition("\n")
    found: list[str] = ast.literal_eval(loaded)
    return found, printed
