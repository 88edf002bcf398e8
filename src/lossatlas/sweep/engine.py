"""Who does the work of a run: kept in `DIR/engine.json`, so that `lossatlas run DIR` goes on in the same way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lossatlas import files
from lossatlas.errors import FileError, UserError

ENGINES = ("inline", "processes", "slurm")


@dataclass(frozen=True)
class Engine:
    """How the work is to be done: the options of `lossatlas run`."""

    name: str = "inline"
    workers: int | None = None
    per_gpu: int = 1
    device: str = "auto"
    slurm: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the command says beyond the spec and the site file


def chosen(root: Path, given: Mapping[str, Any]) -> Engine:
    """The engine with the options that are `given` (not None), the others as the folder was last worked on.

    Another engine than then begins with the default options; a Slurm setting that is given as empty is forgotten.
    Raises UserError for options that do not go together, FileError if what the folder says is needed and damaged.
    """
    said = {name: value for name, value in given.items() if value not in (None, {})}
    name = said.get("name")
    if name not in (None, *ENGINES):
        raise UserError(f"--engine {name!r} is unknown. Allowed are {', '.join(ENGINES)}.")
    before = Engine()
    path = _file(root)
    if path.is_file():
        try:
            before = Engine(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            if name is None:
                raise FileError(f"{path} is damaged ({error}). Give --engine, and it is written anew.") from error
    if name is not None and name != before.name:
        before = Engine()
    if "slurm" in said:
        merged = {**before.slurm, **said["slurm"]}
        said["slurm"] = {key: value for key, value in merged.items() if value != ""}
    engine = dataclasses.replace(before, **said)
    if engine.slurm and engine.name != "slurm":
        raise UserError(
            f"--slurm was given, and the engine is {engine.name}. Give --engine slurm, or leave it out."
        )
    return engine


def remember(root: Path, engine: Engine) -> None:
    """Keep the choice, if it is not the one that is made for a new folder."""
    path = _file(root)
    if engine != Engine() or path.exists():
        files.write_file(path, (json.dumps(dataclasses.asdict(engine), indent=1, default=str) + "\n").encode())


def _file(root: Path) -> Path:
    return root / "engine.json"
