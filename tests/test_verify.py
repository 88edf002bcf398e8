"""Integrity: whatever was damaged is named, nothing else is lost, and running again mends it, in every engine."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import command
from command import TINY
from lossatlas import results
from lossatlas.sweep import data_cache
from lossatlas.tasks import data

STEPS = 48
ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny spec with decoded data and a checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    done = command.run(folder, "run", TINY, "--out", "run")
    assert done.code == 0, done.err
    raw = data.load("digits", None)
    data_cache.keep(folder / "run" / "store", raw, raw.fingerprint())
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, where: int = -1) -> Path:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    return path


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(f"store/{pattern}"))[0]


def digest(folder: Path) -> str:
    """Of all results, bit for bit."""
    return str(results.load(folder / "results.nc").attrs[results.DIGEST])


def assert_sound(folder: Path, tmp_path: Path) -> None:
    sound = command.run(tmp_path, "verify", folder)
    assert (sound.code, sound.out) == (0, ""), sound
    assert f"{STEPS} steps and 0 checkpoints read, nothing damaged." in sound.err


def test_a_sound_run_is_found_sound(finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    assert_sound(finished, tmp_path)
    assert contents(finished) == before


DAMAGE: dict[str, Callable[[Path], Path]] = {
    "weights": lambda folder: flip(first(folder, "train/??/*/best.safetensors")),
    "measure": lambda folder: flip(first(folder, "hessian/??/*/result.json"), 40),
    "curve": lambda folder: flip(first(folder, "curve/??/*/arrays.safetensors")),
    "how it was made": lambda folder: flip(first(folder, "cka/??/*/meta.json"), 5),
    "data": lambda folder: flip(first(folder, "data/*/train_inputs.npy")),
}


def test_what_is_damaged_is_named_set_aside_and_made_again(finished: Path, copy: Path, tmp_path: Path) -> None:
    paths = [spoil(copy) for spoil in DAMAGE.values()]
    damaged = {path.name: path.read_bytes() for path in paths}
    before = contents(copy)
    told = command.run(tmp_path, "verify", copy)
    assert told.code == 1
    named = [path.parent if path.suffix == ".npy" else path for path in paths]
    assert sorted(line.split(": ")[1] for line in told.out.splitlines()) == sorted(
        f"{p} is damaged" for p in named
    )
    assert "5 damaged." in told.err
    assert contents(copy) == before  # it only looks
    repaired = command.run(tmp_path, "verify", copy, "--repair")
    assert (repaired.code, repaired.out) == (1, told.out)
    aside = list((copy / "store" / "damaged").iterdir())
    assert len(aside) == 5
    for name, content in damaged.items():
        assert [(folder / name).read_bytes() for folder in aside if (folder / name).is_file()].count(content) == 1
    done = command.run(tmp_path, "run", copy)
    assert done.code == 0, done.err
    assert f"4 of {STEPS} steps to do" in done.err  # nothing else is lost
    assert digest(copy) == digest(finished)
    assert_sound(copy, tmp_path)


@pytest.mark.parametrize("name", ["results.nc", "plan.json"])
def test_what_a_run_writes_anew_is_named(name: str, finished: Path, copy: Path, tmp_path: Path) -> None:
    path = copy / name
    content = path.read_bytes()
    if name == "results.nc":
        path.write_bytes(content[: len(content) // 2])
    else:
        flip(path, content.index(b"fingerprint") + 20)  # still JSON
    told = command.run(tmp_path, "verify", copy)
    assert told.code == 1
    assert name in told.out
    assert "damaged" in told.out
    assert "Traceback" not in told.err
    for call in (["status", copy], ["phases", copy]):
        looked = command.run(tmp_path, *call)
        concerned = call[0] == {"results.nc": "phases", "plan.json": "status"}[name]
        assert looked.code == (2 if concerned else 0), looked.err
        assert (name in looked.err) == concerned
    done = command.run(tmp_path, "run", copy)
    assert done.code == 0, done.err
    assert f" 0 of {STEPS} steps to do" in done.err
    assert digest(copy) == digest(finished)
    assert_sound(copy, tmp_path)


def test_a_changed_spec_is_named(copy: Path, tmp_path: Path) -> None:
    spec = copy / "spec.json"
    spec.write_text(spec.read_text().replace('"epochs": 8', '"epochs": 9'))
    told = command.run(tmp_path, "verify", copy)
    assert told.code == 1
    assert "plan.json belongs to another spec.json" in told.out
    assert "the steps are not known" in told.out


@pytest.mark.parametrize("how", ["cut short", "another version", "another number"])
def test_what_is_said_of_a_damaged_spec_is_true(how: str, finished: Path, copy: Path, tmp_path: Path) -> None:
    spec = copy / "spec.json"
    text = spec.read_text()
    spoilt = {"cut short": text[:50], "another version": text.replace("train", "drain")}
    spec.write_text(spoilt.get(how, text.replace('"epochs": 8', '"epochs": 9')))
    told = command.run(tmp_path, "verify", copy)
    assert told.code == 1
    assert f"Remove spec.json and give the spec again: `lossatlas run SPEC --out {copy}`" in told.out
    assert "Nothing was changed, and nothing can be set aside" in told.err  # nor is it promised
    if how != "another number":
        refused = command.run(tmp_path, "run", copy)
        assert refused.code == 2
        assert f"`lossatlas run SPEC --out {copy}`" in refused.err
    spec.unlink()
    done = command.run(tmp_path, "run", TINY, "--out", copy)
    assert done.code == 0, done.err
    assert f" 0 of {STEPS} steps to do" in done.err
    assert digest(copy) == digest(finished)
    assert_sound(copy, tmp_path)


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-20])
    return path


def test_files_without_check_sums_are_read_too(finished: Path, copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(first(copy, "cka/??/*"))  # something to do for a job
    written = command.run(tmp_path, "run", copy, "--engine", "slurm", "--write-only")
    assert written.code == 0, written.err
    engine, jobs = copy / "engine.json", copy / "slurm" / "001"
    assert command.run(tmp_path, "verify", copy).code == 0
    cut(engine)
    cut(jobs / "shards.json")
    (jobs / "job.sbatch").write_text("")
    picture, other, *_ = sorted((copy / "figures").iterdir())
    cut(picture)
    other.unlink()
    before = contents(copy)
    told = command.run(tmp_path, "verify", copy, "--repair")
    assert told.code == 1
    for part in (
        f"the engine: {engine} is damaged (",
        "Give --engine, and it is written anew.",
        f"the jobs of attempt 001: The shards {jobs / 'shards.json'} cannot be read (it is damaged",
        f"the jobs of attempt 001: {jobs / 'job.sbatch'} is missing or empty.",
        f"the jobs of attempt 001: When none of its jobs is in the queue, remove {jobs}; ",
        f"the figures: {picture} is damaged: it is cut short.",
        f"the figures: {other} is missing.",
        f"the figures: `lossatlas run {copy}` draws them again.",
    ):
        assert part in told.out
    assert told.out.count("\n") == 7
    assert "3 damaged." in told.err
    assert contents(copy) == before
    # What it says helps.
    shutil.rmtree(jobs)
    done = command.run(tmp_path, "run", copy, "--engine", "inline")
    assert done.code == 0, done.err
    assert digest(copy) == digest(finished)
    assert_sound(copy, tmp_path)


def test_missing_figures_are_named(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "figures")
    told = command.run(tmp_path, "verify", copy)
    assert told.code == 1
    assert f"the figures: {copy / 'figures'} holds no figure." in told.out


def test_a_checkpoint_is_verified_too(copy: Path, tmp_path: Path) -> None:
    step = first(copy, "train/??/*")
    shutil.rmtree(step)
    checkpoint = copy / "store" / "unfinished" / f"train-{step.name}.safetensors"
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(b"no checkpoint")
    told = command.run(tmp_path, "verify", copy, "--repair")
    assert told.code == 1
    assert told.out == f"the checkpoint of a step train: {checkpoint}: {told.out.split(': ', 2)[2]}"
    assert "the checkpoint is damaged" in told.out
    assert f"{STEPS - 1} steps and 1 checkpoints read, 1 damaged." in told.err
    assert not checkpoint.exists()
    assert command.run(tmp_path, "verify", copy).code == 0  # what is missing is not damaged


@pytest.mark.parametrize("engine", [["--engine", "inline"], ["--engine", "processes", "--workers", "2"]])
def test_damage_that_a_run_meets_is_mended_by_it(
    engine: list[str], finished: Path, copy: Path, tmp_path: Path
) -> None:
    # One step is found damaged by the driver when it collects, the other by the worker that needs its weights.
    collected, needed = first(copy, "hessian/??/*/result.json"), first(copy, "train/??/*/best.safetensors")
    flip(collected, 40)
    flip(needed)
    shutil.rmtree(copy / "store" / "evaluation")
    (copy / "results.nc").write_bytes((copy / "results.nc").read_bytes()[:-100])
    done = command.run(tmp_path, "run", copy, *engine)
    assert done.code == 0, done.err
    assert done.err.count("A damaged step was made again; it lies in ") == 2
    aside = sorted(path.name.split("-")[0] for path in (copy / "store" / "damaged").iterdir())
    assert aside == ["hessian", "train"]
    assert digest(copy) == digest(finished)
    assert_sound(copy, tmp_path)


def test_a_run_of_another_user_is_read_and_left(copy: Path, tmp_path: Path) -> None:
    if not ROOT:
        pytest.skip("only root can give files away")
    flip(first(copy, "cka/??/*/result.json"), 40)
    for path in (copy, *copy.rglob("*")):
        os.chown(path, 65534, 65534)
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = contents(copy)
    assert command.run(tmp_path, "status", copy, obeys=True).code == 0
    told = command.run(tmp_path, "verify", copy, obeys=True)
    assert told.code == 1
    assert "result.json is damaged" in told.out
    assert command.run(tmp_path, "phases", copy, obeys=True).code == 0
    for call in (["run", copy], ["run", copy, "--engine", "processes"], ["verify", copy, "--repair"]):
        refused = command.run(tmp_path, *call, obeys=True)
        assert refused.code == 2, refused
        assert "permission denied" in refused.err
        assert "Traceback" not in refused.err
    assert contents(copy) == before


def test_what_may_not_be_read_is_told_and_not_called_damaged(copy: Path, tmp_path: Path) -> None:
    first(copy, "cka/??/*/meta.json").chmod(0)
    told = command.run(tmp_path, "verify", copy, "--repair", obeys=True)
    assert told.code == 2
    assert "ermission denied" in told.err
    assert not (copy / "store" / "damaged").exists()


def test_files_dated_in_the_future_are_as_good(finished: Path, copy: Path, tmp_path: Path) -> None:
    for path in (copy, *copy.rglob("*")):
        os.utime(path, (time.time() + 1e9,) * 2)
    assert_sound(copy, tmp_path)
    assert command.status(tmp_path, copy)["share_done"] == 1.0
    done = command.run(tmp_path, "run", copy)
    assert f" 0 of {STEPS} steps to do" in done.err
    assert digest(copy) == digest(finished)


def test_no_run_is_refused(tmp_path: Path) -> None:
    refused = command.run(tmp_path, "verify", tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert "no run folder" in refused.err
