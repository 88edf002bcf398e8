"""`lossatlas findings` and `lossatlas advise`: tables, files, figures, mistakes; no torch."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import command
from command import Finished
from grids import build
from lossatlas import results

ACCURACIES = [50, 60, 70, 65, 55, 70, 80, 85]  # the test error falls, rises and falls again
SIDES = ["I", "I", "I", "I", "III", "III", "IV-A", "IV-B"]


def saved(folder: Path, name: str = "results.nc", **options: object) -> Path:
    """Eight widths by two batch sizes with all measures, and a double descent along the width."""
    cells = {
        (2**k, batch): {"phase": phase, "accuracy": a + batch / 16, "distance": 10.0 - k, "train_error": 0.0}
        for k, (a, phase) in enumerate(zip(ACCURACIES, SIDES, strict=True))
        for batch in (16, 32)
    }
    path = folder / name
    results.save(build(cells, **{"spread": 0.2, "noise": 0.05, "n_seeds": 4, **options}), path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("findings"))


def rows(text: str, delimiter: str = "\t") -> dict[str, dict[str, str]]:
    """The rows of the first table by their first column."""
    table = text.split("\n\n")[0]
    return {next(iter(row.values())): row for row in csv.DictReader(io.StringIO(table), delimiter=delimiter)}


def refused(done: Finished, *words: str) -> None:
    assert done.code == 2, done
    assert done.err.startswith("Error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def test_the_findings_are_one_plain_table(source: Path, tmp_path: Path) -> None:
    done = command.run(tmp_path, "findings", source)
    assert done.code == 0, done.err
    found = rows(done.out)
    assert len(found) == 15 + 8 + 2 + 8
    assert found["loss-falls"]["answer"] == "yes"
    assert found["best-in-IV-B"]["answer"] == "yes"
    assert found["decay-helps"]["answer"] == "not measured"
    assert "--against" in found["decay-helps"]["rests on"]
    assert found["zero-loss-pays width=4"]["answer"] == "not measured"
    descent = found["double-descent width batch_size=16"]
    assert descent["answer"] == "yes"
    assert "rises 15 % from 4 to 16" in descent["rests on"].replace("15.00", "15")
    assert "+0.5 steps from the edge" in descent["rests on"]
    assert found["double-descent batch_size width=4"]["answer"] == "not measured"  # two cells
    assert "Threshold of ln_trace: 5.5" in done.err


def test_the_files_hold_all_of_it(source: Path, tmp_path: Path) -> None:
    done = command.run(tmp_path, "findings", source, "--out", "out", "--at", "width=16")
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{stem}.{kind}" for stem in ("trace_lines", "slice-width-16") for kind in ("pdf", "png")}
    figures |= {
        f"{stem}-batch_size-{batch}.{kind}"
        for stem in ("slice", "descent")  # no search along two batch sizes
        for batch in (16, 32)
        for kind in ("pdf", "png")
    }
    tables = {f"{name}.csv" for name in ("claims", "columns", "double_descent", "cells")}
    assert names == figures | tables | {"findings.json"}
    claims = rows((tmp_path / "out" / "claims.csv").read_text(), ",")
    assert claims["best-in-IV-B"]["figure"] == "2 and 3"
    with (tmp_path / "out" / "cells.csv").open() as stream:
        cells = list(csv.DictReader(stream))
    assert len(cells) == 16
    assert float(cells[0]["test_accuracy"]) == pytest.approx(51, rel=1e-5)  # six digits
    everything = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert everything["thresholds"]["ln_trace"] == 5.5
    assert len(everything["claims"]) == 15
    assert everything["double_descent"][0]["peak"] == 16
    assert everything["claims"][-1]["margin"] is None
    slice_table = done.out.split("\n\n")[1].splitlines()
    assert slice_table[0].split("\t")[:3] == ["width", "batch_size", "phase"]
    assert [line.split("\t")[:3] for line in slice_table[1:]] == [["16", "16", "III"], ["16", "32", "III"]]


def test_the_other_schedule(tmp_path: Path) -> None:
    decayed = saved(tmp_path, "decayed.nc", attrs={"spec": {"train": {"schedule": {"name": "step"}}}})
    constant = saved(tmp_path, "constant.nc", attrs={"spec": {"train": {}}})
    done = command.run(tmp_path, "findings", decayed, "--against", constant)
    assert done.code == 0, done.err
    assert rows(done.out)["decay-helps"]["answer"] == "undecided"  # twice the same accuracies


def test_slices_and_figures_of_three_axes(tmp_path: Path) -> None:
    cells = {
        (width, n, batch): {"phase": "IV-A", "accuracy": 50 + width, "trace": 4 + n / 1000}
        for width in (2, 4)
        for n in (100, 200)
        for batch in (16, 32)
    }
    results.save(build(cells, axes=("width", "n_train", "batch_size"), spread=1.0), tmp_path / "three.nc")
    done = command.run(tmp_path, "findings", "three.nc", "--out", "out", "--at", "n_train=100,width=4")
    assert done.code == 0, done.err
    lines = done.out.split("\n\n")[1].splitlines()
    assert [line.split("\t")[:4] for line in lines[1:]] == [["4", "100", "16", "IV-A"], ["4", "100", "32", "IV-A"]]
    names = {path.stem for path in (tmp_path / "out").glob("*.pdf")}
    assert names == {"trace_lines-n_train-100", "trace_lines-n_train-200", "slice-n_train-100-width-4"}
    found = rows(done.out)
    assert found["data-sharpens"]["answer"] == "yes"
    assert found["zero-loss-pays width=4 n_train=200"]["answer"] == "not measured"
    refused(command.run(tmp_path, "findings", "three.nc", "--at", "width=4"), "leaves n_train, batch_size free")


def test_thresholds_are_those_of_phases(source: Path, tmp_path: Path) -> None:
    done = command.run(tmp_path, "findings", source, "--set", "cka=0.2")
    assert "no cell in Phase IV-A" in rows(done.out)["III-accuracy"]["rests on"]
    assert "Threshold of cka: 0.2 (given)" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at", "height=3"], ["no axis 'height'", "width, batch_size"]),
        (["--at", "width=3"], ["width = 3 is no value", "1, 2, 4"]),
        (["--at", "width"], ["--at 'width' names no slice", "--at width=16"]),
        (["--at", "width=many"], ["names no slice"]),
        (["--at", "width=4,batch_size=16"], ["leaves no axis free"]),
        (["--set", "colour=3"], ["--set 'colour=3' sets no threshold"]),
        (["--against", "nowhere"], ["nowhere does not exist"]),
    ],
)
def test_mistakes_end_with_a_sentence(source: Path, tmp_path: Path, arguments: list, words: list) -> None:
    refused(command.run(tmp_path, "findings", source, *arguments), *words)


def test_a_source_that_is_none(tmp_path: Path) -> None:
    for name in ("findings", "advise"):
        refused(command.run(tmp_path, name, tmp_path / "nowhere"), "does not exist")


def test_a_slice_without_a_trace_has_no_lines_and_the_others_have(tmp_path: Path) -> None:
    cells = {
        (width, n, batch): {"loss": 1.0, **({"trace": 4.0} if n == 200 else {})}
        for width in (2, 4)
        for n in (100, 200)
        for batch in (16, 32)
    }
    results.save(build(cells, axes=("width", "n_train", "batch_size")), tmp_path / "some.nc")
    done = command.run(tmp_path, "findings", "some.nc", "--out", "out")
    assert done.code == 0, done.err
    drawn = [path.name for path in sorted((tmp_path / "out").glob("trace_lines*.png"))]
    assert drawn == ["trace_lines-n_train-200.png"]


def test_figures_say_what_a_scaled_run_has_less_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lossatlas import figures
    from lossatlas.cli import findings as commands

    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.update({path.name: figure}))
    source = saved(tmp_path, attrs={"spec": {"reduced": "scaled by 0.5 (seeds 4/8)"}})
    commands.findings.__wrapped__(source, out=tmp_path / "out", at=["width=4"])
    assert {"trace_lines", "slice-width-4"} <= drawn.keys()
    for figure in drawn.values():
        (caption,) = [text for text in figure.texts if text.get_gid() == "caption"]
        assert caption.get_text() == "scaled by 0.5 (seeds 4/8)"


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        ({(2, 16): {"phase": "IV-B", "accuracy": 90}}, {}),
        ({(2, 16): {"phase": "I", "accuracy": 90}, (4, 16): {"phase": "III", "accuracy": 80}}, {"n_seeds": 1}),
        ({(2, 16): {"phase": "I"}, (4, 16): {"phase": "III"}}, {}),
        ({(2, 16): {"loss": 1.0}, (4, 16): {"loss": 0.1}}, {}),
        ({(2, 16): {"loss": math.nan}}, {}),
    ],
    ids=["one cell", "one seed", "no test error", "loss alone", "nothing"],
)
def test_poor_results_are_told_and_never_a_traceback(cells: dict, options: dict, tmp_path: Path) -> None:
    results.save(build(cells, **options), tmp_path / "poor.nc")
    for arguments in (["findings", "poor.nc", "--out", "out"], ["advise", "poor.nc", "--out", "advice.csv"]):
        done = command.run(tmp_path, *arguments)
        assert done.code == 0, done.err
        assert "Error" not in done.err
        assert len(done.out.splitlines()) > len(cells)


def test_advice_is_one_row_a_cell(source: Path, tmp_path: Path) -> None:
    done = command.run(tmp_path, "advise", source, "--out", "advice.csv")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 1 + 16
    with (tmp_path / "advice.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert [list(row.values()) for row in written] == [line.split("\t") for line in lines[1:]]
    assert {row["phase"]: row["advice"] for row in written} == {
        "I": "larger model",
        "III": "larger model",
        "IV-A": "more data",
        "IV-B": "none",
    }
    assert "written: advice.csv" in done.err


@pytest.mark.parametrize("name", ["findings", "advise"])
def test_no_torch_is_loaded(name: str, source: Path, tmp_path: Path) -> None:
    arguments = [name, str(source), "--out", str(tmp_path / "out")]
    assert command.modules_loaded(arguments, ("torch", "sklearn", "scipy.stats"), tmp_path)[0] == []
