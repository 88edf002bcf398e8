"""Cells that end their workers, nodes that are broken, jobs that are cancelled at any moment: the run goes on."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import command
from lossatlas import results
from lossatlas.landscape.checkpoints import Stopped
from lossatlas.sweep import slurm as slurm_commands
from lossatlas.sweep import slurm_driver
from lossatlas.sweep.slurm_files import attempts, cancelled
from lossatlas.sweep.worker import note_failure
from slurm_bench import INTERVAL, Background, Bench, bench_made, drive_bench, env, finished_run, until  # noqa: F401  # fixtures
from slurm_cluster import Cluster, obstacle

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "")


def test_two_cells_that_end_every_worker_do_not_end_the_driver(bench: Bench) -> None:
    """Alone at last, they leave the queue again and again with nothing done; so in a driver that begins anew."""
    deadly = {(4, 16), (2, 64)}
    for cell in deadly:
        bench.rule("-".join(map(str, cell)), "die")
    for _ in range(2):
        engine = bench.run()
        assert {bench.plan.cells[index] for index in engine.given_up} == deadly
        assert all("given up after 3 attempts" in reason for reason in engine.given_up.values())
        assert bench.missing() == sum(len(bench.plan[i].steps) for i in engine.given_up)


def test_a_broken_node_is_left_out_and_no_cell_given_up_for_it(bench: Bench, slurm: Cluster) -> None:
    bench.breaks("n1")
    waits = [bench.rule("-".join(map(str, cell)), "wait") for cell in bench.plan.cells]
    engine = bench.engine(gres="gpu:1")  # two on each node at first
    background = Background(engine)
    until(lambda: [text for text in bench.said if text.startswith("n1 is left out")])
    for path in waits:
        path.unlink()
    background.join()
    assert background.error is None
    assert (engine.given_up, engine.failures, bench.missing()) == ({}, {}, 0)
    (said,) = bench.said
    assert "tasks end there before they begin" in said
    assert "(FAILED, n1)" in said
    assert said.endswith("no GPU here")
    first, *_, last = attempts(bench.root)
    assert "--exclude" not in first.script.read_text()
    assert last.script.read_text().splitlines().count("#SBATCH --exclude=n1") == 1
    assert 3 <= len(attempts(bench.root)) <= 5


def test_a_node_that_leaves_no_log_is_named_by_the_queue(bench: Bench, slurm: Cluster) -> None:
    """Where the file system is missing, Slurm can write no log, and the task has left before the next look."""
    bench.breaks("n1")
    log = bench.root / "logs" / "slurm-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.log"
    setup = f"[ $SLURMD_NODENAME = n2 ] || rm {log}"
    for cell in bench.plan.cells:
        bench.rule("-".join(map(str, cell)), "wait")
    background = Background(bench.engine(gres="gpu:1", setup=setup))
    until(lambda: [text for text in bench.said if text.startswith("n1 is left out")])
    for path in bench.rules.glob("[0-9]*"):
        path.unlink()
    background.join()
    assert background.error is None
    assert bench.missing() == 0


def test_when_no_task_begins_any_more_the_rest_is_given_up(bench: Bench) -> None:
    """Something was done, so the results are to be written: no error, but reasons."""
    bench.rule("4-16", "wait")
    engine = bench.engine(throttle=1, max_shards=1)
    background = Background(engine)
    until(lambda: bench.begun("4-16"))
    bench.breaks("n1")
    bench.breaks("n2")
    (bench.rules / "4-16").unlink()
    background.join()
    assert background.error is None
    assert engine.given_up
    assert all("3 times tasks have ended before they began" in reason for reason in engine.given_up.values())
    assert all(reason.endswith("no GPU here") for reason in engine.given_up.values())
    assert bench.missing() == sum(len(bench.plan[index].steps) for index in engine.given_up)


def test_a_step_that_failed_and_then_succeeded_is_not_failed(bench: Bench, finished: Path) -> None:
    wait = bench.rule("2-16", "wait")
    engine = bench.engine()
    background = Background(engine)
    until(lambda: bench.begun("2-16"))
    cell = next(cell for cell in bench.plan if cell.cell == (2, 16))
    note_failure(bench.root / "failed", cell.steps[0], "no memory")
    until(lambda: engine.failures)
    assert cell.steps[0].key in engine.failures
    wait.unlink()
    background.join()
    assert background.error is None
    assert (engine.failures, bench.missing()) == ({}, 0)


def test_a_cancelled_script_that_is_submitted_by_hand_again_is_seen(bench: Bench, slurm: Cluster) -> None:
    wait = bench.rule("2-16", "wait")
    first, second = bench.engine(max_shards=1).write(), bench.engine().write()
    slurm.run("sbatch", first[0].script)
    until(lambda: bench.begun("2-16"))
    assert {task.id for task in slurm_commands.cancel(bench.root)} == cancelled(bench.root).tasks
    (bench.rules / "begun-2-16").unlink()
    slurm.run("sbatch", first[0].script)
    until(lambda: bench.begun("2-16"))
    background = Background(bench.engine())
    time.sleep(5 * INTERVAL)
    wait.unlink()
    background.join()
    assert background.error is None
    assert bench.missing() == 0
    assert attempts(bench.root) == [*first, *second]


def test_an_array_on_its_way_into_the_queue_is_cancelled_too(
    bench: Bench, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled between the look at the queue and the answer of sbatch: by whoever comes second."""
    rules = [bench.rule("-".join(map(str, cell)), "wait") for cell in bench.plan.cells]
    real = slurm_commands._output
    ended: list[int] = []

    def output(*words: str, **options: Any) -> str:
        if words[0] == "sbatch" and not ended:
            ended.append(len(slurm_commands.cancel(bench.root)))
        return real(*words, **options)

    monkeypatch.setattr(slurm_commands, "_output", output)
    with pytest.raises(Stopped):
        bench.run()
    assert ended == [0]
    until(lambda: not slurm.jobs())
    for path in rules:
        path.unlink()
    bench.run()
    assert bench.missing() == 0


def test_cancel_looks_again_for_what_came_meanwhile(
    bench: Bench, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in bench.plan.cells:
        bench.rule("-".join(map(str, cell)), "wait")
    (attempt,) = bench.engine().write()
    for _ in range(2):  # with the same names
        slurm.run("sbatch", attempt.script)
    real = slurm_commands._output
    late = iter([attempt.script])

    def output(*words: str, **options: Any) -> str:
        if words[0] == "scancel" and (script := next(late, None)):
            slurm.run("sbatch", script)
        return real(*words, **options)

    monkeypatch.setattr(slurm_commands, "_output", output)
    assert len({task.id for task in slurm_commands.cancel(bench.root)}) == 3 * 4
    until(lambda: not slurm.jobs())


def test_damaged_shards_are_passed_over_with_a_note(bench: Bench, slurm: Cluster) -> None:
    wait = bench.rule("2-16", "wait")
    (attempt,) = bench.engine().write()
    slurm.run("sbatch", attempt.script)
    until(lambda: bench.begun("2-16"))
    (attempt.folder / "shards.json").write_text("[[[2,")
    background = Background(bench.engine())
    until(lambda: len(attempts(bench.root)) == 2)
    wait.unlink()
    background.join()
    assert background.error is None
    assert bench.missing() == 0
    (said,) = bench.said
    assert "it is damaged" in said


def test_a_look_that_takes_long_is_not_paid_for_with_hours(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = [0.0], list[float]()
    engine = bench.engine()

    def look() -> bool:
        clock[0] += 120  # as long as a command may take
        return bool(slept)

    monkeypatch.setattr(engine, "_round", look)
    monkeypatch.setattr(slurm_driver, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=slept.append))
    engine.run()
    assert slept == [120.0]


def test_results_are_written_whatever_fails_and_only_what_is_missing_has_failed(
    bench: Bench, slurm: Cluster
) -> None:
    bench.rule("4-16", "die")
    wait = bench.rule("2-16", "wait")
    driver = drive_bench(bench, slurm)
    driver.wait_for(lambda: bench.begun("2-16"))
    (cell,) = [cell for cell in bench.plan if cell.cell == (2, 16)]
    for step in cell.steps:
        note_failure(bench.root / "failed", step, "no memory")
    time.sleep(1)  # some looks
    wait.unlink()
    done = driver.finish()
    lost = len(bench.plan[0].steps)
    assert done.code == 1, done.err
    assert f"{lost} steps failed; the first: train of cell (4" in done.err
    assert "given up after 3 attempts" in done.err
    assert "missing or damaged" not in done.err
    models = results.load(bench.root / "results.nc")["models"]
    assert (models["status"] == "ok").sum() == 6
    (bench.rules / "4-16").unlink()
    again = drive_bench(bench, slurm).finish()
    assert again.code == 0, again.err


def test_the_driver_of_cancelled_jobs_says_so(bench: Bench, slurm: Cluster) -> None:
    bench.rule("2-16", "wait")
    driver = drive_bench(bench, slurm)
    driver.wait_for(lambda: bench.begun("2-16"))
    assert command.run(bench.root.parent, "cancel", "run", env=env(slurm)).code == 0
    done = driver.finish()
    assert done.code == 85
    assert (
        "The jobs of this run were cancelled. What is finished is kept; `lossatlas run run` goes on." in done.err
    )
    assert "Left as asked" not in done.err
