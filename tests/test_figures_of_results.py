"""Which figures `figures`, `run` and `findings --out` draw of results, besides the maps."""

from pathlib import Path

import numpy as np
import pytest

import command
from grids import build
from lossatlas import results

BATCHES = (16, 32, 64, 128)


def saved(folder: Path, rows: dict, name: str = "some.nc", axes: tuple = ("width", "batch_size"), **more) -> Path:
    """A file of results with these phases from hot to cold at every load."""
    cells = {
        (*(load if isinstance(load, tuple) else (load,)), batch): {"phase": phase, "accuracy": 80 + k, **more}
        for load, row in rows.items()
        for k, (batch, phase) in enumerate(zip(BATCHES, row, strict=True))
    }
    results.save(build(cells, axes=axes, spread=0.5, noise=0.1), folder / name)
    return folder / name


def stems(folder: Path) -> set[str]:
    names = [{path.stem for path in folder.glob(f"*.{kind}")} for kind in ("pdf", "png")]
    assert names[0] == names[1]
    return names[0]


THIRD = {2: ("I", "I", "III", "III"), 4: ("I", "II", "IV-A", "IV-B")}


@pytest.mark.parametrize("subcommand", ["figures", "findings"])
def test_a_column_through_the_third_phase_is_drawn(tmp_path: Path, subcommand: str) -> None:
    done = command.run(tmp_path, subcommand, saved(tmp_path, THIRD), "--out", "out")
    assert done.code == 0, done.err
    assert "slice-width-2" in stems(tmp_path / "out")
    assert not {"slice-width-4", "phase_maps"} & stems(tmp_path / "out")
    assert "columns pass" not in done.err


@pytest.mark.parametrize("subcommand", ["figures", "findings"])
def test_of_many_columns_three_are_drawn_and_the_others_told(tmp_path: Path, subcommand: str) -> None:
    counts = {1: 1, 2: 3, 4: 2, 8: 3, 16: 2}  # cells of III
    rows = {width: ("I",) * (4 - count) + ("III",) * count for width, count in counts.items()}
    done = command.run(tmp_path, subcommand, saved(tmp_path, rows), "--out", "out")
    assert done.code == 0, done.err
    slices = {stem for stem in stems(tmp_path / "out") if stem.startswith("slice")}
    assert slices == {"slice-width-2", "slice-width-8", "slice-width-4"}
    assert "5 columns pass through Phase III; slices are drawn of the 3 with most." in done.err
    assert "`lossatlas findings SOURCE --out DIR --at width=16` draws another." in done.err


def test_the_traces_are_drawn_against_the_temperature(tmp_path: Path) -> None:
    source = saved(tmp_path, THIRD, axes=("label_noise", "batch_size"))
    assert command.run(tmp_path, "figures", source, "--out", "out").code == 0
    assert "trace_lines" in stems(tmp_path / "out")
    alone = saved(tmp_path, {2: THIRD[2]}, "alone.nc")
    assert command.run(tmp_path, "figures", alone, "--out", "other").code == 0
    assert "trace_lines" not in stems(tmp_path / "other")  # of one load, which the slice shows
    without = saved(tmp_path, THIRD, "without.nc", trace=np.nan)
    assert command.run(tmp_path, "figures", without, "--out", "third").code == 0
    assert "trace_lines" not in stems(tmp_path / "third")


def test_the_maps_of_every_amount_are_in_one_figure_too(tmp_path: Path) -> None:
    rows = {(width, amount): THIRD[2] for width in (2, 4) for amount in (1000, 5000)}
    source = saved(tmp_path, rows, axes=("width", "n_train", "batch_size"))
    done = command.run(tmp_path, "figures", source, "--out", "out")
    assert done.code == 0, done.err
    drawn = stems(tmp_path / "out")
    assert {"phase_maps", "phase_map-n_train-1000", "trace_lines-n_train-5000"} <= drawn
    assert len([stem for stem in drawn if stem.startswith("slice")]) == 3  # of all amounts together
    assert "--at width=4,n_train=5000` draws another." in done.err
