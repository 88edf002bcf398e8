"""What the command prints: tables, sentences, progress; plain and never cut when it is not a terminal."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TextIO, TypeVar

import typer

from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import Stopped
from lossatlas.settings import without_nan

if TYPE_CHECKING:
    from rich.table import Table

P = ParamSpec("P")
R = TypeVar("R")

DONE, SOME_FAILED, USER_MISTAKE, LEFT, INTERRUPTED, TERMINATED = 0, 1, 2, 85, 130, 143


class Terminated(BaseException):
    """SIGTERM came."""


def catch_termination() -> None:
    """Let SIGTERM raise Terminated, so that it ends a command as Ctrl-C does."""

    def stop(_signal: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def say(text: str = "") -> None:
    """A line on standard output."""
    print(text, flush=True)  # noqa: T201  # the command's own voice


def note(text: str) -> None:
    """A line on standard error: what is going on, not part of the result."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table: drawn on a terminal, else tab-separated with the name in column 1, never wrapped or cut."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            say("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    from rich.console import Console

    Console().print(drawn(header, rows, title=title))


def drawn(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
    """A table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    found = Table(*header, title=Text(title) if title else None)
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))  # Text: what stands in brackets is no markup
    return found


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """A command that ends with a sentence and an exit code; LOSSATLAS_DEBUG=1 shows the traceback too."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _own_warnings_as_notes():
                return function(*args, **kwargs)
        except UserError as error:
            note(f"Error: {error}")
            code = USER_MISTAKE
        except KeyboardInterrupt:
            note("Interrupted. What was finished is kept.")
            code = INTERRUPTED
        except Terminated:
            note("Terminated. What was finished is kept.")
            code = TERMINATED
        except Stopped:
            note("Left as asked. What was finished is kept, and what was not is continued by the next worker.")
            code = LEFT
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, as `head`, has left
            code = DONE
        except OSError as error:
            note(f"Error: {error}. What was finished is kept.")
            code = USER_MISTAKE
        except (typer.Exit, SystemExit):
            raise
        except Exception as error:
            if os.environ.get("LOSSATLAS_DEBUG"):
                traceback.print_exc()
            note(
                f"Error: something that should not happen did: {type(error).__name__}: {error}. "
                "What was finished is kept. Please report it with the output of LOSSATLAS_DEBUG=1 lossatlas ..."
            )
            code = SOME_FAILED
        raise typer.Exit(code)

    return command


@contextmanager
def _own_warnings_as_notes() -> Iterator[None]:
    """Within it, a warning of a class of lossatlas is a note, told once, without a path and a line of source."""
    shown, told = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.partition(".")[0] != "lossatlas":
            shown(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.add(str(message))
            note(f"Note: {message}")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def strict_json(content: Any, indent: int | None = None) -> str:
    """Plain data as JSON, which has no NaN or infinity: a number that does not exist is null."""
    return json.dumps(without_nan(content), indent=indent, allow_nan=False)


def duration(seconds: float) -> str:
    """`45 s`, `3 min`, `4 h 10 min`, `12 d 3 h`: two units at most; `an unknown time`."""
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days < 100 else f"{days} d"


def size(count: float) -> str:
    """`12 MB`, `3.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
