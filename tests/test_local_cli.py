"""The commands on single models and pairs: right numbers in the files, plain output, mistakes in a paragraph."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import command
from command import Finished
from lossatlas import local_results
from lossatlas.cli import local_running, plane_running
from lossatlas.cli.directions import Scale
from lossatlas.cli.partial import Partial
from lossatlas.cli.target import Target
from lossatlas.landscape import paths
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.specs import Train
from lossatlas.tasks import data, losses, models
from lossatlas.tasks.samples import Samples
from lossatlas.training import train
from oracles.dense import dense_hessian

IMAGES = 60
RAW = data.load("digits", None)
MLP = ["--model", "mlp", "--option", "width=2", "--data", "digits", "--images", IMAGES, "--out", "out"]
CNN = ["--model", "cnn", "--option", "width=2", "--data", "digits", "--images", IMAGES, "--out", "out"]


def network(name: str, seed: int) -> nn.Module:
    return models.build(name, {"width": 2}, input_shape=RAW.input_shape, classes=10, seed=seed)


def samples() -> Samples:
    return Samples(RAW.train_inputs[:IMAGES], RAW.train_targets[:IMAGES], RAW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of small trained and fresh models, some of them useless; not to be changed."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("mlp", "cnn"):
        for seed in range(3):
            model = network(name, seed)
            torch.save(model.state_dict(), root / f"{name}{seed}-init.pt")
            trained = train(
                model, samples(), losses.build("cross_entropy"), Train(batch_size=20, epochs=6), seed=seed
            )
            safetensors.torch.save_file(trained.weights["final"], root / f"{name}{seed}.safetensors")
    (root / "corrupt.pt").write_bytes((root / "mlp0-init.pt").read_bytes()[:-300])
    lost = {name: t.fill_(math.nan) for name, t in network("mlp", 0).state_dict().items()}
    torch.save(lost, root / "nan.pt")
    return root


def state(folder: Path, name: str) -> nn.Module:
    model = network(name[:3], 0)
    model.load_state_dict(safetensors.torch.load_file(folder / f"{name}.safetensors"))
    return model.eval()


def located(folder: Path, arguments: Sequence[object]) -> list[object]:
    """The arguments with the names of files in `folder` as paths."""
    weights = {path.name: path for path in folder.iterdir()}
    return [weights.get(str(argument), argument) for argument in arguments]


def done(folder: Path, tmp_path: Path, name: str, *arguments: object) -> tuple[xr.Dataset, list[str]]:
    """The dataset that a command wrote, and its output; the weights are named relative to `folder`."""
    finished = command.run(tmp_path, *located(folder, arguments))
    assert finished.code == 0, finished
    lines = finished.out.splitlines()
    assert not re.search(r"\x1b|[━╸]", finished.out + finished.err)
    assert f"results: out/{name}.nc" in lines
    figures = [Path(line.removeprefix("figure: ")) for line in lines if line.startswith("figure: ")]
    assert {path.suffix for path in figures} == {".pdf", ".png"}
    assert all((tmp_path / path).stat().st_size > 1000 for path in figures)
    assert not list((tmp_path / "out").glob(".*"))  # no temporary, no partial file
    return local_results.load(tmp_path / "out" / f"{name}.nc"), lines


def refused(finished: Finished, *words: str) -> None:
    assert finished.code == 2, finished
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert "Traceback" not in finished.err
    for word in words:
        assert word in finished.err


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)


def test_spectrum_is_that_of_the_dense_hessian(folder: Path, tmp_path: Path) -> None:
    arguments = ("-k", 3, "--dtype", "float64", "--probes", 40, "--steps", 30, "--max-matvecs", 400)
    found, lines = done(folder, tmp_path, "spectrum", "spectrum", "mlp0.safetensors", *MLP, *arguments)
    batch = samples().head(IMAGES)
    double = [(batch[0].double(), batch[1])]
    dense = dense_hessian(state(folder, "mlp0"), double, supervised(F.cross_entropy))
    exact = torch.linalg.eigvalsh(dense)
    # Lanczos stops at a relative residual of 1e-3; the error of an eigenvalue is at most its residual.
    for values, residual, true in (
        (found["eigenvalue"], found["eigenvalue_residual"], exact.flip(0)[:3]),
        (found["eigenvalue_min"], found["eigenvalue_min_residual"], exact[:3]),
    ):
        assert (abs(values.values - true.numpy()) <= residual.values + 1e-9).all()
        assert (residual.values <= 1e-3 * exact.abs().max().item()).all()
    assert found["trace"].item() == pytest.approx(dense.trace().item(), rel=1e-8)
    assert (found["trace_se"].item(), found["trace_exact"].item()) == (0, 1)
    square = (dense**2).sum().item()
    assert abs(found["trace_of_square"].item() - square) < 5 * found["trace_of_square_se"].item()
    assert found["density"].sum().item() == pytest.approx(1, abs=1e-9)
    mass = (exact < -1e-12).double().mean().item()  # dead units have eigenvalues that rounding gives a sign
    low, open_, high = (found[f"{name}_share"].item() for name in ("negative", "undecided", "positive"))
    assert low + open_ + high == pytest.approx(1, abs=1e-12)
    assert low - 5 * found["negative_share_se"].item() <= mass
    assert 1 - high + 5 * found["positive_share_se"].item() >= mass
    assert f"share of eigenvalues {low:.4g} +- " in lines[0]
    assert " below 0, " in lines[0]
    assert f"{open_:.4g} +- " in lines[0]
    assert lines[0].endswith(" undecided near 0")
    assert lines[0].startswith(f"largest eigenvalue {exact[-1]:.4g} (residual ")
    assert f"trace {dense.trace():.4g} +- 0 (exact-ggn" in lines[0]
    file = (folder / "mlp0.safetensors").read_bytes()
    weights = [{"file": "mlp0.safetensors", "sha256": hashlib.sha256(file).hexdigest()}]
    assert json.loads(found.attrs["weights"]) == weights
    assert json.loads(found.attrs["model"]) == {"name": "mlp", "width": 2, "depth": 1}
    assert found.attrs["data_fingerprint"] == RAW.fingerprint()
    assert (found.attrs["batchnorm"], found.attrs["seed"], found.attrs["images"]) == ("eval", 0, IMAGES)
    assert {"torch", "numpy", "python"} <= json.loads(found.attrs["versions"]).keys()
    assert str(folder) not in json.dumps({k: str(v) for k, v in found.attrs.items()})


def test_a_density_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    found, lines = done(folder, tmp_path, "spectrum", "spectrum", "mlp0.safetensors", *MLP, "-k", 1, "--probes", 0)
    assert "density" not in found
    assert not (tmp_path / "out" / "density.pdf").exists()
    assert "undecided" not in lines[0]


def test_line_goes_where_its_directions_say(folder: Path, tmp_path: Path) -> None:
    names = ["gaussian", "gaussian:7", "gradient", "eigen+1", "eigen-1", "to-checkpoint", "to-checkpoint:2"]
    options = [part for name in names for part in ("--direction", name)]
    weights = ["mlp0.safetensors", "mlp1.safetensors", "mlp0-init.pt"]
    found, lines = done(
        folder, tmp_path, "line", "line", *weights, *MLP, *options, "--points", 5, "--range", -1, 1
    )
    batch = samples().head(IMAGES)
    here, there = state(folder, "mlp0"), state(folder, "mlp1")
    directions = json.loads(found.attrs["directions"])
    assert [d["scaling"] for d in directions] == ["model"] * 2 + ["none"] * 5
    assert [d["seed"] for d in directions][:2] == [0, 7]
    loss = found["loss"].sel({"lambda": 0}).values
    own = cross_entropy(here, *batch).item()
    # 1e-5: a mean in float64 of float32 losses against one in float32
    assert loss == pytest.approx([own] * 7, rel=1e-5)
    assert found["loss"].isel(direction=5).sel({"lambda": 1}).item() == pytest.approx(
        cross_entropy(there, *batch).item(), rel=1e-5
    )
    slope = found["loss"].isel(direction=2).sel({"lambda": [-0.5, 0.5]}).values
    assert slope[0] > slope[1]  # down the gradient
    assert directions[3]["details"]["eigenvalue"] > 0 > directions[4]["details"]["eigenvalue"]
    spread = F.cross_entropy(here(batch[0]), batch[1], reduction="none").std().item() / math.sqrt(IMAGES)
    assert found.attrs["center_loss_se"] == pytest.approx(spread, rel=1e-4)
    assert lines[0].startswith(f"loss {own:.4g} +- {spread:.2g} at lambda = 0; gaussian 0: ")
    shapes = json.loads(found.attrs["shapes"])
    assert len(shapes) == 7
    x, y = found["lambda"].values, found["loss"].values
    assert ["gmi" in shape for shape in shapes] == [True] * 2 + [False] * 5
    assert shapes[1]["gmi"] == bool((y[1, :2] >= y[1, 1:3]).all() and (y[1, 3:] >= y[1, 2:-1]).all())
    assert ["mli" in shape for shape in shapes] == [False] * 5 + [True] * 2
    back = y[6, x >= 0][::-1]  # from the initialisation to the model
    falls = -np.diff(back)
    assert shapes[6]["mli"] == bool((falls >= 0).all())
    margin = falls.min() if (falls >= 0).all() else (np.minimum.accumulate(back) - back).min()
    assert shapes[6]["mli_margin"] == pytest.approx(margin, rel=1e-12)
    told = "holds" if shapes[6]["mli"] else "does not hold"
    assert f"MLI {told} (margin {margin:.3g})" in lines[0]


def test_options_of_directions_reach_them(folder: Path, tmp_path: Path) -> None:
    options = ("--scaling", "filter", "--one-dimensional", "rescale", "--leave-out", "1.weight", "--points", 3)
    found, _ = done(folder, tmp_path, "line", "line", "mlp0.safetensors", *MLP, *options, "--part", "test")
    (direction,) = json.loads(found.attrs["directions"])
    assert (direction["scaling"], direction["one_dimensional"]) == ("filter", "rescale")
    kept = [p.norm() for name, p in state(folder, "mlp0").named_parameters() if "1.weight" not in name]
    assert direction["norm"] == pytest.approx(torch.stack(kept).norm().item(), rel=1e-5)
    assert found.attrs["part"] == "test"


def test_batchnorm_policies_give_what_they_say(folder: Path, tmp_path: Path) -> None:
    batch = samples().head(IMAGES)
    with torch.no_grad():
        expected = {"eval": cross_entropy(state(folder, "cnn0"), *batch).item()}
        expected["batch"] = expected["recalibrate"] = cross_entropy(state(folder, "cnn0").train(), *batch).item()
    for policy, loss in expected.items():
        options = ("--points", 3, "--batchnorm", policy)  # one batch holds all images
        found, _ = done(folder, tmp_path, "line", "line", "cnn0.safetensors", *CNN, *options)
        assert found.attrs["batchnorm"] == policy
        assert ("batch_size" in found.attrs) == (policy != "eval")
        # Running variances are unbiased, those of a batch are not: 1 in 60 images of 16 or 64 pixels.
        rel = 1e-2 if policy == "recalibrate" else 1e-5
        assert found["loss"].sel({"lambda": 0}).item() == pytest.approx(loss, rel=rel)


def test_surface_shows_the_way_of_a_training(folder: Path, tmp_path: Path) -> None:
    weights = ["mlp0.safetensors", "mlp0-init.pt", "mlp1.safetensors"]
    options = ("--direction", "pca", "--direction", "pca:2", "--grid", 5, 4)
    found, lines = done(folder, tmp_path, "surface", "surface", *weights, *MLP, *options)
    assert found["loss"].shape == (5, 4)
    assert {f"out/{name}.png" for name in ("surface", "surface_3d")} <= {line[8:] for line in lines}
    assert found.attrs["trajectory_share"] == pytest.approx(1, abs=1e-6)  # three points lie on a plane
    batch = samples().head(IMAGES)
    ends = [cross_entropy(state(folder, name), *batch).item() for name in ("mlp1", "mlp0")]
    assert found["trajectory_loss"].values[1:] == pytest.approx(ends, rel=1e-5)
    assert found["trajectory_plane_loss"].values[1:] == pytest.approx(ends, rel=1e-3)
    for axis in ("alpha", "beta"):
        way, shown = found[f"trajectory_{axis}"], found[axis]
        assert shown[0] < way.min()
        assert way.max() < shown[-1]
        assert way.values[-1] == pytest.approx(0, abs=1e-6)  # the model itself


def test_surface_of_gaussians_is_made_orthogonal_when_asked(folder: Path, tmp_path: Path) -> None:
    weights, options = "mlp0.safetensors", ("--grid", 3, 5, "--range", -0.5, 0.5, "--second-range", 0, 1)
    found, _ = done(folder, tmp_path, "surface", "surface", weights, *MLP, *options)
    assert found.attrs["cosine"] != 0
    assert (found["alpha"].values[[0, -1]].tolist(), found["beta"].values[[0, -1]].tolist()) == (
        [-0.5, 0.5],
        [0, 1],
    )
    found, _ = done(folder, tmp_path, "surface", "surface", weights, *MLP, *options, "--orthogonal")
    assert abs(found.attrs["cosine"]) < 1e-6


def test_a_mined_direction_is_kept_and_can_be_used(folder: Path, tmp_path: Path) -> None:
    options = ("--epochs", 3, "-k", 2, "--batch-size", 20)
    found, lines = done(folder, tmp_path, "mined", "mine", "mlp0-init.pt", *MLP, *options)
    assert found["loss"].dims == ("data", "direction", "lambda")
    assert found["data"].values.tolist() == ["mining", "held-out"]
    assert found.attrs["status"] in ("survives", "mining-only", "no-fall")
    assert found.sizes == {"data": 2, "direction": 1, "lambda": 41, "epoch": 3, "eigenvector": 4}
    named = safetensors.torch.load_file(tmp_path / "out" / "mined.safetensors")
    vector = torch.cat([named[name].flatten() for name, _ in network("mlp", 0).named_parameters()]).double()
    (direction,) = json.loads(found.attrs["directions"])
    assert direction["norm"] == pytest.approx(vector.norm().item(), rel=1e-6)
    assert found.attrs["status"] in lines[0]
    assert "lower than along the most negative eigenvector" in lines[0]
    again, _ = done(
        folder, tmp_path, "line", "line", "mlp0-init.pt", *MLP, "--direction", "file:out/mined.safetensors"
    )
    assert again["loss"].values[0] == pytest.approx(found["loss"].sel(data="mining").values[0], rel=1e-6)
    other, _ = done(
        folder,
        tmp_path,
        "line",
        "line",
        "mlp0-init.pt",
        *MLP,
        "--part",
        "test",
        "--direction",
        "file:out/mined.safetensors",
    )
    assert other["loss"].values[0] == pytest.approx(found["loss"].sel(data="held-out").values[0], rel=1e-6)


def test_a_vvv_basin_is_searched_from_a_fresh_model(folder: Path, tmp_path: Path) -> None:
    options = ("--algorithm", "vvv-basin", "--epochs", 1, "-k", 0, "--batchnorm", "batch", "--points", 4)
    found, _ = done(folder, tmp_path, "mined", "mine", "cnn0.safetensors", *CNN, *options)
    assert found["lambda"].values.tolist() == [-1, 0, 1, 2]
    assert found.attrs["status"] in ("survives", "mining-only", "no-shape")
    assert "cosine" not in found


def test_paths_have_the_models_at_their_ends(folder: Path, tmp_path: Path) -> None:
    weights = ["mlp0.safetensors", "mlp1.safetensors", "mlp2.safetensors"]
    options = ("--epochs", 2, "--points", 5, "--batch-size", 20)
    found, lines = done(folder, tmp_path, "connection", "connect", *weights, *MLP, *options)
    assert found["pair"].values.tolist() == ["1 - 2", "1 - 3", "2 - 3"]
    assert found["path"].values.tolist() == ["line", "bezier"]
    batch = samples().head(IMAGES)
    own = [cross_entropy(state(folder, f"mlp{i}"), *batch).item() for i in range(3)]
    for pair, (a, b) in zip(found["pair"].values, ((0, 1), (0, 2), (1, 2)), strict=True):
        for path in found["path"].values:
            ends = found["loss"].sel(pair=pair, path=path).values[[0, -1]]
            assert ends == pytest.approx([own[a], own[b]], rel=1e-5)
    thetas = [flat_parameters(state(folder, f"mlp{i}")) for i in range(2)]
    assert found["arc_length"].sel(pair="1 - 2", path="line").values[-1] == pytest.approx(
        (thetas[0] - thetas[1]).norm().item(), rel=1e-6
    )
    # [Yang2021] eq. 4 by hand
    error = found["error"].sel(pair="1 - 3", path="bezier").values
    deviation = (error[0] + error[-1]) / 2 - error[1:-1]
    mc = found["mode_connectivity"].sel(pair="1 - 3", path="bezier").item()
    if found["status"].sel(pair="1 - 3", path="bezier").item() == "ok":
        assert mc == pytest.approx(deviation[abs(deviation).argmax()])
    assert sum(line.startswith("models ") for line in lines) == 6


def test_connect_recalibrates_unless_told(folder: Path, tmp_path: Path) -> None:
    options = ("--epochs", 1, "--points", 3, "--kind", "chain", "--bends", 2)
    weights = ("cnn0.safetensors", "cnn1.safetensors")
    found, _ = done(folder, tmp_path, "connection", "connect", *weights, *CNN, *options)
    assert found.attrs["batchnorm"] == "recalibrate"
    assert found["path"].values.tolist() == ["line", "chain"]
    called = command.run(
        tmp_path, "connect", *(folder / w for w in weights), *CNN, *options, "--batchnorm", "eval"
    )
    assert "better recalibrate" in called.err
    assert called.code == 0


def test_a_plane_has_the_models_at_their_places_with_their_own_losses(folder: Path, tmp_path: Path) -> None:
    weights = [f"mlp{k}.safetensors" for k in range(3)]
    found, lines = done(folder, tmp_path, "plane", "plane", *weights, *MLP, "--grid", 5, 4, "--margin", 0.1)
    assert found["loss"].shape == found["error"].shape == (5, 4)
    assert {f"out/{name}.png" for name in ("plane", "plane_3d")} <= {line[8:] for line in lines}
    thetas = torch.stack([flat_parameters(state(folder, f"mlp{k}")) for k in range(3)]).double()
    places = torch.from_numpy(xr.concat([found["model_alpha"], found["model_beta"]], "axis").values.T.copy())
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(thetas, thetas))
    batch = samples().head(IMAGES)
    with torch.no_grad():
        losses_ = [
            F.cross_entropy(state(folder, f"mlp{k}")(batch[0]), batch[1], reduction="none") for k in range(3)
        ]
    own = [loss.mean().item() for loss in losses_]
    spread = [loss.std().item() / math.sqrt(IMAGES) for loss in losses_]
    # 1e-5: a mean in float64 of float32 losses against one in float32
    assert found["model_loss"].values == pytest.approx(own, rel=1e-5)
    assert found["model_loss_se"].values == pytest.approx(spread, rel=1e-4)
    assert (found.attrs["batchnorm"], found.attrs["kind"], found.attrs["curve"]) == (
        "recalibrate",
        "plane",
        "none",
    )
    header, *rows = [line.split("\t") for line in lines[:4]]
    assert header == ["model", "file", "alpha", "beta", "loss", "error"]
    assert [row[:2] for row in rows] == [[name, file] for name, file in zip("ABC", weights, strict=True)]
    assert rows[1][4] == f"{own[1]:.4g} +- {spread[1]:.2g}"


def test_the_bend_of_a_curve_is_left_for_the_plane_that_shows_it(folder: Path, tmp_path: Path) -> None:
    ends = ("cnn0.safetensors", "cnn1.safetensors")
    options = ("--epochs", 1, "--points", 3, "--batch-size", 20)
    connection, lines = done(folder, tmp_path, "connection", "connect", *ends, *CNN, *options)
    assert "bend: out/bend-1-2.safetensors" in lines
    curve = ("out/bend-1-2.safetensors", *CNN, "--curve", "bezier", "--grid", 3, 3, "--batch-size", 20)
    found, _ = done(folder, tmp_path, "plane", "plane", *ends, *curve)
    way = found[["curve_alpha", "curve_beta"]]
    bend = network("cnn", 0)
    bend.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / "bend-1-2.safetensors"))
    points = torch.stack(
        [flat_parameters(m).double() for m in (state(folder, "cnn0"), bend, state(folder, "cnn1"))]
    )
    middle = paths.bezier(points, 0.5) - points[0]
    distance = math.hypot(*(way.sel(t=0.5)[name].item() for name in way))
    assert distance == pytest.approx(middle.norm().item(), rel=1e-9)
    ends_of = connection["loss"].sel(path="line").values[0, [0, -1]]
    assert found["model_loss"].values[:2] == pytest.approx(
        ends_of, rel=1e-6
    )  # both recalibrated on the same images


def test_compare_tells_how_alike_models_are(folder: Path, tmp_path: Path) -> None:
    weights = ["mlp0.safetensors", "mlp1.safetensors", "mlp0.safetensors"]
    found, lines = done(folder, tmp_path, "comparison", "compare", *weights, *MLP)
    here, there = (state(folder, name) for name in ("mlp0", "mlp1"))
    inputs, targets = samples().head(IMAGES)
    distance = (flat_parameters(here) - flat_parameters(there)).norm().item()
    with torch.no_grad():
        outputs = [model(inputs) for model in (here, there)]
    different = 100 * (outputs[0].argmax(1) != outputs[1].argmax(1)).double().mean().item()
    first = found.sel(model=1, model_b=2)
    assert first["distance"].item() == pytest.approx(distance, rel=1e-6)
    assert first["disagreement"].item() == pytest.approx(different)
    same = found.sel(model=1, model_b=3)
    assert (same["distance"].item(), same["disagreement"].item()) == (0, 0)
    assert same["linear_barrier"].item() == pytest.approx(0, abs=1e-6)  # (1-t) w + t w is w up to rounding
    assert same["cka"].item() == pytest.approx(1)
    assert math.isnan(found["distance"].sel(model=2, model_b=1).item())
    error = 100 * (outputs[0].argmax(1) != targets).double().mean().item()
    assert found["error"].values[0] == pytest.approx(error)
    header, *rows = [line.split("\t") for line in lines[:4]]
    assert [header[0], *(row[0] for row in rows)] == ["models", "1 - 2", "1 - 3", "2 - 3"]


def test_weights_that_diverged_are_data(folder: Path, tmp_path: Path) -> None:
    for call in (["line", "--points", 3], ["spectrum", "-k", 1, "--probes", 1]):
        finished = command.run(tmp_path, call[0], folder / "nan.pt", *MLP, *call[1:])
        assert finished.code == 0, finished
        assert "nan" in finished.out.splitlines()[0]
        assert (tmp_path / "out" / f"{call[0]}.nc").is_file()


WRONG: list[tuple[list[Any], list[str]]] = [
    (["line", "corrupt.pt", *MLP], ["corrupt.pt", "damaged"]),
    (["line", "nowhere.pt", *MLP], ["nowhere.pt", "No such file"]),
    (["line", "mlp0.safetensors", *CNN], ["not those of this model", "missing", "unexpected"]),
    (
        ["spectrum", "mlp0.safetensors", *MLP, "--option", "width=3"],
        ["of another shape", "1.weight [2, 64] for [3, 64]"],
    ),
    (["spectrum", "mlp0.safetensors", *MLP, "--option", "widht=3"], ["widht", "Did you mean width?"]),
    (["spectrum", "mlp0.safetensors", *MLP, "--option", "width"], ["--option", "key=value"]),
    (
        ["line", "mlp0.safetensors", "--model", "mlp", "--data", "digits", "--out", "o"],
        ["width=NUMBER is missing"],
    ),
    (["line", "mlp0.safetensors", *MLP, "--model", "mpl"], ["'mpl' is unknown"]),
    (["line", "mlp0.safetensors", *MLP, "--data", "mnist"], ["'mnist' is unknown"]),
    (["line", "mlp0.safetensors", *MLP, "--loss", "builtins:dict"], ["Criterion"]),
    (["line", "mlp0.safetensors", *MLP, "--part", "valid"], ["--part 'valid'", "train, test"]),
    (["line", "mlp0.safetensors", *MLP, "--images", 99999], ["--images 99999", "1437"]),
    (
        ["line", "mlp0.safetensors", *MLP, "--dtype", "float16", "--batchnorm", "evl"],
        ["float16", "Did you mean eval?"],
    ),
    (["line", "mlp0.safetensors", *MLP, "--device", "tpu"], ["--device 'tpu'"]),
    (["line", "mlp0.safetensors", *MLP, "--direction", "north"], ["'north' is unknown", "gaussian", "eigen+N"]),
    (["line", "mlp0.safetensors", *MLP, "--direction", "eigen+0"], ["'eigen+0' is unknown"]),
    (["line", "mlp0.safetensors", *MLP, "--direction", "to-checkpoint"], ["1 or more WEIGHTS", "0 were given"]),
    (["line", "mlp0.safetensors", "mlp1.safetensors", *MLP, "--direction", "pca:2"], ["2 or more WEIGHTS"]),
    (["line", "mlp0.safetensors", *MLP, "--direction", "file:nothing.pt"], ["nothing.pt", "cannot be read"]),
    (["line", "mlp0.safetensors", *MLP, "--scaling", "both"], ["scaling='both'"]),
    (["line", "mlp0.safetensors", *MLP, "--range", 1, -1], ["finite a < b"]),
    (["surface", "mlp0.safetensors", *MLP, "--direction", "gaussian"], ["two directions"]),
    (["surface", "mlp0.safetensors", *MLP, "--direction", "gradient", "--direction", "gradient"], ["no plane"]),
    (["mine", "mlp0.safetensors", *MLP, "--algorithm", "x-peak"], ["x-peak", "w-peak and vvv-basin"]),
    (["mine", "mlp0.safetensors", *MLP, "--lr", -1], ["lr=-1"]),
    (["mine", "cnn0.safetensors", *CNN, "--batchnorm", "recalibrate"], ["recalibrate"]),
    (["connect", "mlp0.safetensors", *MLP], ["1 WEIGHTS", "2 or more"]),
    (["compare", "mlp0.safetensors", *MLP], ["1 WEIGHTS", "2 or more"]),
    (["connect", "mlp0.safetensors", "mlp1.safetensors", *MLP, "--kind", "arc"], ["--kind 'arc'"]),
    (["spectrum", "mlp0.safetensors", *MLP, "-k", 100], ["k=100"]),
    (["plane", "mlp0.safetensors", "mlp1.safetensors", *MLP], ["three WEIGHTS", "2 were given"]),
    (["plane", *["mlp0.safetensors"] * 4, *MLP], ["three WEIGHTS", "4 were given"]),
    (["plane", "mlp0.safetensors", "mlp1.safetensors", "mlp0.safetensors", *MLP], ["A and C are equal"]),
    (["plane", "mlp0.safetensors", "mlp1.safetensors", "nan.pt", *MLP], ["nan.pt hold 160 entries", "not finite"]),
    (["plane", *[f"mlp{k}.safetensors" for k in range(3)], *MLP, "--curve", "arc"], ["--curve 'arc'", "bezier"]),
    (["plane", *[f"mlp{k}.safetensors" for k in range(3)], *MLP, "--grid", 1, 3], ["No grid", "2 points or more"]),
    (["plane", "mlp0.safetensors", "mlp1.safetensors", "cnn2.safetensors", *MLP], ["cnn2", "not those of this"]),
]


@pytest.mark.parametrize(("call", "words"), WRONG, ids=[" ".join(words) for _, words in WRONG])
def test_mistakes_are_refused(call: list[Any], words: list[str], folder: Path, tmp_path: Path) -> None:
    refused(command.run(tmp_path, *located(folder, call)), *words)
    assert not list(tmp_path.rglob("*.nc"))


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    finished = command.run(tmp_path, "spectrum", folder / "mlp0.safetensors", *MLP, obeys=True)
    refused(finished, "out", "permission denied")


def test_a_broken_off_slice_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = Target(
        weights=[folder / "mlp0.safetensors"],
        model="mlp",
        option=["width=2"],
        data="digits",
        images=IMAGES,
        device="cpu",
        out=tmp_path,
    )
    arguments: dict[str, Any] = {
        "directions": ["gaussian"],
        "scale": Scale(None, None, None, 1e-3, 100),
        "extent": (-1.0, 1.0),
        "points": 11,
        "tolerance": 0.0,
    }
    keep = Partial.keep

    def until_the_fifth(self: Partial, *point: Any) -> None:
        keep(self, *point)
        if len(self.done) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Partial, "keep", until_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            local_running.line(target, **arguments)
    assert not (tmp_path / "line.nc").exists()
    computed = []

    def counted(self: Partial, *point: Any) -> None:
        computed.append(point)
        keep(self, *point)

    monkeypatch.setattr(Partial, "keep", counted)
    local_running.line(target, **arguments)
    assert len(computed) == 6
    assert "5 points were finished before" in capfd.readouterr().err
    resumed = local_results.load(tmp_path / "line.nc")
    assert [path.name for path in tmp_path.glob(".*")] == []
    local_running.line(target, **arguments)
    xr.testing.assert_identical(local_results.load(tmp_path / "line.nc"), resumed)
    assert len(computed) == 6 + 11


def test_a_broken_off_plane_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [folder / f"mlp{k}.safetensors" for k in range(3)]
    target = Target(
        weights=weights, model="mlp", option=["width=2"], data="digits", images=IMAGES, device="cpu", out=tmp_path
    )
    keep, computed = Partial.keep, []

    def until_the_fifth(self: Partial, *point: Any) -> None:
        keep(self, *point)
        computed.append(point)
        if len(computed) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Partial, "keep", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        plane_running.plane(target, margin=0.2, grid=(3, 4), curve=None)
    assert not (tmp_path / "plane.nc").exists()
    plane_running.plane(target, margin=0.2, grid=(3, 4), curve=None)
    assert len(computed) == 12
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_points_of_other_work_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "partial.json"
    kept = Partial(path, ["a", (1, 2)])
    kept.keep((0, 1), {"loss": 0.1, "error": math.inf})
    kept.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert Partial(path, ["a", [1, 2]]).done == {(0, 1): {"loss": 0.1, "error": math.inf}}
    assert Partial(path, ["b", [1, 2]]).done == {}
    path.write_bytes(path.read_bytes()[:-5])
    assert Partial(path, ["a", (1, 2)]).done == {}


@pytest.mark.parametrize("name", ["spectrum", "line", "surface", "mine", "connect", "compare", "plane"])
def test_help_loads_no_torch(name: str, tmp_path: Path) -> None:
    loaded, printed = command.modules_loaded([name, "--help"], ("torch", "sklearn", "matplotlib"), tmp_path)
    assert loaded == []
    assert "WEIGHTS" in printed
    assert "--batchnorm" in printed
