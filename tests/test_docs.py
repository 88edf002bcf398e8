"""What the documents say runs: Python blocks, specs, commands with their options, and links lead somewhere."""

import contextlib
import io
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import command
from command import TINY
from lossatlas import measures, registry, specs
from lossatlas.cli.app import app
from lossatlas.specs import Data, EarlyStop, Optimizer, Schedule, Slurm, Spec, Train
from lossatlas.sweep.collect import HISTORY_QUANTITIES, TRAINING_QUANTITIES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(language: str, documents: list[Path] = DOCUMENTS) -> list[tuple[str, str]]:
    """The fenced blocks of a language: (document, text)."""
    pattern = re.compile(rf"^```({language})\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(d.name, found[2]) for d in documents for found in pattern.finditer(d.read_text(encoding="utf-8"))]


def shell_lines(program: str) -> list[str]:
    """The lines of shell blocks that call a program, without their comments."""
    lines = [line for _, block in blocks("sh|console|bash") for line in block.splitlines()]
    calls = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [shlex.join(call) for call in calls if call and call[0] == program]


def test_the_documents_have_blocks_of_every_kind() -> None:
    assert blocks("python")
    assert blocks("toml")
    assert len(shell_lines("lossatlas")) > 5
    assert shell_lines("make")


@pytest.mark.parametrize("name", sorted({name for name, _ in blocks("python")}))
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "document"}
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        for document, block in blocks("python"):
            if document == name:
                exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize(("name", "block"), blocks("toml"), ids=[name for name, _ in blocks("toml")])
def test_specs_are_valid(name: str, block: str) -> None:
    raw = tomllib.loads(block)
    if "name" not in raw:  # a part of a spec: it goes into the place of the tiny one's
        raw = {**tomllib.loads(TINY.read_text()), **raw}
    assert specs.validate(raw, name).cells()


def test_tasks_of_ones_own_run_as_they_are_described(tmp_path: Path) -> None:
    documents = [ROOT / "docs" / "own-tasks.md"]
    ((_, module),) = blocks("python", documents)
    ((_, task),) = blocks("toml", documents)
    (tmp_path / "mytask.py").write_text(module)
    spec = command.edited(tmp_path, model="", data="", **{"[task]": task})
    done = command.run(tmp_path, "run", spec, "--out", "run")
    assert done.code == 0, done.err
    assert "ok" in done.out.splitlines()[0]
    assert "failed" not in done.out


@pytest.mark.parametrize("line", shell_lines("lossatlas"))
def test_commands_and_their_options_exist(line: str) -> None:
    _, *arguments = shlex.split(line)
    if arguments[0].startswith("-"):
        return
    known = {option for parameter in COMMANDS[arguments[0]].params for option in parameter.opts}
    given = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    assert given <= known


@pytest.mark.parametrize("line", shell_lines("make"))
def test_make_targets_exist(line: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert shlex.split(line)[1] in targets


def test_every_setting_of_a_spec_is_described() -> None:
    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8").replace("```", "")
    described = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", text))))
    sections = [Spec, Data, Train, Optimizer, Schedule, EarlyStop, Slurm]
    sections += [row.settings for row in measures.TABLE]
    fields = {name for section in sections for name in section.model_fields} - {"optimizer"}
    names = {*registry.DATA, *registry.MODELS, *registry.LOSSES}
    assert fields | names <= described


def test_every_variable_of_the_results_is_described() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    described = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    endings = {name for name in described if name.startswith("_")}  # "`a` and its `_se`"
    described |= {name + ending for name in described for ending in endings}
    measured = [quantity for step in measures.STEPS for group in step.quantities.values() for quantity in group]
    assert {quantity.name for quantity in (*measured, *TRAINING_QUANTITIES, *HISTORY_QUANTITIES)} <= described


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_between_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target
