"""What went wrong for the user, as one paragraph: what is wrong, what was given, what is allowed, the way out."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; the command prints its text and exits with code 2."""


class SpecError(UserError):
    """Everything that is wrong with a spec, all at once: one line a problem, then the way out if there is one."""

    def __init__(self, source: str, problems: list[str], advice: str = "") -> None:
        self.source = source
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"{source} has {count}:\n"
            + "\n".join([*(f"  - {line}" for line in problems), *filter(None, [advice])])
        )


class FileError(UserError):
    """A file that the user named is missing, damaged, of another version, or cannot be written."""
