"""The command: every mistake ends with one paragraph and exit code 2, and what need not be loaded is not."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import tomllib
import warnings
from pathlib import Path

import pytest
import xarray as xr

import command
from command import TINY, Finished
from grids import build
from lossatlas import presets, results
from lossatlas.cli.output import guarded
from lossatlas.landscape.kernels import PlainMathsWarning

ROOT = os.geteuid() == 0


def assert_refused(done: Finished, *words: str) -> None:
    """One paragraph on standard error that names what is wrong; nothing on standard output."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert "Traceback" not in done.err
    assert "\n\n" not in done.err.strip()
    for word in words:
        assert word in done.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without measures, which is enough to look at; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    spec = folder / "spec.toml"
    text = TINY.read_text()
    spec.write_text(text[: text.index("[measures]")])
    (folder / "run" / "store" / ".tmp-probe").mkdir(parents=True)  # as of a run killed before it wrote its spec
    done = command.run(folder, "run", spec, "--out", "run", "--set", "train.epochs=1")
    assert done.code == 0, done.err
    return folder / "run"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.epoch=3", ["train.epoch: unknown key", "Did you mean epochs?"]),
        ("train.optimizer.momentun=0.5", ["train.optimizer.momentun", "Did you mean momentum?"]),
        ('train.epochs="many"', ["train.epochs", '"many" was given', "integer"]),
        ("train.epochs=-1", ["train.epochs", "-1 was given", "greater than or equal to 1"]),
        ("train.epochs=0", ["train.epochs", "0 was given"]),
        ("train.augment=[flap]", ['train.augment: "[flap]" was given', "texts stand in double quotes"]),
        ("seeds=3", ["seeds: 3 was given; input should be a list, such as [1, 2]\n"]),
        (
            "data.cifar10.path=x",
            ["data: unknown key; of the spec of a grid it is task.data, as"],
        ),
        ("seeds=[]", ["seeds", "at least one"]),
        ("load.width=[]", ["load.width", "empty"]),
        ("load.width=[2.5]", ["load.width", "2.5 was given", "integers"]),
        ("task.model.name=resnet", ["task.model.name", "'resnet' does not exist", "Did you mean resnet"]),
        ("task.data.name=mnist", ["task.data.name", "digits, cifar10"]),
        ("task.data.n_train=99999", ["'tiny'", "task.data.n_train: 99999 was given", "at most 1437"]),
        ("temperature.batch_size=[16,999]", ["temperature.batch_size: 999 was given", "at most 200"]),
        ("task.model.name=nowhere:model", ["nowhere", "cannot be imported"]),
        ("task.model.name=math:nothing", ["math", "no function nothing"]),
        ("task.model.name=math:sqrt", ["model 'math:sqrt'", "raised"]),
        ("task.loss=builtins:dict", ["builtins:dict", "must return a lossatlas Criterion"]),
        ("task.data.name=builtins:dict", ["builtins:dict", "must return a lossatlas RawData or four arrays"]),
        ("task.data.path=/tmp", ["digits", "task.data.path"]),
    ],
)
def test_a_wrong_spec_is_refused(assignment: str, words: list[str], tmp_path: Path) -> None:
    assert_refused(command.run(tmp_path, "run", TINY, "--set", assignment), *words)
    assert not list((tmp_path / "runs").rglob("result.json"))


def test_sizes_are_refused_by_the_keys_that_set_them(tmp_path: Path) -> None:
    settings = ['task.data={name="digits"}', "load={width=[2],n_train=[99999]}", "temperature={lr=[0.1]}"]
    settings += ["train.optimizer={}", "train.batch_size=199999"]
    done = command.run(tmp_path, "plan", TINY, *(part for text in settings for part in ("--set", text)))
    assert_refused(done, "'tiny'", "load.n_train: 99999 was given", "train.batch_size: 199999 was given")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    wrong = ["train.epochs=-1", "bogus=1", "load.width=[0]", "measures.cka.images='x'", "task.model.depht=2"]
    settings = [part for assignment in wrong for part in ("--set", assignment)]
    refused = command.run(tmp_path, "plan", TINY, *settings)
    assert_refused(refused, "5 problems", *(w.split("=")[0] for w in wrong), "Did you mean depth?")


@pytest.mark.parametrize("assignment", ["epochs", "=3", ""])
def test_a_wrong_assignment_is_refused(assignment: str, tmp_path: Path) -> None:
    assert_refused(command.run(tmp_path, "run", TINY, "--set", assignment), "--set", "key=value")


def test_wrong_files_are_refused(tmp_path: Path, finished: Path) -> None:
    def refused(*arguments: object) -> str:
        done = command.run(tmp_path, *arguments)
        assert_refused(done)
        return done.err

    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    (tmp_path / "syntax.toml").write_text("name = \n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    assert "neither a file, nor a folder, nor a preset" in refused("run", "nothing.toml")
    assert "digits" in refused("plan", "nothing.toml")
    assert "cannot be read" in refused("run", "binary.toml")
    assert "not valid TOML" in refused("run", "syntax.toml")
    assert "line 1" in refused("run", "syntax.toml")
    assert "holds no spec.json" in refused("run", "empty")
    assert "holds no run" in refused("run", TINY, "--out", "full")
    assert "no run folder" in refused("status", "empty")
    assert "no run folder" in refused("status", "nowhere")
    assert "is a file" in refused("run", TINY, "--out", tmp_path / "syntax.toml" / "deeper")
    for call in (["phases", "empty"], ["figures", "empty", "--out", "f"]):
        assert "holds no results" in refused(*call)
    assert "does not exist" in refused("phases", "nowhere.nc")
    assert "0 < " not in refused("run", TINY, "--scale", "0")
    assert "allowed are numbers above 0 up to 1" in refused("run", TINY, "--scale", "2")


@pytest.mark.parametrize("keep", [0, 10, 2000, -100])
def test_damaged_results_are_refused(keep: int, finished: Path, tmp_path: Path) -> None:
    content = (finished / "results.nc").read_bytes()
    (tmp_path / "results.nc").write_bytes(content[:keep])
    for call in (["phases", "results.nc"], ["figures", "results.nc", "--out", "f"], ["phases", "."]):
        assert_refused(command.run(tmp_path, *call), "results.nc", "damaged")


def test_results_of_another_version_are_refused(finished: Path, tmp_path: Path) -> None:
    tree = xr.load_datatree(finished / "results.nc", engine="h5netcdf")
    tree.attrs["schema_version"] = 99
    results.save(tree, tmp_path / "results.nc")
    assert_refused(command.run(tmp_path, "phases", "results.nc"), "schema version 99", "reads version 1")


def test_damaged_archives_and_run_folders_are_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "results.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    assert_refused(command.run(tmp_path, "phases", "results.tar.gz"), "results.tar.gz")
    for name, text, calls in (
        ("spec.json", "{", [["run", "copy"], ["plan", "copy"]]),
        ("spec.json", "[]", [["run", "copy"]]),
        ("spec.json", '{"name": "x"}', [["run", "copy"]]),
        ("plan.json", "{", [["status", "copy"]]),
        ("plan.json", "[]", [["status", "copy"]]),
        ("plan.json", '{"cells": [{"steps": [["a"]]}]}', [["status", "copy"]]),
    ):
        shutil.copytree(finished, tmp_path / "copy")
        (tmp_path / "copy" / name).write_text(text)
        for call in calls:
            assert_refused(command.run(tmp_path, *call), name)
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": 3}', None])
def test_a_damaged_plan_is_made_again(content: str | None, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    plan = tmp_path / "copy" / "plan.json"
    before = plan.read_text()
    plan.unlink()
    if content is not None:
        plan.write_text(content)
    told = command.run(tmp_path, "status", "copy")
    assert_refused(told, "plan.json", "`lossatlas run copy` writes it again")
    done = command.run(tmp_path, "run", "copy")
    assert done.code == 0, done.err
    assert " 0 of 16 steps to do" in done.err
    again, first = json.loads(plan.read_text()), json.loads(before)
    timed = {"seconds": 0, "sha256": 0}  # predictions, and with them the check sum, are others every time
    assert {**again, **timed} == {**first, **timed}


def test_without_its_plan_a_run_asks_for_a_store_that_is_elsewhere(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "store").rename(tmp_path / "store")
    (tmp_path / "copy" / "plan.json").write_text("{")
    assert_refused(command.run(tmp_path, "run", "copy"), "plan.json", "--store")
    done = command.run(tmp_path, "run", "copy", "--store", "store")
    assert done.code == 0, done.err
    assert " 0 of 16 steps to do" in done.err
    assert "0 of 16 steps to do" in command.run(tmp_path, "run", "copy").err


def test_a_folder_that_may_not_be_written_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    for call in (
        ["run", TINY, "--out", "closed/run"],
        ["run", TINY, "--out", "run", "--store", "closed/store"],
        ["figures", finished, "--out", "closed/figures"],
        ["phases", finished, "--out", "closed/phases.csv"],
    ):
        assert_refused(command.run(tmp_path, *call, obeys=True), "closed", "permission denied")


def test_files_that_may_not_be_read_are_refused(finished: Path, tmp_path: Path) -> None:
    for name, source in (("tiny.toml", TINY), ("results.nc", finished / "results.nc")):
        shutil.copy(source, tmp_path / name)
        (tmp_path / name).chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    shutil.copytree(finished, tmp_path / "copy")
    next((tmp_path / "copy" / "store").rglob("result.json")).chmod(0)
    for call in (
        ["run", "tiny.toml"],
        ["phases", "results.nc"],
        ["phases", "."],
        ["status", "closed/run"],
        ["run", "copy"],
    ):
        refused = command.run(tmp_path, *call, obeys=True)
        told = refused.err[refused.err.find("Error:") :]  # a run says first what it is going to do
        assert_refused(dataclasses.replace(refused, err=told), "ermission denied")
    assert not (tmp_path / "copy" / "store" / "damaged").exists()  # it is not damaged


@pytest.mark.parametrize(
    ("size", "engine"), [(64, "inline"), (400, "inline"), (400, "processes")]
)  # kB: full before the first step, and in the midst of the run
def test_a_full_disk_is_told(size: int, engine: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    if not ROOT or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        workers = ("--workers", 2) if engine == "processes" else ()
        full = command.run(tmp_path, "run", TINY, "--out", disk / "run", "--engine", engine, *workers)
        assert full.code == 2, full
        assert "Traceback" not in full.err
        assert "the disk is full" in full.err
        assert "What was finished before is kept" in full.err
        assert not list(disk.rglob(".tmp-*"))
        done = command.steps_done(disk / "run" / "store")
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        after = command.run(tmp_path, "run", TINY, "--out", disk / "run")  # with more space it goes on
        assert after.code == 0, after.err
        assert done.items() <= command.steps_done(disk / "run" / "store").items()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", "", "cpu:x"])
def test_an_unknown_device_is_refused(device: str, tmp_path: Path) -> None:
    assert_refused(command.run(tmp_path, "run", TINY, "--device", device), "--device", repr(device))


@pytest.mark.parametrize("call", [["rnu"], ["run"], ["run", "a", "--bogus"], ["status"], ["figures", "a"]])
def test_a_wrong_call_is_refused(call: list[str], tmp_path: Path) -> None:
    done = command.run(tmp_path, *call)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "--help" in done.err


@pytest.mark.parametrize("setting", ["sharpness=3", "cka", "cka=much"])
def test_an_unknown_threshold_is_refused(setting: str, finished: Path, tmp_path: Path) -> None:
    assert_refused(command.run(tmp_path, "phases", finished, "--set", setting), "--set", setting)


def test_unknown_limits_are_refused(finished: Path, tmp_path: Path) -> None:
    done = command.run(tmp_path, "figures", finished, "--out", "f", "--limits", "mine")
    assert_refused(done, "--limits", "data and published")


def test_phases_prints_and_writes_a_table(finished: Path, tmp_path: Path) -> None:
    done = command.run(tmp_path, "phases", finished, "--out", "phases.csv", "--set", "train_loss=0.5")
    assert done.code == 0, done.err
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["width", "batch_size", "phase", "margin", "probability", "status", "reason"]
    assert [row[:2] for row in rows] == [["2", "16"], ["2", "64"], ["4", "16"], ["4", "64"]]
    assert (tmp_path / "phases.csv").read_text().splitlines()[0] == ",".join(header[:5])
    assert "Threshold of train_loss: 0.5 (given).\n" in done.err
    assert "cka has no value in any cell.\n" in done.err
    assert "Probabilities resample the seeds" in done.err


def test_plan_runs_nothing(tmp_path: Path) -> None:
    done = command.run(tmp_path, "plan", TINY, "--scale", "0.5")
    assert done.code == 0, done.err
    plan = dict(line.split("\t") for line in done.out.splitlines())
    assert plan["models"] == "8"  # two values an axis and two seeds stay
    assert plan["epochs"] == "32"
    assert plan["load axis"] == "width: 2 4"
    assert "8 train, 8 evaluation, 8 hessian, 4 curve" in plan["steps"]
    assert plan["time"].startswith("about ")
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_presets_are_listed(tmp_path: Path) -> None:
    done = command.run(tmp_path, "presets")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == ["name", *presets.names(), *presets.studies()]
    fig3 = dict(zip(rows[0], next(row for row in rows if row[0] == "yang2021/fig3"), strict=True))
    assert fig3["models"] == "1050"
    assert fig3["axes"] == "14 width x 15 batch_size"


@pytest.mark.parametrize("name", ["yang2021/fig7", "xu2024/fig7", "xu2024/_models"])
def test_the_text_of_a_preset_is_printed_with_its_comments(name: str, tmp_path: Path) -> None:
    done = command.run(tmp_path, "presets", name)
    assert (done.code, done.out) == (0, presets.text(name))
    assert done.out.startswith("# ")
    assert ("lossatlas presets xu2024/_models" in done.err) == (name == "xu2024/fig7")


def test_the_text_of_a_preset_is_the_start_of_a_spec(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(command.run(tmp_path, "presets", "digits").out)
    mine, named = (command.run(tmp_path, "plan", source, "--scale", 0.5) for source in ("mine.toml", "digits"))
    assert mine.code == 0, mine.err
    assert _without_time(mine.out) == _without_time(named.out)


def _without_time(table: str) -> list[str]:
    return [line for line in table.splitlines() if not line.startswith("time\t")]


def test_the_text_of_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    refused = command.run(tmp_path, "presets", "fig7")
    assert_refused(refused, "no preset 'fig7'", "Did you mean yang2021/fig7 or xu2024/fig7?")


def test_the_spec_of_a_run_folder_is_a_spec(finished: Path, tmp_path: Path) -> None:
    of_file, of_folder = (command.run(tmp_path, "plan", source) for source in (finished / "spec.json", finished))
    assert of_file.code == 0, of_file.err
    assert _without_time(of_file.out) == _without_time(of_folder.out)
    more = command.run(tmp_path, "plan", finished / "spec.json", "--set", "seeds=[0,1,2]")
    assert "models\t12\n" in more.out
    wrong = command.run(tmp_path, "plan", finished / "spec.json", "--set", "train.epoch=3")
    assert_refused(wrong, "spec.json has 1 problem", "train.epoch: unknown key", "Did you mean epochs?")


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"name": ', "it is not valid JSON: Expecting value: line 1"), ("[]", "no table"), ("{}", "load: missing")],
)
def test_json_that_is_no_spec_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(text)
    assert_refused(command.run(tmp_path, "plan", "spec.json"), "spec.json has", words)


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_folder_is_not_scaled(verb: str, finished: Path, tmp_path: Path) -> None:
    before = command.steps_done(finished / "store")
    assert_refused(command.run(tmp_path, verb, finished, "--scale", 0.03), "--scale 0.03", "--out")
    assert command.steps_done(finished / "store") == before
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    assert_refused(command.run(tmp_path, verb, "study", "--scale", 0.5), "--scale 0.5", "folder study")


def test_what_is_scaled_already_is_not_scaled_again(tmp_path: Path) -> None:
    spec = json.loads(json.dumps(tomllib.loads(TINY.read_text())))
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "reduced": "scaled by 0.5 (seeds 2/3)"}))
    assert command.run(tmp_path, "plan", "spec.json").code == 0
    assert_refused(command.run(tmp_path, "plan", "spec.json", "--scale", 0.5), "scaled by 0.5 (seeds 2/3)")


def test_worker_processes_are_refused_where_none_are_started(tmp_path: Path) -> None:
    for spec, engine, option in (
        (TINY, "inline", "--workers"),
        ("xu2024/fig7", "inline", "--per-gpu"),
        (TINY, "slurm", "--workers"),
    ):
        given = ["--engine", engine] if engine == "slurm" else []
        refused = command.run(tmp_path, "run", spec, option, 2, *given)
        assert_refused(refused, f"{option} 2", f"the engine is {engine}", "--engine processes")
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_worker_processes_takes_another_number(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    for call in (["--engine", "processes", "--per-gpu", 1], ["--workers", 2]):  # the folder remembers
        done = command.run(tmp_path, "run", "copy", *call)
        assert done.code == 0, done.err
    kept = json.loads((tmp_path / "copy" / "engine.json").read_text())
    assert (kept["name"], kept["workers"], kept["per_gpu"]) == ("processes", 2, 1)


def test_the_help_says_what_shrinks_and_when(tmp_path: Path) -> None:
    told = " ".join(command.run(tmp_path, "run", "--help").out.split())
    assert "axes, seeds, epochs, samples, test samples and a model's width" in told
    assert "It comes after --set" in told


def test_margins_are_rounded_where_they_are_read(tmp_path: Path) -> None:
    phases = {4: "I", 8: "III", 16: "IV-A", 32: "IV-B"}
    cells = {
        (width, batch): {"phase": phase, "accuracy": 50 + width / 7 + batch / 3, "distance": 10 - width / 7}
        for width, phase in phases.items()
        for batch in (16, 32)
    }
    results.save(build(cells, spread=0.2, noise=0.05, n_seeds=3), tmp_path / "results.nc")
    done = command.run(tmp_path, "findings", "results.nc", "--out", "out")
    assert done.code == 0, done.err
    read = csv.DictReader(done.out.splitlines(), delimiter="\t")
    shown = {(row["finding"], name): row[name] for row in read for name in ("margin", "error") if row[name]}
    kept = csv.DictReader((tmp_path / "out" / "claims.csv").read_text().splitlines())
    full = {(row["claim"], name): row[name] for row in kept for name in ("margin", "error") if row[name]}
    assert {at: shown[at] for at in full} == {at: _rounded(text) for at, text in full.items()}
    assert all(text == _rounded(text) for text in shown.values())
    assert any(text != _rounded(text) for text in full.values())  # the file has more digits


def _rounded(number: str) -> str:
    return f"{float(f'{float(number):.3e}'):g}"


def test_our_own_warnings_are_notes_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @guarded
    def works() -> None:
        warnings.warn("plain operations are used", PlainMathsWarning, stacklevel=1)
        warnings.warn("plain operations are used", PlainMathsWarning, stacklevel=1)  # from elsewhere
        warnings.warn("somebody else's", UserWarning, stacklevel=2)

    others: list[str] = []
    with warnings.catch_warnings(), monkeypatch.context() as patched:
        warnings.simplefilter("always")
        patched.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
        shown = warnings.showwarning
        works()
        assert warnings.showwarning is shown
    assert capsys.readouterr().err == "Note: plain operations are used\n"
    assert others == ["somebody else's"]
    with pytest.warns(PlainMathsWarning):  # of the library it stays a warning
        warnings.warn("plain operations are used", PlainMathsWarning, stacklevel=1)


def test_the_version_is_told(tmp_path: Path) -> None:
    done = command.run(tmp_path, "--version")
    assert (done.code, done.out.strip().count(".")) == (0, 2)


def test_a_model_of_ones_own_is_found_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n"
        "def linear(width, classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, classes))\n"
    )
    done = command.run(tmp_path, "plan", TINY, "--set", "task.model.name=my_model:linear")
    assert done.code == 0, done.err
    broken = command.run(tmp_path, "plan", TINY, "--set", 'task.model={name="my_model:linear",colour=3}')
    assert_refused(broken, "my_model:linear", "colour")


CALLS = [
    ["--help"],
    ["presets", "digits"],
    ["run", "--help"],
    ["status", "RUN"],
    ["phases", "RUN"],
    ["findings", "RUN"],
    ["advise", "RUN"],
    ["figures", "RUN", "--out", "OUT"],
]


@pytest.mark.parametrize("call", CALLS, ids=[call[0] for call in CALLS])
def test_what_reads_files_only_loads_no_torch(call: list[str], finished: Path, tmp_path: Path) -> None:
    names = {"RUN": str(finished), "OUT": str(tmp_path / "figures")}
    arguments = [names.get(part, part) for part in call]
    assert command.modules_loaded(arguments, ("torch", "sklearn", "scipy.stats"), tmp_path)[0] == []
