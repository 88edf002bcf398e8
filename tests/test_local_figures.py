"""The figures of single models: what is drawn and where, not which pixels are set."""

import json
import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.colors import LogNorm, to_rgba
from scipy.integrate import trapezoid

from lossatlas import figures
from lossatlas.errors import UserError
from lossatlas.figures.curves import relative_lengths
from lossatlas.landscape.angles import log_density
from lossatlas.landscape.lanczos import eigenpairs
from lossatlas.landscape.operators import from_matrix
from lossatlas.landscape.slices import Curve
from lossatlas.landscape.surface_shapes import surface_shape
from lossatlas.landscape.trajectories import Trajectory
from test_figures import by_gid, drawn, legend_texts

LN_10 = math.log(10)
X = np.linspace(-1.0, 1.0, 41)
W_PEAK = 1.5 + 4 * X**4 - 2 * X**2  # valleys at +-0.5, the model on the peak between them


def info(name, relative, norm=3.0):
    return {"name": name, "norm": norm, "relative": relative}


def make_curve(*losses, x=X, names=None, lengths=None, **attrs):
    """A curve dataset in the layout of `slice_results`; the error is a multiple of the loss."""
    y = np.array([np.asarray(loss, dtype=float) for loss in losses])
    names = names or [f"d{k}" for k in range(len(y))]
    lengths = np.array(lengths or [0.5] * len(y))
    middle = int(np.abs(x).argmin())
    center = {"loss": y[0, middle], "error": 20 * y[0, middle]}
    dims = ("direction", "lambda")
    return xr.Dataset(
        {
            "loss": (dims, y, {"units": "nat"}),
            "error": (dims, 20 * y, {"units": "%"}),
            "distance": (dims, lengths[:, None] * np.abs(x)),
        },
        coords={"direction": names, "lambda": x},
        attrs={
            "slice": "curve",
            "directions": json.dumps([info(n, r) for n, r in zip(names, lengths, strict=True)]),
            "center": json.dumps(center),
            "checkpoint": json.dumps(center),
            "guessing": LN_10,
        }
        | attrs,
    )


def make_surface(z, *, a=None, b=None, lengths=(0.5, 0.5), **attrs):
    z = np.asarray(z, dtype=float)
    a = np.linspace(-1, 1, z.shape[0]) if a is None else a
    b = np.linspace(-1, 1, z.shape[1]) if b is None else b
    return xr.Dataset(
        {"loss": (("alpha", "beta"), z, {"units": "nat"})},
        coords={"alpha": a, "beta": b},
        attrs={
            "slice": "surface",
            "directions": json.dumps([info("first", lengths[0], 2.0), info("second", lengths[1], 4.0)]),
            "center": json.dumps({"loss": z[z.shape[0] // 2, z.shape[1] // 2]}),
            "guessing": LN_10,
            "cosine": 0.0,
        }
        | attrs,
    )


def saddle(points=9, other=7):
    a, b = np.meshgrid(np.linspace(-1, 1, points), np.linspace(-1, 1, other), indexing="ij")
    return make_surface(2.0 + 3 * a**2 - b**2 + 0.1 * a)


def title(figure, pane=0):
    return figure.axes[pane].get_title()


# ---- line


def test_line_draws_loss_and_error_of_every_direction():
    data = make_curve(W_PEAK, 1 + X**2)
    figure = drawn(figures.line(data.transpose("lambda", "direction")))
    top, bottom = figure.axes
    for axes, name in ((top, "loss"), (bottom, "error")):
        lines = [line for line in axes.lines if line.get_gid() == "curve"]
        np.testing.assert_array_equal([line.get_ydata() for line in lines], data[name].values)
        np.testing.assert_array_equal(lines[0].get_xdata(), X)
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("Loss (nat)", "Error (%)")
    assert legend_texts(figure)[:2] == ["d0", "d1"]
    assert len(drawn(figures.line(data.drop_vars("error"))).axes) == 1


def test_the_title_of_one_curve_has_its_class_and_counts():
    split = figures.line(make_curve(W_PEAK + 1.0))  # the peak at 2.5, the valleys at 2.25, ln 10 between them
    assert title(split) == "w-peak, 3 stationary points (2 below ln C, 1 above)"
    assert title(figures.line(make_curve(X + 2, guessing=math.nan))) == "v-side, 0 stationary points"
    assert title(figures.line(make_curve(1 + X**2, guessing=math.nan))) == "v-basin, 1 stationary point"


def test_the_title_of_several_curves_has_their_classes_and_the_mean_count():
    broken = np.where(X > 0.9, np.inf, W_PEAK)
    figure = figures.line(make_curve(W_PEAK, 1 + X**2, 2 + X**2, broken))
    assert (
        title(figure) == "2 v-basin, 1 w-peak, 1 not finite; 1.7 stationary points on average"
    )  # (3 + 1 + 1) / 3


def test_the_tolerance_counts():
    ripple = 1 + X**2 + 0.02 * np.cos(40 * X)
    assert title(figures.line(make_curve(ripple, guessing=math.nan))).startswith("other")
    assert title(figures.line(make_curve(ripple, guessing=math.nan), tolerance=0.1)).startswith("v-basin, 1")
    kept = make_curve(ripple, guessing=math.nan).assign_attrs(tolerance=0.1)  # as `lossatlas line` writes it
    assert title(figures.line(kept)).startswith("v-basin, 1")
    assert title(figures.line(kept, tolerance=0.0)) == title(figures.line(make_curve(ripple, guessing=math.nan)))


def test_a_value_that_is_not_finite_is_marked_and_breaks_its_line():
    loss = 1 + X**2
    loss[[3, 30]] = np.nan, np.inf
    figure = drawn(figures.line(make_curve(1 + X**2, loss)))
    curve = [line for line in figure.axes[0].lines if line.get_gid() == "curve"][1]
    np.testing.assert_array_equal(np.isnan(curve.get_ydata()), np.isin(np.arange(41), [3, 30]))
    crosses = [line for line in figure.axes[0].lines if line.get_gid() == "non-finite"]
    assert [list(line.get_xdata()) for line in crosses] == [[X[3], X[30]]]
    assert crosses[0].get_color() == curve.get_color()
    assert "not finite" in legend_texts(figure)


def test_a_curve_without_any_finite_value_is_drawn():
    figure = drawn(figures.line(make_curve(np.full(41, np.nan))))
    assert title(figure) == "No class: 41 of 41 values are not finite"


def test_random_guessing_is_a_level_of_loss_and_error():
    figure = figures.line(make_curve(2 + X**2))
    levels = [line.get_ydata()[0] for line in by_gid(figure, "guessing")]
    np.testing.assert_allclose(levels, [LN_10, 90.0], rtol=1e-12)
    assert by_gid(figures.line(make_curve(2 + X**2, guessing=math.nan)), "guessing") == []


@pytest.mark.parametrize(("loss", "arrow", "up"), [(0.03 + 0.01 * X**2, "↑", True), (9 + 0.01 * X**2, "↓", False)])
def test_a_level_far_away_is_told_at_the_rim_and_does_not_flatten_the_curve(loss, arrow, up):
    data = make_curve(loss).drop_vars("error")
    figure = drawn(figures.line(data))
    (text,) = by_gid(figure, "guessing")
    assert text.get_text() == f"random guessing 2.3 nat {arrow}"
    assert (text.get_position()[1] > 0.5) is up
    low, high = figure.axes[0].get_ylim()
    assert high - low < 2 * np.ptp(loss)


def test_the_model_is_marked_twice_where_the_policies_differ():
    data = make_curve(2 + X**2)
    figure = figures.line(data)
    assert [line.get_xydata().tolist() for line in by_gid(figure, "centre")] == [[[0, 2.0]], [[0, 40.0]]]
    assert by_gid(figure, "checkpoint") == []
    data.attrs["checkpoint"] = json.dumps({"loss": 1.5, "error": 40.0})
    figure = figures.line(data)
    assert [line.get_xydata().tolist() for line in by_gid(figure, "checkpoint")] == [[[0, 1.5]]]


def test_the_upper_axis_is_the_distance_of_directions_of_one_length():
    data = make_curve(2 + X**2, W_PEAK, lengths=[0.25, 0.25])
    figure = drawn(figures.line(data))
    (upper,) = [axes for axes in figure.axes[0].child_axes if axes.get_gid() == "distance"]
    assert upper.get_xlim() == (-0.25, 0.25)
    assert legend_texts(figure)[:2] == ["d0", "d1"]


def test_directions_of_different_lengths_have_theirs_in_the_legend():
    data = make_curve(2 + X**2, W_PEAK, lengths=[0.25, 1.5])
    np.testing.assert_allclose(relative_lengths(data), [0.25, 1.5])
    figure = drawn(figures.line(data))
    assert figure.axes[0].child_axes == []
    assert legend_texts(figure)[:2] == ["d0 (0.25 ‖θ‖)", "d1 (1.5 ‖θ‖)"]


def test_a_loss_over_decades_is_logarithmic():
    steep = make_curve(0.01 + 9 * X**2)
    assert figures.line(steep).axes[0].get_yscale() == "log"
    assert figures.line(steep, scale="linear").axes[0].get_yscale() == "linear"
    assert figures.line(make_curve(1 + X**2)).axes[0].get_yscale() == "linear"
    assert figures.line(make_curve(X**2)).axes[0].get_yscale() == "linear"  # 0 has no logarithm
    with pytest.raises(UserError, match="positive throughout"):
        figures.line(make_curve(X**2), scale="log")


def test_a_grid_without_the_model_has_no_class():
    figure = figures.line(make_curve(1 + X**2, x=X + 0.02))
    assert title(figure) == "the model lies off the grid"


def test_line_refuses_another_dataset():
    with pytest.raises(UserError, match=r"over \(direction, lambda\); this dataset has loss \('alpha', 'beta'\)"):
        figures.line(saddle())


# ---- lines


def test_lines_are_panels_with_their_own_classes():
    names = ["Gau. 1", "Gau. 2"]
    first = make_curve(W_PEAK, 1 + X**2, names=names)
    rows = [{"a": first, "b": make_curve(2 + X**2, 3 + X, names=names)}, {"c": first}]
    figure = drawn(figures.lines(rows))
    shown = {axes.get_gid(): axes for axes in figure.axes if axes.get_visible()}
    assert list(shown) == ["a", "b", "c"]
    assert shown["a"].get_title() == "a\nGau. 1: w-peak, 3 stationary points\nGau. 2: v-basin, 1 stationary point"
    assert shown["b"].get_title() == "b\nGau. 1: v-basin, 1 stationary point\nGau. 2: v-side, 0 stationary points"
    curves = [line.get_ydata() for line in shown["b"].lines if line.get_gid() == "curve"]
    np.testing.assert_array_equal(curves, [2 + X**2, 3 + X])
    assert legend_texts(figure)[:2] == names
    assert all(axes.get_legend() is None for axes in shown.values())


def test_lines_of_the_same_names_share_a_legend_without_lengths():
    row = {f"{k}": make_curve(W_PEAK, 1 + X**2, lengths=[0.1, 0.1 * k]) for k in (2, 3)}
    assert legend_texts(drawn(figures.lines([row])))[:3] == ["d0", "d1", "random guessing"]


def test_lines_of_other_directions_have_their_names_in_their_panel():
    rows = [{"five": make_curve(*[1 + X**2] * 4, W_PEAK), "one": make_curve(W_PEAK, names=["Mine"])}]
    figure = drawn(figures.lines(rows))
    five, one = figure.axes
    assert five.get_title() == "five\n4 v-basin, 1 w-peak\n1.4 stationary points on average"
    assert one.get_title() == "one\nw-peak, 3 stationary points"
    assert [text.get_text() for text in five.get_legend().get_texts()] == [f"d{k}" for k in range(5)]
    assert one.get_legend() is None
    assert set(legend_texts(figure)) == {"model", "random guessing"}


# ---- surfaces


def test_surface_contours_have_alpha_rightwards_and_levels_from_end_to_end():
    data = saddle()
    figure = drawn(figures.surface(data.transpose("beta", "alpha")))
    (filled,) = by_gid(figure, "loss")
    assert not isinstance(filled.norm, LogNorm)
    z = data["loss"].values
    assert (filled.levels[0], filled.levels[-1]) == (z.min(), z.max())
    everything = filled.get_paths()[0].vertices  # the lowest level: at the ends of beta, in the middle of alpha
    assert np.abs(everything[:, 0]).max() < 0.5
    assert np.abs(everything[:, 1]).min() > 0.5
    (dot,) = by_gid(figure, "centre")
    assert dot.get_xydata().tolist() == [[0, 0]]
    a, b = data["alpha"].values[:, None], data["beta"].values
    (filled,) = by_gid(figures.surface(make_surface(2 + a - 0.1 * b)), "loss")  # neither end for the other
    lowest, highest = filled.get_paths()[0].vertices, filled.get_paths()[-1].vertices
    np.testing.assert_array_equal([lowest[:, 0].min(), highest[:, 0].max()], [-1, 1])
    np.testing.assert_array_equal([lowest[:, 1].max(), highest[:, 1].min()], [1, -1])


def test_surface_levels_are_logarithmic_over_a_wide_range():
    data = saddle()
    data["loss"] = np.exp(2 * data["loss"] - 3)
    (filled,) = by_gid(drawn(figures.surface(data)), "loss")
    assert isinstance(filled.norm, LogNorm)
    np.testing.assert_allclose(np.diff(np.log(filled.levels)), np.ptp(np.log(filled.levels)) / 20, rtol=1e-9)
    assert len(by_gid(figures.surface(data), "guessing")) == 1


def test_cells_with_a_corner_that_is_not_finite_are_hatched():
    data = saddle(9, 7)
    data["loss"][8, 6], data["loss"][4, 0] = np.inf, np.nan  # a corner of the plane, and its rim
    figure = drawn(figures.surface(data))
    (holes,) = by_gid(figure, "non-finite")
    alphas, betas = data["alpha"].values, data["beta"].values
    cells = {(path.vertices[0, 0], path.vertices[0, 1]) for path in holes.get_paths()}
    assert cells == {(alphas[7], betas[5]), (alphas[3], betas[0]), (alphas[4], betas[0])}
    assert legend_texts(figure) == ["model", "random guessing, 2.3 nat", "not finite"]
    assert by_gid(figures.surface(saddle()), "non-finite") == []
    assert legend_texts(figures.surface(saddle())) == ["model", "random guessing, 2.3 nat"]


def test_equal_lengths_are_equal_on_paper():
    def box(**how):
        figure = drawn(figures.surface(make_surface(saddle(9, 9)["loss"].values, **how)))
        box = figure.axes[0].get_window_extent()
        return box.height / box.width

    assert box(lengths=(0.5, 1.0)) == pytest.approx(2.0, rel=1e-6)
    assert box(lengths=(0.5, 1.0), b=np.linspace(0, 0.5, 9)) == pytest.approx(0.5, rel=1e-6)
    assert box(lengths=(0.01, 1.0)) == pytest.approx(1.0, rel=1e-6)  # a sliver


def test_the_title_of_a_surface_has_its_class_with_curvatures_in_parameter_space():
    data = saddle()
    shape = surface_shape(data["alpha"], data["beta"], data["loss"], lengths=(2.0, 4.0))
    assert shape.kind == "saddle"
    # 3 a^2 - b^2 over directions of lengths 2 and 4: 6/4 and -2/16
    assert title(figures.surface(data)).startswith("saddle\ncurvatures −0.1")
    assert "1.5 ± " in title(figures.surface(data))
    assert "cosine of the directions 0.3" in title(figures.surface(data.assign_attrs(cosine=0.3)))


def test_the_trajectory_is_drawn_with_its_share():
    points = torch.tensor([[1.0, 0.5], [0.2, 0.1], [0.0, 0.0]], dtype=torch.float64)
    none = torch.zeros(3)
    walk = Trajectory(points, 0.934, none, none, none, "eval")
    data = saddle()
    figure = figures.surface(data, walk)
    (path,) = by_gid(figure, "trajectory")
    np.testing.assert_array_equal(path.get_xydata(), points)
    assert "the plane holds 93.4% of the trajectory's variance" in title(figure)
    assert by_gid(figures.surface(data), "trajectory") == []
    data["trajectory_alpha"], data["trajectory_beta"] = ("step", [1.0, 0.0]), ("step", [0.5, 0.0])
    (path,) = by_gid(figures.surface(data.assign_attrs(trajectory_share=0.5)), "trajectory")
    assert path.get_xydata().tolist() == [[1.0, 0.5], [0.0, 0.0]]


def test_a_constant_surface_is_drawn():
    drawn(figures.surface(make_surface(np.full((5, 5), 2.0))))
    drawn(figures.surface_3d(make_surface(np.full((5, 5), 2.0))))


def test_surfaces_are_panels():
    rows = [{"a": saddle(), "b": make_surface(1 + saddle()["loss"].values ** 2)}]
    figure = drawn(figures.surfaces(rows))
    assert title(figure) == "a\nsaddle"
    assert len(by_gid(figure, "loss")) == 2
    assert legend_texts(figure) == ["model", "random guessing, 2.3 nat"]
    panels = [axes for axes in figure.axes if axes.get_gid() in ("a", "b")]
    for axes, lowest in zip(panels, (1.0, 2.0), strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == (
            "α along first\n(1 = 0.5 ‖θ‖)",
            "β along second\n(1 = 0.5 ‖θ‖)",
        )
        (bar,) = axes.child_axes
        assert bar.get_ylabel() == "Loss (nat)"
        assert bar.get_ylim()[0] == pytest.approx(lowest, abs=0.01)  # each panel has its own


def test_a_surface_without_finite_values_is_refused():
    with pytest.raises(UserError, match="No value of loss"):
        figures.surface(make_surface(np.full((5, 5), np.nan)))
    with pytest.raises(UserError, match=r"error over \(alpha, beta\)"):
        figures.surface(saddle(), quantity="error")


def test_surface_3d_shows_the_heights():
    data = saddle()
    figure = figures.surface_3d(data)
    assert by_gid(figure, "surface")
    np.testing.assert_allclose(figure.axes[0].zz_dataLim.intervalx, [data["loss"].min(), data["loss"].max()])
    data["loss"] = np.exp(4 * data["loss"] - 6)
    figure = drawn(figures.surface_3d(data))
    heights = [math.log10(data["loss"].min()), math.log10(data["loss"].max())]
    np.testing.assert_allclose(figure.axes[0].zz_dataLim.intervalx, heights)
    data["loss"][0, 0] = np.nan
    assert title(drawn(figures.surface_3d(data))).endswith("1 of 63 values not finite")


# ---- spectra


def make_spectrum(**attrs):
    return xr.Dataset(
        {
            "eigenvalue": ("rank", [9.0, 5.0, 4.0]),
            "eigenvalue_residual": ("rank", [0.1, 0.2, 0.3]),
            "eigenvalue_converged": ("rank", [1.0, 1.0, 0.0]),
            "eigenvalue_min": ("rank_min", [-2.0, -1.0]),
            "eigenvalue_min_residual": ("rank_min", [0.01, 0.02]),
            "eigenvalue_min_converged": ("rank_min", [1.0, 1.0]),
            "trace": 25.0,
            "trace_se": 0.5,
        },
        coords={"rank": [1, 2, 3], "rank_min": [1, 2]},
        attrs=attrs,
    )


def make_density():
    edges = np.array([-2.0, -0.1, 0.0, 0.1, 9.0])
    data = xr.Dataset(
        {
            "density": ("bin", [0.1, 0.4, 0.0, 0.5]),
            "density_se": ("bin", [0.05, 0.5, 0.0, 0.1]),
            "negative_share": 0.25,
            "negative_share_se": 0.02,
            "undecided_share": 0.5,
            "undecided_share_se": 0.04,
        },
        coords={"bin_left": ("bin", edges[:-1]), "bin_right": ("bin", edges[1:])},
        attrs={"linear_threshold": 0.1},
    )
    data["density"].attrs["units"] = "1"
    return data


def test_spectrum_draws_both_ends_with_residuals_and_hollow_where_not_converged():
    figure = drawn(figures.spectrum(make_spectrum()))
    points = by_gid(figure, "eigenvalue-converged")[0]
    np.testing.assert_array_equal(points.get_offsets(), [[1, 9], [2, 5]])
    (hollow,) = by_gid(figure, "eigenvalue-unconverged")
    np.testing.assert_array_equal(hollow.get_offsets(), [[3, 4]])
    assert hollow.get_facecolor().tolist() == [list(to_rgba("white"))]
    (bars,) = by_gid(figure, "eigenvalue_residual")
    spans = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(spans, [0.2, 0.4, 0.6])
    (lowest,) = by_gid(figure, "eigenvalue_min-converged")
    np.testing.assert_array_equal(lowest.get_offsets(), [[1, -2], [2, -1]])
    assert figure.get_suptitle() == "tr H = 25.00 ± 0.50 nat"
    assert figure.axes[0].get_ylabel() == "Eigenvalue of the Hessian (nat)"


def test_an_exact_trace_and_a_single_end():
    data = make_spectrum().drop_vars([f"eigenvalue_min{end}" for end in ("", "_residual", "_converged")])
    data["trace_se"], data["trace_data_se"] = 0.0, 1.25
    figure = drawn(figures.spectrum(data))
    assert len(figure.axes) == 1
    assert figure.get_suptitle() == "tr H = 25.0 ± 1.2 nat (exact; the error is over the samples)"
    with pytest.raises(UserError, match="no eigenvalue"):
        figures.spectrum(make_density())


def test_density_draws_bins_with_mass_and_their_bands():
    figure = drawn(figures.density(make_density()))
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "log")
    assert axes.xaxis.get_transform().linthresh == 0.1
    (steps,) = by_gid(figure, "density")
    np.testing.assert_array_equal(steps.get_data().values, [0.1, 0.4, np.nan, 0.5])
    np.testing.assert_array_equal(steps.get_data().edges, [-2, -0.1, 0, 0.1, 9])
    spans = [band.get_paths()[0].vertices[:, 1] for band in by_gid(figure, "band")]
    bottom = 0.1 / 3  # of the axes: an error as large as its value has no logarithm
    np.testing.assert_allclose([(s.min(), s.max()) for s in spans], [(0.05, 0.15), (bottom, 0.9), (0.4, 0.6)])
    surely, open_ = title(figure).splitlines()
    assert surely == "share of eigenvalues surely below 0: 0.250 ± 0.020"
    assert open_ == "so near 0 that the sign is open: 0.500 ± 0.040"
    assert axes.get_xlabel() == "Eigenvalue λ of the Hessian (nat; linear about 0)"
    shown = ["share in a bin", "± 1 standard error", "smallest eigenvalue −2 nat", "largest eigenvalue 9 nat"]
    assert legend_texts(figure) == shown


def test_density_marks_the_extreme_eigenvalues():
    figure = figures.density(make_density())
    assert [by_gid(figure, gid)[0].get_xdata()[0] for gid in ("smallest", "largest")] == [-2.0, 9.0]
    both = xr.merge([make_density(), make_spectrum() * 2], combine_attrs="override")
    figure = figures.density(both)
    assert [by_gid(figure, gid)[0].get_xdata()[0] for gid in ("smallest", "largest")] == [-4.0, 18.0]


def test_a_density_without_mass_is_refused():
    data = make_density()
    data["density"] = data["density"] * np.nan
    with pytest.raises(UserError, match="no mass"):
        figures.density(data)
    with pytest.raises(UserError, match="holds no bin_left, bin_right, density"):
        figures.density(make_spectrum())


# ---- mined directions, angles, Gaussians


def make_mined(**attrs):
    held_out = 2.0 + 0.1 * X
    curve = make_curve(W_PEAK, names=["Mine"])
    loss = xr.DataArray(np.stack([W_PEAK, held_out]), dims=("data", "lambda"))
    data = curve.drop_vars(["loss", "error"]).assign(loss=loss)
    return data.assign_coords(data=["mining", "held-out"]).assign_attrs(attrs)


def test_mined_draws_both_data_and_says_whether_the_shape_survives():
    figure = drawn(figures.mined(make_mined(status="mining-only")))
    lines = by_gid(figure, "curve")
    np.testing.assert_array_equal([line.get_ydata() for line in lines], [W_PEAK, 2.0 + 0.1 * X])
    assert [line.get_label() for line in lines] == ["mining", "held-out"]
    assert title(figure).startswith("mining:\nw-peak, 3 stationary points")
    assert figure.get_suptitle() == "The shape does not survive on held-out data"


def test_mined_draws_the_cosines_with_their_signs_and_doubts():
    data = make_mined()
    data["cosine"] = ("eigenvector", [0.1, -0.3, 0.9])
    data["eigenvalue"] = ("eigenvector", [5.0, 4.0, -1.0])
    data["ambiguous"] = ("eigenvector", [0.0, 1.0, 0.0])
    data["projection"], data["projection_chance"] = 0.95, 0.03
    figure = drawn(figures.mined(data))
    bars = figure.axes[1].patches
    assert [bar.get_height() for bar in bars] == [0.1, -0.3, 0.9]
    assert [bar.get_hatch() for bar in bars] == [None, "////", None]
    assert bars[0].get_facecolor() == bars[1].get_facecolor() != bars[2].get_facecolor()
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["P.E.1", "P.E.2", "N.E.1"]
    levels = sorted(line.get_ydata()[0] for line in by_gid(figure, "chance"))
    np.testing.assert_allclose(levels, [-0.03 / math.sqrt(3), 0.03 / math.sqrt(3)])
    assert title(figure, 1) == "0.95 of its length lies in their span\n(of a random direction: 0.03)"


def test_mined_refuses_a_plain_curve():
    with pytest.raises(UserError, match=r"over \(data, lambda\)"):
        figures.mined(make_curve(W_PEAK))


def make_angles():
    n = 10_000
    rng = np.random.default_rng(0)
    angle = np.array([[0.0, 60.0], [60.0, 0.0]])
    draws = 90 + np.degrees(1 / math.sqrt(n)) * rng.normal(size=(1, 500))
    return xr.Dataset(
        {
            "angle": (("direction", "direction_b"), angle),
            "gaussian_angle": (("watched", "draw"), draws),
            "log_density": ("watched", [log_density(torch.full((n,), 0.02, dtype=torch.float64))]),
        },
        coords={"direction": ["Gau.", "Mine"], "watched": ["Mine"]},
        attrs={"kind": "angles", "size": n},
    )


def test_angles_are_a_matrix_and_a_histogram_beside_its_law():
    data = make_angles()
    figure = drawn(figures.angles(data))
    (image,) = by_gid(figure, "angle")
    np.testing.assert_array_equal(image.get_array(), data["angle"])
    (law,) = by_gid(figure, "law")
    x, y = law.get_xydata().T
    assert trapezoid(y, x) == pytest.approx(1.0, abs=1e-3)  # 4 sigma hold all but 6e-5
    spread = math.sqrt(trapezoid(y * (x - 90) ** 2, x))
    assert spread == pytest.approx(0.573, rel=5e-3)  # 57.3 / sqrt(n), less the tails beyond 4 sigma
    # 0.02 sqrt(n); a draw has sqrt(n), of standard deviation 1 / sqrt(2)
    assert legend_texts(figure) == ["Mine, ‖v‖ = 2", "law of a Gaussian: sd 0.573°, ‖v‖ = 100.00 ± 0.71"]
    assert title(figure, 1) == "To 500 Gaussian directions"


def test_a_direction_beside_gaussians():
    draws = np.array([[1.0, 0.9, 1.1], [0.8, 1.0, 1.2]])
    data = xr.Dataset(
        {"loss": ("distance", [0.95, 0.7]), "gaussian_loss": (("distance", "draw"), draws)},
        coords={"distance": [0.01, 0.1]},
        attrs={"start": 1.0, "name": "Neg. Grad."},
    )
    figure = drawn(figures.against_gaussians(data))
    (best,), (along,) = by_gid(figure, "best"), by_gid(figure, "direction")
    assert best.get_ydata().tolist() == [0.9, 0.8]
    assert along.get_ydata().tolist() == [0.95, 0.7]
    assert title(figure) == "lower than every Gaussian at 1 of 2 distances"
    with pytest.raises(UserError, match="lacks gaussian_loss, attribute start"):
        figures.against_gaussians(make_curve(W_PEAK))


# ---- expansion


def with_pieces(x, loss):
    data = make_curve(loss, x=x)
    centers = np.linspace(x[0], x[-1], 3)
    grid = centers[:, None] + np.linspace(-0.05, 0.05, 5)
    data["piece_lambda"], data["piece_loss"] = (("piece", "offset"), grid), (("piece", "offset"), 1 + grid**2)
    data["piece_center"] = ("piece", centers)
    return data.assign_attrs(kind="expansion")


def test_expansion_draws_pieces_and_tells_mli_and_gmi():
    x = np.linspace(-1.0, 0.0, 21)
    data = with_pieces(x, 1 + x**2)
    figure = drawn(figures.expansion(data))
    pieces = by_gid(figure, "piece")
    np.testing.assert_array_equal([piece.get_xdata() for piece in pieces], data["piece_lambda"])
    np.testing.assert_array_equal([piece.get_ydata() for piece in pieces], data["piece_loss"])
    assert [point.get_ydata()[0] for point in by_gid(figure, "piece-center")] == pytest.approx([2.0, 1.25, 1.0])
    assert title(figure) == "MLI holds, margin 0.0025 nat"  # the last step: 0.05^2
    climb = with_pieces(x, 1 + x**2 + 0.2 * (x > -0.5))
    assert title(figures.expansion(climb)).startswith("MLI does not hold, margin −0.1")
    assert title(figures.expansion(with_pieces(X, 1 + X**2))) == "GMI holds, margin 0.0025 nat"
    assert title(figures.expansion(with_pieces(x, x * np.nan))) == "MLI: 21 of 21 values are not finite"


def test_expansion_refuses_a_curve_without_pieces():
    with pytest.raises(UserError, match="lacks piece_lambda, piece_loss, piece_center"):
        figures.expansion(make_curve(W_PEAK))


def test_loss_change_draws_draws_and_law():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.1, size=(2, 400))
    draws[1, 0] = np.inf
    data = xr.Dataset(
        {
            "change": (("scale", "draw"), draws),
            "predicted_mean": ("scale", [0.3, 0.3]),
            "predicted_variance": ("scale", [0.01, 0.01]),
        },
        coords={"scale": [0.001, 0.01]},
    )
    figure = drawn(figures.loss_change(data))
    assert [title(figure, k) for k in (0, 1)] == ["λ = 0.001", "λ = 0.01, 1 of 400 not finite"]
    x, y = by_gid(figure, "law")[0].get_xydata().T
    assert x[y.argmax()] == pytest.approx(0.3, abs=0.01)
    assert y.max() == pytest.approx(1 / (0.1 * math.sqrt(2 * math.pi)), rel=0.01)
    (ends,) = by_gid(figure, "mean")[0].get_segments()
    center, half = draws[0].mean(), 2 * draws[0].std(ddof=1) / 20
    np.testing.assert_allclose(ends[:, 0], [center - half, center + half])
    axes = figure.axes[0]
    bar = axes.transData.inverted().transform(axes.transAxes.transform([0, ends[0, 1]]))
    assert bar[1] > max(patch.get_height() for patch in axes.patches)  # above the histogram
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Change of the loss (nat)", "Density (1/nat)")


# ---- all of them


def everything():
    x = np.linspace(-1.0, 0.0, 21)
    gaussians = {"loss": ("distance", [1.0]), "gaussian_loss": (("distance", "draw"), [[1.0, 2.0]])}
    changes = {
        "change": (("scale", "draw"), [[0.1, 0.2, 0.4]]),
        "predicted_mean": ("scale", [0.2]),
        "predicted_variance": ("scale", [0.01]),
    }
    return {
        "line": make_curve(W_PEAK),
        "surface": saddle(),
        "spectrum": make_spectrum(),
        "density": make_density(),
        "mined": make_mined(),
        "expansion": with_pieces(x, 1 + x**2),
        "angles": make_angles(),
        "against-gaussians": xr.Dataset(gaussians, coords={"distance": [0.1]}, attrs={"start": 1.0}),
        "loss-change": xr.Dataset(changes, coords={"scale": [0.01]}),
    }


MARKS = {
    "line": "distance",
    "surface": "levels",
    "spectrum": "eigenvalue-converged",
    "density": "band",
    "mined": "curve",
    "expansion": "piece",
    "angles": "law",
    "against-gaussians": "best",
    "loss-change": "predicted-mean",
}


@pytest.mark.parametrize("kind", MARKS)
def test_plot_draws_by_kind(kind):
    data = everything()[kind]
    assert by_gid(figures.plot(data.assign_attrs(kind=kind)), MARKS[kind])
    if kind in ("line", "surface", "spectrum", "density", "mined"):  # known by what they hold
        data.attrs.pop("kind", None)
        assert by_gid(figures.plot(data), MARKS[kind])


def test_plot_draws_result_objects():
    from lossatlas.landscape.directions import DirectionInfo

    along = DirectionInfo(name="Gau. 1", norm=1.0, relative=0.5, scaling="model", one_dimensional="rescale")
    values = {"loss": torch.from_numpy(W_PEAK)[None]}
    center = {"loss": 1.5}
    curve = Curve(torch.from_numpy(X), values, center, center, (along,), LN_10, "eval", "direct")
    (line,) = by_gid(figures.plot(curve), "curve")
    np.testing.assert_array_equal(line.get_ydata(), W_PEAK)
    pairs = eigenpairs(from_matrix(torch.diag(torch.tensor([3.0, 2.0, 1.0, -1.0]))), 1, which="both", seed=0)
    (point,) = by_gid(figures.plot(pairs), "eigenvalue-converged")
    np.testing.assert_allclose(point.get_offsets(), [[1, 3]], rtol=1e-5)  # float32 matrix


def test_plot_refuses_what_has_no_figure():
    with pytest.raises(UserError, match="no dataset"):
        figures.plot(3)
    with pytest.raises(UserError, match=r"kind 'song' with the variables loss .*loss-change"):
        figures.plot(xr.Dataset({"loss": 1.0}, attrs={"kind": "song"}))


def test_local_figures_are_the_same_to_the_byte_and_leave_the_users_style_alone(tmp_path):
    before = dict(mpl.rcParams)
    for kind, data in everything().items():
        drawings = [figures.plot(data.assign_attrs(kind=kind)) for _ in range(2)]
        first, second = (figures.save(drawing, tmp_path / f"{kind}{k}") for k, drawing in enumerate(drawings))
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert figures.save(figures.surface_3d(saddle()), tmp_path / "space")[1].stat().st_size > 1000
    assert dict(mpl.rcParams) == before
