"""What the Slurm launcher asks for and writes: settings, shards, batch scripts. Needs no Slurm."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

import command
from command import TINY
from lossatlas import specs
from lossatlas.errors import FileError, SpecError, UserError
from lossatlas.specs import Slurm
from lossatlas.specs.slurm import seconds_of
from lossatlas.sweep.engine import Engine, chosen, remember
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.slurm_files import (
    attempts,
    batch_script,
    deal,
    numbers,
    places_of,
    read_shards,
    write_attempt,
)


@pytest.fixture(autouse=True)
def _no_site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOSSATLAS_SITE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


def spec(slurm: dict[str, Any] | None = None) -> specs.Spec:
    return specs.read(TINY, {f"slurm.{key}": value for key, value in (slurm or {}).items()})


@pytest.mark.parametrize(
    "option",
    [
        *(
            "--array=0-3",
            "--arr 0-3",
            "-a0-3",
            "-Ha0-3",
            "--job-n=x",
            "--parsable",
            "--pars",
            "-o x",
            "--wait",
            "-W",
        ),
        *("--test-only", "--test", "--clusters=b", "--cluster=b", "-M b", "-Mb", "--help", "-V", "--uid=5"),
        *("--exclude=n1 --array=0-3", "--comment='a b' -D /tmp"),
    ],
)
def test_options_that_would_hide_the_jobs_are_refused(option: str) -> None:
    with pytest.raises(SpecError, match=r"--[a-z-]+ is refused: (lossatlas|with it)"):
        spec({"sbatch": [option]})


@pytest.mark.parametrize(
    "option",
    [
        *("--exclude=n1", "-x n1", "--constraint=a100 --hint=nomultithread", "-Hx n1", "--comment='-a b'", "-N1"),
        *("--cluster-constraint=x", "--verbose", "--wait-all-nodes=1", "--export=ALL,A=1", "--nice=-5"),
    ],
)
def test_other_options_are_passed_on(option: str) -> None:
    assert spec({"sbatch": option}).slurm.sbatch == (option,)  # one needs no list


@pytest.mark.parametrize("own", ["--exclude=n7", "-x n7", "-xn7", "--exclude n7"])
def test_nodes_to_be_left_out_are_added_to_those_that_are(own: str) -> None:
    settings = Slurm(sbatch=("--hint=compute_bound", own))
    assert settings.without([]) == settings
    assert settings.without(["n1", "n2"]).sbatch == ("--hint=compute_bound", own, "--exclude=n7,n1,n2")
    assert Slurm().without(["n1"]).sbatch == ("--exclude=n1",)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("2-12:30", 217800), ("0-0:1:1", 61)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds
    assert Slurm(time=text).limit == seconds


def test_memory_is_in_megabytes_unless_it_says_otherwise() -> None:
    assert [Slurm(memory=text).bytes for text in ("500", "8G", "1T")] == [500 << 20, 8 << 30, 1 << 40]


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {
        "partition": "a b",
        "time": "soon",
        "memory": "8GB",
        "per_task": 0,
        "shard_minutes": 90,
        "sbatch": ["exclude=n1", "--array=0-3", "-o x", "--hint=compute\nexit"],
        "gress": "gpu:1",
    }
    with pytest.raises(SpecError) as error:
        spec(wrong)
    lines = "\n".join(error.value.problems)
    assert 'slurm.partition: "a b" was given; allowed is one word without quotes' in lines
    assert 'slurm.time: "soon" was given; allowed are minutes, hours:minutes:seconds' in lines
    assert 'slurm.memory: "8GB" was given; allowed are megabytes' in lines
    assert "slurm.per_task: 0 was given" in lines
    assert "slurm.shard_minutes: 90 was given" in lines
    assert 'slurm.sbatch.0: "exclude=n1" was given; allowed is an option of sbatch in one line' in lines
    assert 'slurm.sbatch.1: "--array=0-3" was given; --array is refused: lossatlas sets it itself' in lines
    assert "--output is refused: lossatlas sets it itself" in lines
    assert "slurm.sbatch.3" in lines
    assert "slurm.gress: unknown key" in lines
    assert "Did you mean gres?" in lines
    assert len(error.value.problems) == 10


def test_the_command_wins_over_the_spec_and_the_spec_over_the_site_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[slurm]\naccount = "lab"\npartition = "slow"\ntime = "1:00:00"\n')
    monkeypatch.setenv("LOSSATLAS_SITE", str(site))
    found = specs.slurm_settings(spec({"partition": "gpu", "time": 30}), {"time": "10"})
    assert (found.account, found.partition, found.time) == ("lab", "gpu", "10")
    site.write_text("[slurm]\nacount = 'lab'\n[other]\n")
    with pytest.raises(SpecError, match=r"site\.toml has 1 problem:\n  - other: unknown key; allowed is slurm"):
        specs.slurm_settings(spec(), {})
    site.write_text("[slurm]\nacount = 'lab'\n")
    with pytest.raises(SpecError, match=r"site\.toml has 1 problem:\n  - slurm\.acount: .* Did you mean account"):
        specs.slurm_settings(spec(), {})
    site.unlink()
    with pytest.raises(FileError, match="LOSSATLAS_SITE"):
        specs.slurm_settings(spec(), {})
    monkeypatch.delenv("LOSSATLAS_SITE")
    home = tmp_path / "nobody" / ".config" / "lossatlas"
    home.mkdir(parents=True)
    (home / "site.toml").write_text('[slurm]\nqos = "long"\n')
    assert specs.slurm_settings(spec(), {}) == Slurm(qos="long")


def test_no_key_hangs_on_where_a_run_runs() -> None:
    keys = [
        [step.key for cell in Plan(given, "f") for step in cell.steps]
        for given in (spec(), spec({"partition": "gpu", "per_task": 4}))
    ]
    assert keys[0] == keys[1]


def test_shards_hold_every_cell_once_and_about_the_minutes_asked_for() -> None:
    seconds = {cell: 30.0 + 7 * (cell * 37 % 101) for cell in range(1000)}
    order = sorted(seconds, key=lambda cell: -seconds[cell])
    settings = Slurm(shard_minutes=30)
    shards = deal(order, seconds, settings)
    assert sorted(cell for shard in shards for cell in shard) == list(range(1000))
    loads = [sum(seconds[cell] for cell in shard) for shard in shards]
    # Longest first to the least loaded: within one cell of each other, so under the hour that none may exceed.
    assert max(loads) - min(loads) <= max(seconds.values())
    assert 600 < min(loads) <= max(loads) < 3600
    assert len(shards) == math.ceil(sum(seconds.values()) / 1800)
    assert all(shard == sorted(shard, key=order.index) for shard in shards)
    assert len(deal(order, seconds, Slurm(per_task=4))) == math.ceil(len(shards) / 4)
    assert len(deal(order, seconds, Slurm(time="20"))) == math.ceil(sum(seconds.values()) / 600)


def test_few_cells_make_few_shards_and_none_is_empty() -> None:
    assert deal([], {}, Slurm()) == []
    assert deal([3, 5], {3: 1.0, 5: 1.0}, Slurm()) == [[3, 5]]
    assert deal([3, 5], {3: 1e5, 5: 1e5}, Slurm()) == [[3], [5]]
    assert deal([3, 5], {3: 1e5, 5: 1e5}, Slurm(per_task=2)) == [[3, 5]]


GOLDEN = """\
#!/bin/bash
# 2 tasks; the longest is predicted to take 20 min.
#SBATCH --job-name={name}
#SBATCH --array=0-1%8
#SBATCH --chdir={cwd}
#SBATCH --output="{root}/logs/slurm-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --partition=gpu
#SBATCH --gres=gpu:1
#SBATCH --time=4:00:00
#SBATCH --mem=8G
#SBATCH --exclude=n7

trap '' USR1  # the warning before the time limit must not end this shell; the worker heeds it
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
module load cuda
source env/bin/activate
exec python -P -m lossatlas worker '{root}' \\
  --shards slurm/001/shards.json \\
  --shard "$SLURM_ARRAY_TASK_ID" \\
  --workers 4 \\
  --device cuda
"""


def test_the_batch_script_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "my run"
    settings = Slurm(
        partition="gpu",
        gres="gpu:1",
        time="4:00:00",
        memory="8G",
        per_task=4,
        throttle=8,
        sbatch=("--exclude=n7",),
        setup="module load cuda\nsource env/bin/activate\n",
        python="python",
    )
    monkeypatch.chdir(tmp_path)
    attempt = write_attempt(root, [[(2, 16)], [(4, 0.5), (8, 16)]], settings, "cuda", [600.0, 4800.0])
    text = attempt.script.read_text()
    assert text == GOLDEN.format(name=attempt.name, cwd=tmp_path, root=root)
    assert attempt.name.startswith("lossatlas-my-run-")
    assert subprocess.run(["bash", "-n", attempt.script], check=False).returncode == 0
    assert attempt.shards() == [[(2, 16)], [(4, 0.5), (8, 16)]]
    assert (root / "logs").is_dir()
    again = write_attempt(root, [[(2, 16)]], settings, "auto", [1.0])
    assert [one.number for one in attempts(root)] == [1, 2]
    assert again.name != attempt.name
    assert "--device" not in again.script.read_text()


def test_the_warning_comes_well_after_the_start_of_a_short_job(tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path, [[(1,)]], Slurm(time="2"), "auto", [1.0])
    assert "--signal=B:USR1@12\n" in attempt.script.read_text()


def test_a_percent_sign_in_the_path_is_no_pattern(tmp_path: Path) -> None:
    script = batch_script(
        write_attempt(tmp_path / "100%", [[(1,)]], Slurm(), "auto", [1.0]), Slurm(), "auto", [1.0]
    )
    assert "/100%%/logs/slurm-%A_%a.log" in script
    with pytest.raises(UserError, match="cannot hold"):
        write_attempt(tmp_path / 'a"b', [[(1,)]], Slurm(), "auto", [1.0])


def test_shards_name_cells_by_their_values_so_that_a_plan_may_grow(tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path, [[(2, 16), (4, 64)]], Slurm(), "auto", [1.0])
    assert numbers(attempt.shards()[0], places_of([(2, 16), (3, 16), (4, 64)])) == [0, 2]
    assert numbers(attempt.shards()[0], places_of([(4, 64.0)])) == [0]
    (attempt.folder / "shards.json").write_text("[[[2,")
    with pytest.raises(FileError, match=r"shards\.json cannot be read \(it is damaged"):
        read_shards(attempt.folder / "shards.json")


def test_a_folder_goes_on_with_its_engine(tmp_path: Path) -> None:
    assert chosen(tmp_path, {"name": None, "workers": None}) == Engine()
    remember(tmp_path, Engine())
    assert list(tmp_path.iterdir()) == []
    remember(tmp_path, chosen(tmp_path, {"name": "slurm", "device": "cpu", "slurm": {"gres": "gpu:1", "time": 5}}))
    found = chosen(tmp_path, {"name": None, "slurm": {"time": 9}})
    assert found == Engine("slurm", device="cpu", slurm={"gres": "gpu:1", "time": 9})
    assert chosen(tmp_path, {"name": None, "slurm": {"gres": ""}}).slurm == {"time": 5}
    assert chosen(tmp_path, {"name": "inline"}) == Engine()
    assert chosen(tmp_path, {"name": "processes", "workers": 3}) == Engine("processes", workers=3)
    with pytest.raises(UserError, match=r"--engine 'slrum' is unknown\. Allowed are inline, processes, slurm"):
        chosen(tmp_path, {"name": "slrum"})
    with pytest.raises(UserError, match="--slurm was given, and the engine is inline"):
        chosen(tmp_path, {"name": "inline", "slurm": {"time": 9}})
    (tmp_path / "engine.json").write_text("[")
    with pytest.raises(FileError, match=r"engine\.json is damaged"):
        chosen(tmp_path, {"name": None})
    assert chosen(tmp_path, {"name": "inline"}) == Engine()


def test_without_slurm_it_says_what_is_missing_and_can_still_write(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nowhere = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path)}
    arguments = ("run", TINY, "--out", "run", "--engine", "slurm")
    done = command.run(tmp_path, *arguments, env=nowhere)
    assert done.code == 2
    assert "Slurm's sbatch, squeue, scancel cannot be found here" in done.err
    assert not (tmp_path / "run").exists()
    done = command.run(tmp_path, *arguments, "--write-only", "--slurm", "shard_minutes=0.001", env=nowhere)
    assert done.code == 0, done.err
    script = tmp_path / "run" / "slurm" / "001" / "job.sbatch"
    assert done.out == f"sbatch {script}\n"
    shards = json.loads(script.with_name("shards.json").read_text())
    assert sorted(cell for shard in shards for cell in shard) == [[2, 16], [2, 64], [4, 16], [4, 64]]
    assert f"#SBATCH --array=0-{len(shards) - 1}\n" in script.read_text()
    assert not (tmp_path / "run" / "store" / "train").exists()
    # Another engine does it where there is no Slurm; so far the folder would go on with Slurm.
    assert "cannot be found here" in command.run(tmp_path, "run", "run", env=nowhere).err
    assert "cannot be found here" in command.run(tmp_path, "cancel", "run", env=nowhere).err
    done = command.run(tmp_path, "worker", "run", "--shards", "slurm/001/shards.json", "--shard", "9", env=nowhere)
    assert done.code == 2
    assert "--shard 9 is not in slurm/001/shards.json. Allowed are 0 to" in done.err


def test_workers_that_cannot_fit_are_refused(tmp_path: Path) -> None:
    nobody = {"HOME": str(tmp_path)}
    given = ("--slurm", "memory=200M", "--slurm", "per_task=2")
    done = command.run(
        tmp_path, "run", TINY, "--out", "run", "--engine", "slurm", "--write-only", *given, env=nobody
    )
    assert done.code == 2
    assert "A task asks Slurm for memory = '200M', and its 2 workers need about" in done.err
    done = command.run(tmp_path, "run", TINY, "--out", "run", "--write-only")
    assert "--write-only was given, and the engine is inline" in done.err
    done = command.run(tmp_path, "cancel", "nothing")
    assert "nothing is no run folder" in done.err
