"""Slurm takes no more jobs, or not these: which refusals pass, and what the driver submits then."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from lossatlas.errors import UserError
from lossatlas.sweep import slurm as slurm_commands
from lossatlas.sweep.slurm import Full, NotNow
from lossatlas.sweep.slurm_files import attempts
from slurm_bench import INTERVAL, Background, Bench, bench_made, finished_run, until  # noqa: F401  # fixtures
from slurm_cluster import Cluster, obstacle
from slurm_conf import Shape

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "")

# What sbatch prints (Slurm 22.05 names the limit before the last text), and whether it may take fewer tasks.
FAILED = "sbatch: error: Batch job submission failed: "
POLICY = f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
REFUSALS = [
    (f"sbatch: error: QOSMaxSubmitJobPerUserLimit; {POLICY}", True),
    (f"sbatch: error: AssocGrpSubmitJobsLimit; {POLICY}", True),
    (f"sbatch: error: MaxSubmitJobsPerAccount; {POLICY}", True),
    (POLICY, True),
    (f"{FAILED}Resource temporarily unavailable", True),
    (f"sbatch: error: QOSMaxWallDurationPerJobLimit; {POLICY}", False),
    (f"sbatch: error: QOSMaxMemoryPerNode; {POLICY}", False),
    (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)", False),
]


@pytest.mark.parametrize(("said", "fewer"), REFUSALS)
def test_which_refusals_pass_with_fewer_tasks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, said: str, fewer: bool
) -> None:
    def refuse(*_words: str, **_options: Any) -> str:
        raise NotNow(said)

    (attempt,) = bench.engine().write()
    monkeypatch.setattr(slurm_commands, "_output", refuse)
    with pytest.raises(Full if fewer else UserError, match=re.escape(said)):
        slurm_commands.submit(attempt, alone=False)
    assert attempt.folder.exists() != fewer  # one that was too large is withdrawn


class Limited:
    """sbatch of a user who may have so many tasks in the queue."""

    def __init__(self, most: int, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.sizes = most, list[int]()
        real = slurm_commands._output

        def output(*words: str, **options: Any) -> str:
            if words[0] == "sbatch":
                (last,) = re.findall(r"--array=0-(\d+)", Path(words[-1]).read_text())
                self.sizes.append(int(last) + 1)
                if len(cluster.jobs()) + self.sizes[-1] > self.most:
                    raise NotNow(f"sbatch: error: QOSMaxSubmitJobPerUserLimit; {POLICY}")
            return real(*words, **options)

        monkeypatch.setattr(slurm_commands, "_output", output)


def test_half_as_many_are_tried_and_more_when_jobs_have_left(
    bench: Bench, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Limited(3, slurm, monkeypatch)
    for cell in bench.plan.cells:
        bench.rule("-".join(map(str, cell)), "wait")
    background = Background(bench.engine())
    until(lambda: len(slurm.jobs()) == 3)
    assert limited.sizes[:2] == [4, 2]
    limited.most = 100
    bench.rules.joinpath("2-16").unlink()
    until(lambda: len(attempts(bench.root)) == 3)  # those refused were withdrawn
    for path in bench.rules.glob("[0-9]*"):
        path.unlink()
    background.join()
    assert background.error is None
    assert bench.missing() == 0
    assert [text for text in bench.said if "QOSMaxSubmitJobPerUserLimit" in text] == bench.said[:1]


def test_others_of_the_user_fill_the_queue(bench: Bench, slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    Limited(1, slurm, monkeypatch)
    other = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 60")
    background = Background(bench.engine())
    until(lambda: bench.said)
    time.sleep(5 * INTERVAL)
    slurm.run("scancel", other)
    background.join()
    assert background.error is None
    assert bench.missing() == 0


def test_one_task_alone_that_is_too_many_is_an_error(
    bench: Bench, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Limited(0, slurm, monkeypatch)
    with pytest.raises(UserError, match=r"QOSMaxSubmitJob.*no smaller max_shards helps, another qos or account"):
        bench.run()
    assert limited.sizes == [4, 2, 1]


@pytest.mark.slow  # ended jobs take places for half a minute
def test_a_cluster_that_takes_no_more_jobs_of_anybody(
    bench: Bench, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch itself tries again for two minutes then; it is not waited for."""
    folder = Path(f"{slurm.folder}-full")
    monkeypatch.setattr(slurm_commands, "SUBMITTING", 1.0)
    monkeypatch.setattr(slurm_commands, "limits", slurm_commands.Limits)
    try:
        full = Cluster(folder).start(Shape(nodes=1, gpus=0, settings={"MaxJobCount": "3", "MinJobAge": "2"}))
        monkeypatch.setenv("SLURM_CONF", full.env["SLURM_CONF"])
        background = Background(bench.engine())
        background.join()
        assert background.error is None
        assert bench.missing() == 0
        assert "Slurm temporarily unable to accept job" in bench.said[0]
    finally:
        Cluster(folder).stop()


def test_other_arrays_of_the_user_take_no_place_and_what_is_waited_for_is_said_once(
    bench: Bench, slurm: Cluster
) -> None:
    slurm.run("sbatch", "--array=0-4", "--hold", "--output=/dev/null", "--wrap=sleep 60")
    for cell in bench.plan.cells:
        bench.rule("-".join(map(str, cell)), "wait")
    background = Background(bench.engine(max_shards=3))
    until(lambda: len(slurm.jobs()) == 5 + 3)
    until(lambda: bench.said)
    for path in bench.rules.glob("[0-9]*"):
        path.unlink()
    background.join()
    assert bench.missing() == 0
    (said,) = bench.said
    assert said.startswith("3 tasks of this run are in the queue, which takes 3 (max_shards")


def test_an_answer_of_sbatch_that_is_no_number_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_commands, "_output", lambda *_words, **_options: "Submitted")
    (attempt,) = bench.engine().write()
    with pytest.raises(UserError, match="sbatch answered 'Submitted', which is no number of a job"):
        slurm_commands.submit(attempt, alone=False)
    assert attempt.array is None
