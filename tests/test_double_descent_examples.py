"""The two specs of double descent: what they ask for, and that the small one shows it."""

import csv
from pathlib import Path

import pytest

import command
from lossatlas import specs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize(("name", "n_train"), [("double-descent", 4000), ("double-descent-digits", 1400)])
def test_the_specs_hide_no_peak(name: str, n_train: int) -> None:
    spec = specs.read(EXAMPLES / f"{name}.toml")
    assert (spec.name, spec.weights, len(spec.axes[0].values) >= 6) == (name, "final", True)
    for cell in spec.cells():
        task, train = spec.at(cell)
        assert (task.data.n_train, task.data.label_noise) == (n_train, 0.2)
        assert (train.optimizer.weight_decay, train.augment) == (0.0, ())


@pytest.mark.slow
def test_the_digits_show_it(tmp_path: Path) -> None:
    """Four of the widths and seeds; the least of the three steps had 6 standard errors where they were chosen."""
    fewer = ["--set", "load.width=[2, 8, 32, 128]", "--set", "seeds=[0, 1, 2, 3]"]
    spec = EXAMPLES / "double-descent-digits.toml"
    assert command.run(tmp_path, "run", spec, "--out", "run", *fewer).code == 0
    assert command.run(tmp_path, "findings", "run", "--out", "found").code == 0
    with (tmp_path / "found" / "double_descent.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["found"] == "yes"
    assert [int(row[name]) for name in ("start", "valley", "peak", "end")] == [2, 8, 32, 128]
    assert (tmp_path / "found" / "descent-batch_size-32.png").is_file()
