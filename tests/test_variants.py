"""Variants of a spec: what they may be, what they share, a run folder each, and how they are compared."""

import copy
import csv
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr
from scipy.stats import spearmanr

import command
from command import TINY
from grids import build
from lossatlas import figures, presets, results, specs, summary
from lossatlas.cli import variants as cli
from lossatlas.cli import variants_status
from lossatlas.errors import SpecError
from lossatlas.findings.variants import ranked, spearman
from lossatlas.landscape.alignment import cka
from lossatlas.landscape.similarity import mixup, mixup_runs, noisy
from lossatlas.registry import Facts
from lossatlas.seeding import derive
from lossatlas.specs import Spec
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.run import saved_plan
from lossatlas.sweep.variants import progress
from lossatlas.sweep.worker import note_failure
from lossatlas.tasks import data, models
from lossatlas.tasks.corruption import corrupted
from lossatlas.tasks.samples import Samples

RAW = tomllib.loads(TINY.read_text())
ABLATION = """
[variants]
mixup    = {}
clean    = { measures.cka.mixup_alpha = 0.0 }
noisy    = { "measures.cka.noise" = 0.5, "measures.cka.outputs" = "logits" }
hidden   = { measures.cka.outputs = "input:3", measures.cka.debiased = true }
"""


def variants_of(**changes: dict[str, Any]) -> Spec:
    return specs.validate({**copy.deepcopy(RAW), "variants": changes}, "tiny")


# ---- the spec -----------------------------------------------------------------------------------------------


def test_a_variant_is_an_ordinary_spec_with_a_few_keys_replaced() -> None:
    spec = variants_of(plain={}, dotted={"measures.cka.noise": 0.5}, nested={"measures": {"cka": {"images": 64}}})
    found = specs.variants(spec)
    assert list(found) == ["plain", "dotted", "nested"]
    assert [each.name for each in found.values()] == ["tiny/plain", "tiny/dotted", "tiny/nested"]
    base = specs.validate(RAW, "tiny")
    assert found["plain"].model_copy(update={"name": "tiny"}) == base
    assert found["dotted"].measures.cka == base.measures.cka.model_copy(update={"noise": 0.5})
    assert found["nested"].measures.cka == base.measures.cka.model_copy(update={"images": 64})
    assert specs.variants(base) == {}
    again = specs.validate(json.loads(json.dumps(spec.model_dump(mode="json", exclude_unset=True))), "again")
    assert again == spec


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("store", {}, "variants.store: its name is that of a folder; allowed are letters, digits and"),
        ("a/b", {}, "variants.a/b: its name is that of a folder"),
        ("a", 3, "variants.a: 3 was given; input should be an object"),
        (
            "a",
            {"train.epochs": 3},
            "variants.a: train.epochs was given; variants differ in keys of measures.cka, ",
        ),
        ("a", {"measures.distance": {}}, ""),
        ("a", {"measures.distance.x": 1}, "variants.a: measures.distance.x was given; variants differ in"),
        ("a", {"measures.cka.kernell": "rbf"}, "variants.a: measures.cka.kernell: unknown key; "),
        ("a", {"measures.cka.images": 0}, "variants.a: measures.cka.images: 0 was given; input should be greater"),
        (
            "a",
            {"measures.cka.bandwidth": 1},
            "variants.a: measures.cka.bandwidth: given although the linear kernel",
        ),
        (
            "a",
            {"measures.cka.positions": "samples"},
            "variants.a: measures.cka.positions: samples was given; allow",
        ),
        (
            "a",
            {"measures.cka.debiased": True, "measures.cka.images": 4},
            "variants.a: measures.cka.images: 4 was given; the unbiased HSIC needs at least 5",
        ),
    ],
)
def test_what_is_wrong_with_a_variant_is_told(name: str, changes: Any, line: str) -> None:
    if not line:
        assert variants_of(**{name: changes}).variants == {name: {}}
        return
    with pytest.raises(SpecError) as caught:
        variants_of(**{name: changes})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(line)


def test_a_layer_that_does_not_exist_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for given, told in (
        (
            "measures.cka.outputs=2x",
            "measures.cka.outputs: 2x was given. The model has no layer '2x'; its modules",
        ),
        ("measures.cka.outputs=input:9", "measures.cka.outputs: input:9 was given. The model has no layer '9'"),
    ):
        done = command.run(tmp_path, "run", TINY, "--out", "run", "--set", given)
        assert done.code == 2
        assert told in done.err
    done = command.run(tmp_path, "plan", TINY, "--set", 'measures.cka={outputs="1", positions="samples"}')
    assert done.code == 2
    assert (
        "positions: samples was given, and 1 has features of shape (2,); allowed of these is flattened" in done.err
    )


def test_scaled_variants_have_shorter_curves_and_fewer_pairs() -> None:
    spec = specs.parse(presets.text("yang2021/connectivity-ablation"), "preset")
    small = specs.scaled(spec, 0.1)
    assert small.variants.keys() == spec.variants.keys()
    assert small.measures.connectivity.epochs == 5
    assert small.variants["epochs-10"] == {"measures.connectivity.epochs": 3}  # of one the rate is tiny
    assert small.reduced.endswith(", published and ring alike)")  # two seeds are one pair
    tiny = specs.scaled(spec, 0.02)
    assert tiny.measures.connectivity.epochs == 3
    assert tiny.reduced.endswith(", published and ring and epochs-10 alike)")
    assert small.variants["points-17"] == spec.variants["points-17"]
    listed = variants_of(a={"measures.connectivity.pairs": [[0, 1]]}, b={"measures.connectivity.n_ref": 100})
    few = specs.scaled(listed, 0.1).variants
    assert few == {"a": {"measures.connectivity.pairs": [[0, 1]]}, "b": {"measures.connectivity.n_ref": 10}}


@pytest.mark.parametrize("name", ["yang2021/cka-ablation", "yang2021/connectivity-ablation"])
def test_the_ablations_share_models_with_figure_2(name: str) -> None:
    spec, whole = (specs.parse(presets.text(each), each) for each in (name, "yang2021/fig2"))
    trained = {step.key for cell in Plan(whole, "x") for step in cell.steps if step.name == "train"}
    every = specs.variants(spec)
    assert len(every) >= 8
    measured = set()
    for each in every.values():
        steps = [step for cell in Plan(each, "x") for step in cell.steps]
        assert {step.key for step in steps if step.name == "train"} <= trained
        measured.add(frozenset(step.key for step in steps if step.name in ("cka", "connectivity")))
    assert len(measured) == len(every)  # no two measure the same


def test_what_variants_share_is_counted_once() -> None:
    spec = variants_of(a={}, b={"measures.cka.images": 64}, c={"measures.cka.noise": 0.5}, d={})
    facts, plans = cli.plans(spec)
    alone = cli.together(plans[:1], facts)
    needs = cli.together(plans, facts)
    assert needs.steps == {**alone.steps, "cka": 3 * alone.steps["cka"]}
    assert alone.seconds < needs.seconds < 2 * alone.seconds
    assert isinstance(facts, Facts)


# ---- a run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with its variants, in `run`; what it printed is in `out`."""
    root = tmp_path_factory.mktemp("variants")
    base = command.edited(root, model='model = { name = "mlp", depth = 2 }', seeds="seeds       = [0, 1, 2]")
    without = base.read_text().replace("connectivity = ", "# ").replace("hessian ", "# ")
    base.write_text(without + ABLATION)
    done = command.run(root, "run", base, "--out", "run")
    assert done.code == 0, done.err
    (root / "out").write_text(done.out)
    return root


def test_every_variant_is_a_run_folder_over_one_store(folder: Path) -> None:
    run = folder / "run"
    names = ["mixup", "clean", "noisy", "hidden"]
    for name in names:
        assert {"spec.json", "plan.json", "results.nc", "figures"} <= {
            path.name for path in (run / name).iterdir()
        }
        assert not (run / name / "store").exists()
        assert json.loads((run / name / "plan.json").read_text())["store"] == "../store"
        spec = json.loads((run / name / "spec.json").read_text())
        assert "variants" not in spec
        assert spec["name"] == f"tiny/{name}"
    kinds = [step.split("/")[0] for step in command.steps_done(run / "store")]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "train": 12, "evaluation": 12, "cka": 48, "distance": 12, "disagreement": 12, "ensemble": 4,
    }  # fmt: skip
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["variants.pdf", "variants.png"]


def test_a_folder_of_variants_is_continued_and_grows(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    before = command.steps_done(folder / "run" / "store")
    again = command.run(tmp_path, "run", "run")
    assert again.code == 0, again.err
    assert command.steps_done(tmp_path / "run" / "store").keys() == before.keys()
    assert (tmp_path / "run" / "variants.csv").read_text() == (folder / "run" / "variants.csv").read_text()
    more = tmp_path / "more.toml"
    more.write_text((folder / "spec.toml").read_text() + "test = { measures.cka.data = 'test' }\n")
    done = command.run(tmp_path, "run", more, "--out", "run", "--engine", "processes", "--workers", "2")
    assert done.code == 0, done.err
    new = command.steps_done(tmp_path / "run" / "store").keys() - before.keys()
    assert [key.split("/")[0] for key in new] == 12 * ["cka"]
    assert "\ntest,cka,4," in (tmp_path / "run" / "variants.csv").read_text()
    assert json.loads((tmp_path / "run" / "engine.json").read_text())["name"] == "processes"


def test_other_commands_name_the_variants_to_choose_from(folder: Path) -> None:
    chosen = "run/mixup, run/clean, run/noisy, run/hidden"
    for arguments in (("phases", "run"), ("figures", "run", "--out", "x"), ("findings", "run"), ("worker", "run")):
        done = command.run(folder, *arguments)
        assert done.code == 2, arguments
        assert f"run holds variants of a run, each in a folder of its own. Give one of them: {chosen}" in done.err
    assert command.run(folder, "phases", "run/clean").code == 0


def test_a_folder_is_either_of_variants_or_of_one_run(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.toml"
    plain.write_text((folder / "spec.toml").read_text().partition("[variants]")[0])
    done = command.run(folder, "run", plain, "--out", "run")
    assert done.code == 2
    assert "variants: the folder has variants mixup, clean, noisy, hidden, the spec none" in done.err
    assert not (folder / "run" / "plan.json").exists()
    done = command.run(folder, "run", "spec.toml", "--out", "run/clean")
    assert done.code == 2
    assert "variants: the folder has none, the spec variants mixup, clean, noisy, hidden" in done.err


def test_how_far_the_variants_are(folder: Path, tmp_path: Path) -> None:
    found = progress(folder / "run")
    assert {name: (each.done, each.total) for name, each in found.items()} == {
        "mixup": (64, 64), "clean": (64, 64), "noisy": (64, 64), "hidden": (64, 64), "": (100, 100),
    }  # fmt: skip
    (tmp_path / "spec.json").write_text((folder / "run" / "spec.json").read_text())
    assert {(each.done, each.total) for each in progress(tmp_path).values()} == {(0, 64), (0, 100)}


def test_status_of_a_folder_of_variants(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants_status.status(folder / "run", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["together"] == {"done": 100, "total": 100}
    assert list(told["variants"]) == ["mixup", "clean", "noisy", "hidden"]
    variants_status.status(folder / "run", as_json=False)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1] == "mixup\t64\t64\t0"
    assert printed.err.startswith(
        "100 of 100 steps done, those that variants share counted once. `lossatlas status"
    )


def test_watching_the_variants_ends_when_all_are_done(folder: Path) -> None:
    assert command.run(folder, "status", "run", "--watch").out == "100 of 100 steps done.\n"
    watched = command.run(folder, "status", "run", "--watch", "--json").out
    assert len(watched.splitlines()) == 1
    assert json.loads(watched) == json.loads(command.run(folder, "status", "run", "--json").out)


def test_all_variants_are_verified_and_what_they_share_is_read_once(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    done = command.run(tmp_path, "verify", "run")
    assert (done.code, done.err) == (0, "100 steps and 0 checkpoints read, nothing damaged.\n")
    record = next((tmp_path / "run" / "store" / "train").rglob("*.safetensors"))
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    (tmp_path / "run" / "figures" / "variants.png").unlink()
    (tmp_path / "run" / "clean" / "results.nc").write_bytes(b"")
    done = command.run(tmp_path, "verify", "run")
    assert done.code == 1
    assert done.err.startswith("100 steps and 0 checkpoints read, 3 damaged.")
    assert done.out.count(record.name) == 1
    assert "variants.png is missing" in done.out
    assert "clean/results.nc cannot be read" in done.out


def test_variants_that_cannot_be_verified_do_not_hide_the_others(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "clean")
    (tmp_path / "run" / "noisy" / "spec.json").unlink()
    (tmp_path / "run" / "engine.json").write_text("{")
    done = command.run(tmp_path, "verify", "run")
    assert done.code == 1
    assert "clean: run/clean is missing. `lossatlas run run` makes it again." in done.out
    assert "noisy: run/noisy is no run folder: it holds no spec.json" in done.out
    assert "the engine: " in done.out
    assert "3 damaged" in done.err
    (tmp_path / "run" / "spec.json").write_text("{")
    assert command.run(tmp_path, "verify", "run").out.startswith("the spec: run/spec.json is damaged")


def test_watching_ends_when_all_that_is_missing_has_failed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    saved = saved_plan(tmp_path / "run" / "noisy")
    step = next(step for step in saved.plan.steps(saved.plan.cells[0]) if step.name == "cka")
    shutil.rmtree(tmp_path / "run" / "store" / "cka" / step.key[:2] / step.key)
    note_failure(tmp_path / "run" / "noisy" / "failed", step, "no luck")
    done = command.run(tmp_path, "status", "run", "--watch")
    assert (done.code, done.out) == (1, "99 of 100 steps done.\n")
    assert "have failed, and nobody is at work" in done.err
    assert "noisy\t63\t64\t1" in command.run(tmp_path, "status", "run").out


def test_plan_tells_of_the_variants(folder: Path) -> None:
    for source in ("spec.toml", "run"):
        done = command.run(folder, "plan", source)
        assert done.code == 0, done.err
        rows = dict(line.split("\t") for line in done.out.splitlines())
        assert rows["name"] == "tiny"
        assert rows["variants"] == "mixup, clean, noisy, hidden"
        assert rows["models"] == "12"
        assert "48 cka" in rows["steps"]


def test_the_variants_measure_what_they_say(folder: Path) -> None:
    """CKA of two seeds of the cell (4, 16) from the stored weights, in plain PyTorch."""
    spec = specs.read(folder / "spec.toml")
    raw = data.load("digits", None)
    task = spec.at((4, 16))[0]
    samples = Samples(
        *[getattr(corrupted(raw, task.data), f"train_{part}") for part in ("inputs", "targets")], raw
    )
    inputs = samples.head(256)[0]
    nets = []
    plan = Plan(spec, raw.fingerprint())
    for step in plan.steps((4, 16))[:2]:
        net = models.build("mlp", task.model.options, input_shape=(1, 8, 8), classes=10, seed=0)
        path = folder / "run" / "store" / "train" / step.key[:2] / step.key / "best.safetensors"
        net.load_state_dict(safetensors.torch.load_file(path))
        nets.append(net.eval())
    runs = mixup_runs(len(inputs))  # that share a lambda
    mixed = mixup(inputs, generator=np.random.default_rng(derive(0, "mixup of all pairs")))
    with_noise = noisy(mixed, 0.5, generator=np.random.default_rng(derive(0, "noise of all pairs")))
    with torch.no_grad():
        expected = {
            "mixup": cka(*[net(mixed).double().softmax(1) for net in nets], blocks=runs),
            "clean": cka(*[net(inputs).double().softmax(1) for net in nets]),
            "noisy": cka(*[net(with_noise) for net in nets], blocks=runs),
            "hidden": cka(*[net[:3](mixed) for net in nets], debiased=True, blocks=runs),  # type: ignore[index]
        }
    for name, estimate in expected.items():
        pairs = results.load(folder / "run" / name / "results.nc")["pairs"].to_dataset()
        found = pairs.sel(width=4, batch_size=16, seed=0, seed_b=1)
        # The sweep's passes are cut into other pieces, in float32.
        assert found["cka"].item() == pytest.approx(estimate.value, rel=1e-5), name
        assert found["cka_se"].item() == pytest.approx(estimate.stderr, rel=1e-3), name
    told = {name: results.load(folder / "run" / name / "results.nc")["pairs"]["cka"].attrs for name in expected}
    assert told["mixup"]["estimator"].startswith(
        "linear, centred, float64, softmax outputs on at most 256 mixup images; of text"
    )
    assert "unbiased HSIC, features input:3 on at most 256 mixup images" in told["hidden"]["estimator"]
    assert "logits on at most 256 mixup images with noise 0.5" in told["noisy"]["estimator"]


def test_the_table_holds_rank_correlations(folder: Path) -> None:
    with (folder / "run" / "variants.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["variant"] for row in rows] == ["mixup", "clean", "noisy", "hidden"]
    cells = {
        row["variant"]: summary.cells(results.load(folder / "run" / row["variant"] / "results.nc")) for row in rows
    }
    for row in rows:
        mine = cells[row["variant"]]
        assert (row["quantity"], int(row["cells"])) == ("cka", 4)
        assert float(row["mean"]) == pytest.approx(mine["cka"].mean().item(), abs=1e-4)
        for name, other in (("rho_accuracy", mine["test_accuracy"]), ("rho_first", cells["mixup"]["cka"])):
            expected = spearmanr(mine["cka"].values.ravel(), other.values.ravel()).statistic
            assert float(row[name]) == pytest.approx(expected, abs=1e-4)
    assert rows[0]["rho_first_se"] == "0.0000"
    printed = (folder / "out").read_text()
    assert "\t".join(rows[1].values()) in printed


# ---- the comparison -----------------------------------------------------------------------------------------


def test_spearman_is_scipys_and_needs_three_different_cells() -> None:
    generator = np.random.default_rng(0)
    a, b = (xr.DataArray(generator.integers(0, 5, (4, 5)).astype(float), dims=("x", "y")) for _ in range(2))
    assert spearman(a, b) == pytest.approx(spearmanr(a.values.ravel(), b.values.ravel()).statistic, rel=1e-12)
    holes = a.where(generator.random((4, 5)) < 0.7)
    both = np.isfinite(holes.values)
    assert spearman(holes, b) == pytest.approx(spearmanr(holes.values[both], b.values[both]).statistic, rel=1e-12)
    assert np.isnan(spearman(a.where(a == a.max()), xr.ones_like(b)))
    assert np.isnan(spearman(a[:1, :2], b[:1, :2]))


def trees() -> dict[str, xr.DataTree]:
    """Two variants over 3 x 2 cells: accuracy rises with the width; CKA does in `up`, and falls in `down`."""
    cells = {
        (w, b): {"loss": 0.1, "accuracy": 50 + 10 * i + j, "cka": 0.3 + 0.1 * i + 0.01 * j}
        for i, w in enumerate((2, 4, 8))
        for j, b in enumerate((16, 64))
    }
    falling = {key: {**cell, "cka": 1 - cell["cka"]} for key, cell in cells.items()}
    return {"up": build(cells), "down": build(falling)}


def test_variants_are_ranked_by_the_first() -> None:
    found = ranked(trees(), "cka")
    assert [(row.variant, row.cells, row.accuracy, row.first) for row in found] == [
        ("up", 6, pytest.approx(1), 1),
        ("down", 6, pytest.approx(-1), pytest.approx(-1)),
    ]
    assert all(row.accuracy_error == pytest.approx(0, abs=1e-12) for row in found)  # all seeds are alike
    missing = ranked(trees(), "hessian_eig")
    assert [(row.cells, np.isnan(row.first)) for row in missing] == [(0, True), (0, True)]


def test_the_error_of_a_rank_correlation_is_the_jackknife_over_seeds() -> None:
    """By hand: rho without each of three seeds, their accuracies apart."""
    cells = {
        (w, 16): {"loss": 0.1, "accuracy": 50 + a, "cka": c} for w, a, c in ((2, 0, 0.3), (4, 1, 0.5), (8, 2, 0.4))
    }
    tree = build(cells, spread=1.5)
    (row,) = ranked({"only": tree}, "cka")
    errors = tree["models"]["test_error"].transpose("width", "batch_size", "seed").values[:, 0]
    without = [
        spearmanr([0.3, 0.5, 0.4], 100 - np.delete(errors, seed, axis=1).mean(1)).statistic for seed in range(3)
    ]
    assert np.std(without) > 0.1
    assert row.accuracy_error == pytest.approx(
        np.sqrt(2 / 3 * ((without - np.mean(without)) ** 2).sum()), rel=1e-12
    )


def test_the_figure_has_a_map_each_with_common_colours() -> None:
    cells = {name: summary.cells(tree) for name, tree in trees().items()}
    cells["hole"] = cells["up"].assign(cka=cells["up"]["cka"].where(cells["up"]["width"] > 2))
    figure = figures.variants(cells, "cka", notes={"down": "rho -1"}, key="rho: a rank", title="a title")
    drawn = {mesh.get_gid(): mesh for axes in figure.axes for mesh in axes.collections if mesh.get_gid() in cells}
    assert list(drawn) == ["up", "down", "hole"]
    for mesh in drawn.values():
        assert mesh.get_clim() == (pytest.approx(0.3), pytest.approx(0.7))
    np.testing.assert_allclose(drawn["up"].get_array(), cells["up"]["cka"].transpose("batch_size", "width"))
    assert drawn["hole"].get_array().mask.sum() == 2
    texts = {text.get_gid(): text.get_text() for axes in figure.axes[1:2] for text in axes.texts}
    assert texts == {"name": "down", "note": "rho -1"}
    assert [text.get_text() for text in figure.texts if text.get_gid() == "key"] == ["rho: a rank"]
    assert len(figure.axes) == 4  # three maps, one bar
    assert len(figure.legends) == 1


def test_units_that_differ_have_a_bar_each() -> None:
    cells = {name: summary.cells(build({(w, 16): {"loss": 0.1, "mc": -w} for w in (2, 4)})) for name in ("a", "b")}
    cells["b"]["mode_connectivity"].attrs["units"] = "nat"
    figure = figures.variants(cells, "mode_connectivity")
    labels = [axes.get_ylabel() for axes in figure.axes[2:]]
    assert labels == ["mc (%)", "mc (nat)"]
