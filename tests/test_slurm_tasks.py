"""How the Slurm driver tells whether a task has begun, and which nodes are bad. Needs no Slurm."""

from pathlib import Path

from lossatlas.sweep.slurm import Task
from lossatlas.sweep.slurm_tasks import Nodes, Watched


def test_whether_a_task_has_begun_is_in_its_log_or_those_of_its_workers(tmp_path: Path) -> None:
    task = Task("name", "7", 2, "FAILED", node="n9")
    watched = Watched(tmp_path, (3, 2), [], {}, task)
    assert watched.begun() is None
    (tmp_path / "logs" / "003-2").mkdir(parents=True)
    watched.log.write_text("module load cuda\nno such file\n")
    assert watched.begun() is None
    assert watched.how().splitlines() == [
        f"Its job 7_2 left the queue (FAILED, n9); the end of {tmp_path}/logs/slurm-7_2.log:",
        "module load cuda",
        "no such file",
    ]
    worker = tmp_path / "logs" / "003-2" / "worker-1.log"
    worker.write_text("2026-01-01 00:00:00 begins on cuda in job 7_2 on n8 with GPU 1\n")
    assert watched.begun() == "n9"
    watched.task = Task("name", "7", 2, "RUNNING")  # as it was last seen, if not as FAILED
    assert watched.begun() == "n8"
    worker.write_text("2026-01-01 00:00:00 begins on cpu\n")
    assert watched.begun() == ""


def test_a_node_is_bad_only_while_tasks_begin_elsewhere() -> None:
    nodes = Nodes()
    for node in ("n1", "n2", "n1", "", "n1", "n2"):
        nodes.failed(node, f"so on {node}")
    assert nodes.bad() == {}
    nodes.began("n3")
    assert nodes.bad() == {"n1": "so on n1"}
    nodes.failed("n2", "again")
    assert nodes.bad() == {"n1": "so on n1", "n2": "again"}
    nodes.began("n2")
    assert nodes.bad() == {"n1": "so on n1"}
    nodes.failed("n3", "late")
    nodes.failed("n2", "late")
    assert nodes.bad() == {}  # all fail now: it is no matter of nodes
