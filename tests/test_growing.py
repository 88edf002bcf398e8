"""A run that grows does exactly what is new; two drivers on one folder do no harm."""

import time
from pathlib import Path

import pytest

import command
from command import TINY, Running
from lossatlas import results

PROCESSES = ["--engine", "processes", "--workers", "2"]
# Two cells of the tiny spec, without what takes long.
START = {"temperature": "temperature = { batch_size = [64] }", "hessian": "", "connectivity": "", "ensemble": ""}
STEPS = 2 * (2 + 2 + 3)  # 2 cells of 2 trainings and evaluations, CKA, distance and disagreement of a pair


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("started")
    done = command.run(folder, "run", command.edited(folder, **START), "--out", "run", *PROCESSES)
    assert done.code == 0, done.err
    assert len(command.steps_done(folder / "run" / "store")) == STEPS
    return folder / "run"


def test_a_run_that_grows_does_what_is_new_and_nothing_else(started: Path, tmp_path: Path) -> None:
    store = started / "store"
    grown = dict(START)
    for changes, new in (
        # Three cells instead of two, of three models and three pairs instead of two and one.
        ({"seeds": "seeds = [0, 1, 2]", "load": "load = { width = [2, 3, 4] }"}, 3 * (2 * 3 + 3 * 3) - STEPS),
        # A measure of each cell, and another budget: all CKA of the nine pairs anew, and nothing else.
        ({"ensemble": "ensemble = {}", "cka": "cka = { images = 128 }"}, 3 + 9),
    ):
        before = command.steps_done(store)
        grown |= changes
        done = command.run(tmp_path, "run", command.edited(tmp_path, **grown), "--out", started, *PROCESSES)
        assert done.code == 0, done.err
        assert f" {new} of " in done.err, (changes, done.err)
        after = command.steps_done(store)
        assert len(after) == len(before) + new
        assert {key: after[key] for key in before} == before  # none of them was done again
    tree = results.load(started / "results.nc")
    assert dict(tree["models"].sizes) == {"width": 3, "batch_size": 1, "seed": 3}
    assert (tree["models"]["status"] == "ok").all()
    assert tree["pairs"]["cka"].notnull().sum() == 9


def test_two_drivers_on_one_folder_do_no_harm(tmp_path: Path) -> None:
    alone = command.run(tmp_path, "run", TINY, "--out", "alone")
    assert alone.code == 0, alone.err
    folder = tmp_path / "both"
    call = ["run", TINY, "--out", folder, "--engine", "processes", "--workers", "1"]
    drivers = [Running(tmp_path, call, cwd=tmp_path) for _ in range(2)]
    seen: dict[str, int] = {}
    while any(driver.process.is_alive() for driver in drivers):
        now = command.steps_done(folder / "store")
        assert seen.items() <= now.items()  # what is committed stays as it is: no step is committed twice
        seen = now
        time.sleep(0.02)
    for driver in drivers:
        done = driver.finish()
        assert done.code == 0, done.err
        assert "models: 8 ok" in done.out
    assert len(command.steps_done(folder / "store")) == 48
    digests = {results.load(tmp_path / name / "results.nc").attrs[results.DIGEST] for name in ("alone", "both")}
    assert len(digests) == 1
    assert not list(folder.rglob(".tmp-*"))
    assert not (folder / "failed").exists()
    assert not (folder / "store" / "damaged").exists()
    assert command.run(tmp_path, "verify", folder).code == 0
