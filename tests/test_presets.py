"""Every preset runs through at a tiny scale, on data in the layout in which the real ones are published."""

from pathlib import Path

import pytest

import command
import published_layouts
from lossatlas import presets, results, specs

SCALE = 0.001
SAMPLES = 130  # a part; the batch of most presets is 128
LARGE = 1024  # the smallest batch of the preset of large ones


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_runs_through_at_a_tiny_scale(name: str, tmp_path: Path) -> None:
    spec = specs.parse(presets.text(name), name)
    assert spec.name == name
    data, given = spec.task.data.name, ["--scale", str(SCALE)]
    if data in published_layouts.PUBLISHED:
        samples = LARGE if name == "yang2021/large-batch" else SAMPLES
        folder = published_layouts.write(data, tmp_path / "data", train=samples, test=SAMPLES)
        given += ["--set", f"task.data.path={folder}"]
    if (
        data in published_layouts.TEXT
    ):  # the sizes of the real corpora say nothing here, one step has no warm-up, no trace is exact
        changes = ("task.data.n_train=32", 'train.schedule={name="constant"}', "measures.hessian.max_matvecs=16")
        given += [part for change in changes for part in ("--set", change)]
    (axis, values), *_ = spec.temperature.items()
    given += ["--set", f"temperature.{axis}=[{min(values)}]"]  # one is enough to run through
    arguments = ("run", name, "--out", "run", "--device", "cpu", *given)
    done = command.Running(tmp_path, arguments, cwd=tmp_path).finish(400)  # 30 s of work where variants are many
    assert done.code == 0, done.err
    small = specs.scaled(spec, SCALE)
    for variant in spec.variants or [""]:
        tree = results.load(tmp_path / "run" / variant / "results.nc")
        assert tree["models"].sizes["seed"] == len(small.seeds) == 2
        assert not (tree["models"]["status"] == "failed").any()
    assert {path.name for path in (tmp_path / "run" / "figures").glob("*.pdf")}
