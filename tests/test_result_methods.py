"""Every result: a dataset that a file gives back bit for bit, one line with its number and error, a figure."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import lossatlas as la
from lossatlas import landscape, local_results, probe_results
from lossatlas.errors import FileError, UserError
from lossatlas.landscape import angles, density, expansion, mining_checks, planes
from lossatlas.landscape.result import Result, with_error
from test_figures import by_gid

# What functions return and is no result, but what other functions take, or a part of one.
OTHERS = {
    "adapters.FunctionOperator",
    "criterion.Criterion",
    "directions.Direction",
    "linearity.Linearity",
    "operators.MatrixOperator",
    "parameters.Layout",
    "shapes.Stationary",
}
# The gid of something that each figure has to draw; what is not here holds single numbers.
DRAWN = {
    "angles.Comparison": "gaussians",
    "curve_fitting.CurveFit": "search",
    "density.Density": "density",
    "density.Histogram": "density",
    "density.SmoothDensity": "density",
    "expansion.Expansion": "quadratic",
    "expansion.LocalPieces": "piece",
    "expansion.SampledChanges": "changes",
    "lanczos.Eigenpairs": "eigenvalue-converged",
    "mining.MinedDirection": "search",
    "mining_checks.Alignment": "cosine",
    "mining_checks.Comparison": "curve",
    "mining_checks.Survival": "curve",
    "paths.PathValues": "band",
    "planes.Plane": "loss",
    "slices.Curve": "curve",
    "slices.Surface": "loss",
    "trajectories.Trajectory": "trajectory",
}


def name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("lossatlas.landscape.")


def mentioned(annotation: Any) -> Iterator[type]:
    """The classes in an annotation, as in list[Direction] | None."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from mentioned(part)


def returned() -> dict[str, type]:
    """The dataclasses that public functions of the landscape and methods of its results return, by name."""
    names = [f"{landscape.__name__}.{module.name}" for module in pkgutil.iter_modules(landscape.__path__)]
    functions = [
        value
        for module in map(importlib.import_module, names)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    hints = [typing.get_type_hints(function).get("return") for function in functions]
    found = {kind for hint in hints for kind in mentioned(hint)}
    found |= set(Result.__subclasses__()) | {k for r in Result.__subclasses__() for k in r.__subclasses__()}
    return {name_of(kind): kind for kind in found if dataclasses.is_dataclass(kind) and kind.__name__[0] != "_"}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture(scope="module")
def objective() -> la.Objective:
    with torch.random.fork_rng(devices=[]):
        model = network(0)
        data = [(torch.randn(30, 4), torch.randint(3, (30,)))]
        return la.Objective(model.double(), [(data[0][0].double(), data[0][1])], la.supervised(F.cross_entropy))


@pytest.fixture(scope="module")
def results(objective: la.Objective) -> dict[str, Result]:
    """One of each, as the public functions return them."""
    center, operator = objective.center, la.hessian(objective)
    first, second = (la.gaussian(objective, seed=k) for k in range(2))
    pairs = la.eigenpairs(operator, 2, which="both", seed=0)
    mined = la.mine_w_peak(objective, lambda _e: objective.batches(), epochs=2, seed=0)
    far, near = center + first.vector, center + second.vector
    with torch.random.fork_rng(devices=[]):
        fit = la.curve_fitting.fit(
            network(0).double(),
            (center, far),
            lambda _e: objective.batches(),
            lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            epochs=2,
            seed=0,
        )
    along = la.paths.evaluate(objective, fit.points, [0, 0.25, 0.5, 1])
    losses = along.values["loss"]
    curve = la.line(objective, first, points=5, classes=3)
    plane = la.surface(objective, first, second, grid=(5, 5))
    slq = la.density(operator, probes=3, steps=6, seed=0)
    found = [
        pairs,
        la.trace(objective, seed=0),
        la.trace_of_square(operator, seed=0),
        slq,
        slq.histogram(5),
        slq.smoothed(),
        curve,
        plane,
        planes.plane(objective, center, far, near, grid=(4, 4)),
        la.project(objective, [far, near, center], first, second),
        la.curve_shape(curve.positions, curve.values["loss"][0]),
        la.gmi(curve.positions, curve.values["loss"][0]),
        la.surface_shape(plane.alphas, plane.betas, plane.values["loss"]),
        la.angle(first.vector, second.vector),
        la.against_gaussians(objective, first, distance=0.1, count=8),
        mined,
        la.alignment(mined.vector, pairs),
        la.survives(objective, objective, mined.vector, [-1, -0.5, 0, 0.5, 1]),
        mining_checks.compare(objective, first.vector, second.vector, [0.5, 1.0]),
        la.expand(objective, first.vector),
        la.local_pieces(objective, first.vector, [-1.0, 0.0, 1.0]),
        la.gaussian_change(0.1, gradient_norm=0.2, trace=3.0, trace_of_square=4.0),
        la.sample_changes(objective, seed=0, draws=9),
        fit,
        along,
        la.paths.summary(along.ts, losses, along.positions),
        la.paths.connectivity(losses, along.ts, samples=along.samples["loss"]),
        la.similarity.agreement(torch.eye(3), torch.eye(3)),
    ]
    return {name_of(type(result)): result for result in found}


NAMES = sorted(local_results.MAKERS)


def pixels(figure: Figure) -> np.ndarray[Any, Any]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def assert_same_bits(first: xr.Dataset, second: xr.Dataset) -> None:
    xr.testing.assert_identical(first, second)  # names, dimensions, attributes, values
    for name, array in first.variables.items():
        if array.dtype.kind in "fi":
            assert second[name].dtype == array.dtype
            assert second[name].values.tobytes() == array.values.tobytes()  # -0 and NaN as well


def test_whatever_a_function_returns_is_a_result_with_a_dataset(results: dict[str, Result]) -> None:
    of_results = {name for name, kind in returned().items() if issubclass(kind, Result)}
    assert of_results == set(NAMES) == set(results)
    assert set(returned()) - of_results == OTHERS
    assert set(DRAWN) < of_results


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_back_the_dataset_bit_for_bit(name: str, results: dict[str, Result], tmp_path: Path) -> None:
    dataset = results[name].to_dataset()
    for variable in dataset.data_vars.values():
        assert {"units", "long_name", "estimator"} <= variable.attrs.keys()
        assert variable.attrs["units"]
    assert_same_bits(la.to_dataset(results[name]), dataset)
    written = results[name].save(str(tmp_path / "a.nc"), attrs={"model": {"width": 5}, "seed_of_mine": 7})
    assert_same_bits(dataset, written.drop_attrs(deep=False).assign_attrs(dataset.attrs))
    read = la.load(tmp_path / "a.nc")
    assert_same_bits(written, read)
    assert (read.attrs["model"], read.attrs["seed_of_mine"]) == ('{"width": 5}', 7)
    la.save(read, tmp_path / "b.nc")
    assert_same_bits(read, la.load(str(tmp_path / "b.nc")))


# What the line has to hold: the headline number, with its error where there is one.
HEADLINES: dict[str, Callable[[Any], str]] = {
    "angles.Angle": lambda r: f"{r.degrees:.4g} degrees",
    "angles.Comparison": lambda r: f"loss {r.value:.4g}",
    "curve_fitting.CurveFit": lambda r: f"{r.losses[-1]:.4g}",
    "density.Density": lambda r: with_error(r.signs().negative.value, r.signs().negative.stderr) + " below 0",
    "density.Histogram": lambda r: with_error(r.share.max().item(), r.stderr[r.share.argmax()].item()),
    "density.SmoothDensity": lambda r: with_error(r.density.max().item(), r.stderr[r.density.argmax()].item()),
    "estimate.Estimate": lambda r: with_error(r.value, r.stderr),
    "expansion.ChangeMoments": lambda r: f"{r.mean:.4g}, standard deviation {r.variance**0.5:.4g}",
    "expansion.Expansion": lambda r: f"curvature {r.curvature:.4g}",
    "expansion.LocalPieces": lambda r: f"to {max(e.curvature for e in r.expansions):.4g}",
    "expansion.SampledChanges": lambda r: with_error(r.means[1].value, r.means[1].stderr) + " at 0.01",
    "hutchinson.TraceEstimate": lambda r: with_error(r.value, r.stderr),
    "lanczos.Eigenpairs": lambda r: f"{r.eigenvalues[0]:.4g} (residual {r.residuals[0]:.2g})",
    "mining.MinedDirection": lambda r: f"{r.losses[-1]:.4g}",
    "mining_checks.Alignment": lambda r: f"projection {r.projection:.4g}",
    "mining_checks.Comparison": lambda r: with_error(r.advantage.value, r.advantage.stderr),
    "mining_checks.Survival": lambda r: with_error(r.held_out_fall.right.value, r.held_out_fall.right.stderr),
    "moments.TraceOfSquare": lambda r: with_error(r.value, r.stderr),
    "paths.Connectivity": lambda r: with_error(r.value, r.stderr),
    "paths.PathSummary": lambda r: f"barrier {r.barrier:.4g}",
    "paths.PathValues": lambda r: f"loss {r.values['loss'].min():.4g}",
    "planes.Plane": lambda r: with_error(r.values["loss"][0].item(), r.stderrs["loss"][0].item()),
    "shapes.CurveShape": lambda r: f"{r.kind}, {r.count} stationary",
    "shapes.Monotony": lambda r: f"margin {r.margin:.4g}",
    "slices.Curve": lambda r: f"loss {r.center['loss']:.4g}",
    "slices.Surface": lambda r: f"loss {r.center['loss']:.4g}",
    "surface_shapes.SurfaceShape": lambda r: with_error(r.eigenvalues[0], r.stderr[0]),
    "trajectories.Trajectory": lambda r: f"{100 * r.share:.4g}%",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_repr_is_one_line_with_the_headline_number_and_its_error(
    name: str, results: dict[str, Result]
) -> None:
    text = repr(results[name])
    assert text.startswith(f"{name.rpartition('.')[2]}(")
    assert text.endswith(")")
    assert HEADLINES[name](results[name]) in text
    assert len(text) < 160
    assert not {"\n", "tensor", "array"} & {part for part in ("\n", "tensor", "array") if part in text}


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_of_the_file_is_that_of_the_object(
    name: str, results: dict[str, Result], tmp_path: Path
) -> None:
    result = results[name]
    if name not in DRAWN:
        with pytest.raises(UserError, match=rf"A {name.rpartition('.')[2]} holds single numbers"):
            result.plot()
        return
    figure = result.plot()
    assert isinstance(figure, Figure)
    assert by_gid(figure, DRAWN[name])
    result.save(tmp_path / "a.nc")
    again = la.figures.plot(la.load(tmp_path / "a.nc"))
    drawn = pixels(figure)
    np.testing.assert_array_equal(drawn, pixels(again))
    assert len(np.unique(drawn)) > 10  # not an empty sheet


def test_numbers_lie_where_they_belong(results: dict[str, Result]) -> None:
    changes: Any = results["expansion.SampledChanges"]
    dataset = changes.to_dataset()
    np.testing.assert_array_equal(dataset["change"].sel(scale=0.01), changes.changes[1])
    np.testing.assert_allclose(dataset["change_mean"], dataset["change"].mean("draw"), rtol=1e-12)
    spread = dataset["change"].std("draw", ddof=1)
    np.testing.assert_allclose(dataset["change_variance"], spread**2, rtol=1e-12)
    np.testing.assert_allclose(dataset["change_mean_se"], spread / 3, rtol=1e-12)  # nine draws
    pieces: Any = results["expansion.LocalPieces"]
    dataset = pieces.to_dataset()
    x = dataset["piece_lambda"] - dataset["piece_center"]
    quadratic = x * dataset["piece_slope"] + x**2 / 2 * dataset["piece_curvature"]
    middle = dataset["piece_loss"].isel(offset=5)
    np.testing.assert_allclose(dataset["piece_loss"] - middle, quadratic, atol=1e-12)  # rounding of a loss of 1
    path: Any = results["paths.PathValues"]
    dataset = path.to_dataset()
    samples = path.samples["loss"]
    np.testing.assert_allclose(dataset["loss_se"], samples.std(1) / math.sqrt(30), rtol=1e-12)
    survival = results["mining_checks.Survival"].to_dataset()
    origin = survival["loss"].sel({"lambda": 0.0})
    lowest = [survival["loss"].sel({"lambda": survival["fall_lambda"].sel(side=s)}) for s in ("left", "right")]
    for side, there in zip(("left", "right"), lowest, strict=True):
        np.testing.assert_allclose(survival["fall"].sel(side=side), origin - there, atol=1e-12)
    rivals = results["mining_checks.Comparison"].to_dataset()
    at_one = rivals["loss"].sel({"lambda": [-1.0, 1.0]}).mean("lambda")
    np.testing.assert_allclose(rivals["advantage"], at_one[1] - at_one[0], atol=1e-12)
    square: Any = results["moments.TraceOfSquare"]
    assert square.to_dataset()["trace_of_square"] == square.value
    assert "trace" not in square.to_dataset()


def assert_drawn_alike(dataset: xr.Dataset, gid: str, path: Path) -> Figure:
    figure = la.figures.plot(dataset)
    assert by_gid(figure, gid)
    la.save(dataset, path)
    np.testing.assert_array_equal(pixels(figure), pixels(la.figures.plot(la.load(path))))
    return figure


def test_datasets_that_belong_together_merge_into_the_figures_of_the_paper(
    results: dict[str, Result], objective: la.Objective, tmp_path: Path
) -> None:
    path = tmp_path / "both.nc"

    def merged(*names: str) -> xr.Dataset:
        return xr.merge([results[name].to_dataset() for name in names], combine_attrs="no_conflicts")

    figure = assert_drawn_alike(merged("slices.Curve", "expansion.LocalPieces"), "piece", path)  # Fig. 14
    assert by_gid(figure, "curve")
    assert figure.axes[0].get_title().startswith("GMI")
    figure = assert_drawn_alike(merged("mining_checks.Survival", "mining_checks.Alignment"), "cosine", path)  # 9
    assert len(by_gid(figure, "curve")) == 2
    figure = assert_drawn_alike(merged("slices.Surface", "trajectories.Trajectory"), "trajectory", path)
    assert "trajectory's variance" in figure.axes[0].get_title()
    along = la.gaussian(objective, seed=9)
    found = [angles.against_gaussians(objective, along, distance=d, count=4) for d in (0.1, 0.01)]
    both = xr.concat([c.to_dataset() for c in found], "distance").assign_attrs(name=along.name)
    figure = assert_drawn_alike(both, "direction", path)  # Fig. 6
    (line,) = by_gid(figure, "direction")
    np.testing.assert_array_equal(line.get_ydata(), [c.value for c in found])


def test_measured_changes_stand_beside_their_law(results: dict[str, Result], tmp_path: Path) -> None:
    changes: Any = results["expansion.SampledChanges"]
    laws = [
        expansion.gaussian_change(lam, gradient_norm=0.5, trace=3.0, trace_of_square=4.0)
        for lam in changes.lambdas
    ]
    assert not by_gid(changes.plot(), "law")
    dataset = probe_results.beside_law(changes, laws)
    figure = assert_drawn_alike(dataset, "law", tmp_path / "changes.nc")
    means = [line.get_xdata()[0] for line in by_gid(figure, "predicted-mean")]
    np.testing.assert_array_equal(means, [law.mean for law in laws])
    with pytest.raises(UserError, match="1 laws were given for 2 scales"):
        probe_results.beside_law(changes, laws[:1])


def test_what_failed_is_told_saved_and_not_drawn(objective: la.Objective, tmp_path: Path) -> None:
    collapsed = la.paths.connectivity([90.0, 5.0, 2.0], [0, 0.5, 1], guessing=90)
    broken = la.expand(objective, torch.full_like(objective.center, 1e300))
    operator = la.from_matrix(torch.full((4, 4), math.nan, dtype=torch.float64))
    pairs, slq = la.eigenpairs(operator, 1, seed=0), la.density(operator, probes=1, steps=2, seed=0)
    shape = la.curve_shape([-1.0, 0.0, 1.0], [1.0, math.nan, 1.0])
    for result, words in (
        (collapsed, "collapsed"),
        (broken, "non-finite: not finite: "),
        (pairs, "0 of 1 converged"),
        (slq, "non-finite: product 1"),
        (shape, "1 of 3 values are not finite"),
    ):
        assert words in repr(result)
        written = result.save(tmp_path / "a.nc")
        assert_same_bits(written, la.load(tmp_path / "a.nc"))
    with pytest.raises(UserError, match="The expansion has no figure: not finite: "):
        broken.plot()
    with pytest.raises(UserError, match="no mass"):
        slq.plot()


def test_saving_says_what_is_wrong(results: dict[str, Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        results["estimate.Estimate"].save(tmp_path / "file" / "a.nc")
    impostor = dataclasses.make_dataclass("Curve", [("positions", int)])
    with pytest.raises(UserError, match=r"A Curve has no dataset. Allowed are Eigenpairs, .*Estimate\."):
        la.to_dataset(impostor(3))


def test_parts_of_results_are_told_in_a_line_as_well(objective: la.Objective) -> None:
    along = la.gaussian(objective, seed=0)
    assert repr(along) == f"Direction(gaussian 0: length {along.norm:.4g}, {along.relative:.4g} ||theta||)"
    found = la.density(la.from_matrix(torch.eye(2)), probes=1, steps=1, seed=0)
    assert isinstance(found.mass_below(0), density.Mass)
