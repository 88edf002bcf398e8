"""Shapes: hand-made curves and surfaces of every class, closed-form quadratics, noise of known size."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import lossatlas as la
from lossatlas.errors import UserError
from lossatlas.landscape import shapes, surface_shapes

NARROW = np.linspace(-1, 1, 41)
WIDE = np.linspace(-1, 2, 61)


def interpolated(positions, *knots):
    """A curve through (position, value) knots."""
    xs, ys = zip(*knots, strict=True)
    return np.interp(positions, xs, ys)


# ---- turning points -----------------------------------------------------------------------------------------


def test_the_printed_definition_is_the_product_rule():
    y = np.array([3.0, 1.0, 2.0, 2.0, 0.0, 5.0, 4.0, 6.0])
    found = shapes.turning_points(range(8), y, tolerance=None)
    products = [i for i in range(1, 7) if (y[i] - y[i + 1]) * (y[i] - y[i - 1]) > 0]
    assert [p.index for p in found] == products == [1, 4, 5, 6]  # the flat top at 2, 3 has no product
    assert [p.kind for p in found] == ["minimum", "minimum", "maximum", "minimum"]
    with_top = shapes.turning_points(range(8), y)
    assert [p.index for p in with_top] == [1, 2, 4, 5, 6]
    assert [p.kind for p in with_top] == ["minimum", "maximum", "minimum", "maximum", "minimum"]


def test_both_definitions_agree_where_no_neighbours_are_equal():
    generator = np.random.default_rng(0)
    for length in (2, 3, 10, 200):
        y = generator.normal(size=length)
        x = np.arange(length)
        assert shapes.turning_points(x, y) == shapes.turning_points(x, y, tolerance=None)


def test_the_tolerance_is_on_the_prominence():
    y = [5.0, 1.0, 1.5, 0.0, 4.0]  # a ripple of height 0.5
    assert [p.index for p in shapes.turning_points(range(5), y, tolerance=0.49)] == [1, 2, 3]
    assert [p.index for p in shapes.turning_points(range(5), y, tolerance=0.5)] == [3]
    assert shapes.turning_points(range(5), y, tolerance=4.0) == ()
    assert shapes.turning_points([0, 1, 2], [1, 0, 0.1], tolerance=0.2) == ()  # too little on one side


def test_noise_below_the_tolerance_leaves_one_minimum():
    generator = np.random.default_rng(1)
    noisy = NARROW**2 + generator.uniform(-1e-3, 1e-3, 41)
    smooth = [p.index for p in shapes.turning_points(NARROW, noisy, tolerance=2.1e-3)]
    assert len(smooth) == 1
    assert abs(smooth[0] - 20) <= 1
    fine = np.linspace(-1, 1, 801)
    assert len(shapes.turning_points(fine, fine**2 + generator.uniform(-1e-3, 1e-3, 801))) > 50


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_turning_points_mirror_with_the_curve(tolerance):
    generator = np.random.default_rng(2)
    y = np.cumsum(generator.normal(size=100))
    x = np.arange(100)
    there = [p.index for p in shapes.turning_points(x, y, tolerance=tolerance)]
    back = [99 - p.index for p in shapes.turning_points(x, y[::-1], tolerance=tolerance)][::-1]
    upside_down = shapes.turning_points(x, -y, tolerance=tolerance)
    assert there == back == [p.index for p in upside_down]
    depths = np.abs(np.diff(y[there]))
    assert (depths > tolerance).all()


# ---- classes of curves --------------------------------------------------------------------------------------

VALLEY = interpolated(NARROW, (-1, 3), (0, 0.1), (1, 2.5))
CURVES = [
    ("v-basin", NARROW, VALLEY, 1),
    ("v-basin", NARROW, interpolated(NARROW, (-1, 3), (0.05, 0), (1, 2)), 1),  # within a grid step
    ("v-side", NARROW, interpolated(NARROW, (-1, 3), (0.1, 0), (1, 2)), 1),
    ("v-side", NARROW, np.exp(-NARROW), 0),
    ("w-basin", WIDE, interpolated(WIDE, (-1, 3), (0, 0), (0.5, 2), (1, 0.1), (2, 3)), 3),
    ("w-peak", NARROW, interpolated(NARROW, (-1, 3), (-0.5, 0), (0, 1), (0.6, 0.2), (1, 3)), 3),
    ("w-peak", NARROW, interpolated(NARROW, (-1, 3), (-0.5, 0), (0.05, 1), (1, 0)), 2),
    ("w-peak", NARROW, -(NARROW**2), 1),
    ("vvv-basin", WIDE, interpolated(WIDE, (-1, 3), (0, 0), (0.25, 1), (0.5, 0.2), (0.75, 1), (1, 0), (2, 3)), 5),
    ("other", NARROW, interpolated(NARROW, (-1, 0), (0.5, 1), (1, 0)), 1),  # a maximum, the model on its slope
    # in a valley, far from its bottom
    ("w-basin", NARROW, interpolated(NARROW, (-1, 3), (-0.8, 0), (-0.5, 2), (0.4, 0), (1, 3)), 3),
    ("w-basin", WIDE, interpolated(WIDE, (-1, 3), (-0.3, 0), (0.5, 2), (1, 0.1), (2, 3)), 3),
    # on the outer slope of a valley: in its lower half, and nearer to the height of the barrier
    ("w-basin", WIDE, interpolated(WIDE, (-1, 3), (0, 0.9), (0.3, 0), (0.6, 2), (1, 0.1), (2, 3)), 3),
    ("other", WIDE, interpolated(WIDE, (-1, 3), (0, 1.1), (0.3, 0), (0.6, 2), (1, 0.1), (2, 3)), 3),
    # two grid steps beside the top of the barrier
    ("other", NARROW, interpolated(NARROW, (-1, 3), (-0.7, 0), (0.1, 1), (0.6, 0.2), (1, 3)), 3),
    ("other", NARROW, np.cos(NARROW * 9 * math.pi), 17),
]


@pytest.mark.parametrize(("kind", "positions", "values", "count"), CURVES)
def test_every_class_of_curve(kind, positions, values, count):
    shape = shapes.curve_shape(positions, values)
    assert (shape.kind, shape.count, shape.status) == (kind, count, "ok")
    if kind != "v-side":  # a mirrored slope is a slope on the other side
        start = positions[0] + positions[-1]
        mirrored = shapes.curve_shape(start - positions[::-1], values[::-1], at=start)
        assert mirrored.kind == kind


def test_a_model_between_two_turning_points_is_on_the_slope():
    sharp = interpolated(NARROW, (-1, 3), (-0.05, 0), (0, 0.4), (0.05, 1), (0.1, 0.5), (1, 3))
    assert shapes.curve_shape(NARROW, sharp).kind == "w-basin"  # in the left valley, not on the peak
    sharper = interpolated(NARROW, (-1, 3), (-0.05, 0), (0.05, 1), (1, 0.5))
    assert shapes.curve_shape(NARROW, sharper).kind == "other"


def test_turning_points_are_counted_below_and_above_guessing():
    curve = interpolated(WIDE, (-1, 3), (0, 0), (0.5, 2.5), (1, 0.1), (2, 3))
    shape = shapes.curve_shape(WIDE, curve, guessing=math.log(10))
    assert (shape.below, shape.above) == (2, 1)
    assert [p.position for p in shape.stationary] == pytest.approx([0, 0.5, 1], abs=1e-12)
    untold = shapes.curve_shape(WIDE, curve)
    assert (untold.below, untold.above) == (0, 0)


def test_a_curve_with_a_gap_has_no_class():
    broken = VALLEY.copy()
    broken[[0, -1]] = np.inf, np.nan
    shape = shapes.curve_shape(NARROW, broken)
    assert (shape.kind, shape.status, shape.reason) == ("other", "non-finite", "2 of 41 values are not finite")
    assert shapes.mli(NARROW, broken).status == shapes.gmi(NARROW, broken).status == "non-finite"
    with pytest.raises(UserError, match="not finite"):
        shapes.turning_points(NARROW, broken)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="is no point of the curve"):
        shapes.curve_shape(NARROW, VALLEY, at=0.03)
    with pytest.raises(UserError, match="make no curve"):
        shapes.curve_shape(NARROW, VALLEY[1:])
    with pytest.raises(UserError, match="ascending"):
        shapes.turning_points([0, 0, 1], [1, 2, 3])
    with pytest.raises(UserError, match="0 or more"):
        shapes.turning_points([0, 1, 2], [1, 2, 3], tolerance=-1)
    with pytest.raises(UserError, match="no inner point"):
        shapes.gmi(NARROW, VALLEY, at=1.0)


def test_the_grid_of_every_class_holds_the_marked_positions():
    from lossatlas.landscape.slices import evenly

    for name, (a, b, points) in shapes.CURVE_GRIDS.items():
        positions = evenly(a, b, points).tolist()
        assert 0.0 in positions, name
        assert b != 2 or 1.0 in positions
        assert np.diff(positions) == pytest.approx(0.05, abs=1e-12)


# ---- monotony -----------------------------------------------------------------------------------------------


def test_mli_and_its_margin():
    x = np.linspace(-1, 0, 5)
    falling = shapes.mli(x, [4, 3, 2.5, 1, 0])
    assert (falling.holds, falling.margin, falling.change) == (True, 0.5, 4.0)
    bump = shapes.mli(x, [4, 3, 3.25, 3.3, 0])
    assert (bump.holds, bump.change) == (False, 4.0)
    assert bump.margin == pytest.approx(-0.3)  # the whole climb, not its steps
    assert shapes.mli(x, [4, 3, 3.25, 3.3, 0], tolerance=0.31).holds
    assert not shapes.mli(x, [0, 1, 2, 3, 4]).holds
    assert not shapes.mli(x, [1, 1, 1, 1, 1]).holds  # flat is no fall


def test_gmi_takes_the_weaker_side():
    good = shapes.gmi(NARROW, VALLEY)
    assert good.holds
    assert good.margin == pytest.approx(2.4 / 20)
    assert good.change == pytest.approx(2.4)
    assert not shapes.gmi(NARROW, np.exp(NARROW)).holds
    assert not shapes.gmi(NARROW, interpolated(NARROW, (-1, 1), (-0.5, 2), (0, 0), (1, 2))).holds


# ---- surfaces -----------------------------------------------------------------------------------------------

A, B = np.linspace(-1, 1, 21), np.linspace(-2, 2, 21)
GRID = np.meshgrid(A, B, indexing="ij")


def quadratic(haa, hab, hbb, ga=0.3, gb=-0.2):
    a, b = GRID
    return 1 + ga * a + gb * b + (haa * a**2 + 2 * hab * a * b + hbb * b**2) / 2


@pytest.mark.parametrize(
    ("kind", "hessian"),
    [
        ("bowl", (2.0, 0.5, 1.0)),
        ("gutter", (2.0, 0.0, 0.01)),
        ("gutter", (2.0, 0.0, -0.01)),
        ("saddle", (2.0, 0.5, -1.0)),
        ("saddle", (0.0, 1.0, 0.0)),
        ("peak", (-2.0, 0.3, -1.0)),
        ("other", (0.0, 0.0, 0.0)),
        ("other", (-2.0, 0.0, 0.01)),
    ],
)
def test_exact_quadratics_give_their_hessian_and_class(kind, hessian):
    shape = surface_shapes.surface_shape(A, B, quadratic(*hessian))
    assert shape.kind == kind
    haa, hab, hbb = hessian
    expected, vectors = np.linalg.eigh([[haa, hab], [hab, hbb]])
    assert shape.eigenvalues == pytest.approx(tuple(expected), abs=1e-12)
    assert shape.gradient == pytest.approx([0.3, -0.2], abs=1e-13)
    assert max(shape.stderr) < 1e-11
    assert (shape.points, shape.degree) == (25, 4)
    if kind != "other":
        assert np.abs(np.diag(shape.eigenvectors.T @ vectors)) == pytest.approx([1, 1], abs=1e-10)
        size = np.abs(expected)
        assert shape.anisotropy == pytest.approx(size.min() / size.max(), abs=1e-10)


def test_the_bottom_of_a_wine_bottle_needs_its_rim():
    a, b = GRID
    square = a**2 + b**2
    bottle = (square - 0.25) ** 2
    assert surface_shapes.surface_shape(A, A, (np.add.outer(A**2, A**2) - 0.25) ** 2).kind == "wine-bottle"
    assert surface_shapes.surface_shape(A, B, bottle).kind == "wine-bottle"
    assert surface_shapes.surface_shape(A, B, -square).kind == "peak"
    half = np.where(a > 0.35, -square, bottle)  # no rim on one side
    assert surface_shapes.surface_shape(A, B, half).kind == "peak"


def test_rows_are_alphas():
    shape = surface_shapes.surface_shape(A, B, quadratic(2.0, 0.0, 0.5))
    assert np.abs(shape.eigenvectors[:, 1]) == pytest.approx([1, 0], abs=1e-10)  # 2 belongs to alpha
    with pytest.raises(UserError, match=r"Give values\[i, j\]"):
        surface_shapes.surface_shape(A, B[:5], quadratic(1, 0, 1))


def test_lengths_turn_coordinates_into_distances_and_at_moves_the_fit():
    shape = surface_shapes.surface_shape(A, B, quadratic(8.0, 0.0, 18.0), lengths=(2.0, 3.0))
    assert shape.eigenvalues == pytest.approx((2.0, 2.0), abs=1e-12)
    cubic = GRID[0] ** 3 + GRID[1] ** 2
    for at, kind in (((0.6, 0.0), "bowl"), ((-0.6, 0.0), "saddle")):
        moved = surface_shapes.surface_shape(A, B, cubic, at=at)
        assert moved.kind == kind
        assert sorted(moved.eigenvalues) == pytest.approx(sorted([2.0, 6 * at[0]]), abs=1e-9)


def test_the_errors_of_eigenvalues_cover_them_under_noise():
    generator = np.random.default_rng(3)
    z = []
    for _ in range(400):
        noisy = quadratic(2.0, 0.5, -1.0) + generator.normal(scale=1e-3, size=(21, 21))
        shape = surface_shapes.surface_shape(A, B, noisy)
        truth = np.linalg.eigvalsh([[2.0, 0.5], [0.5, -1.0]])
        z.append((np.array(shape.eigenvalues) - truth) / np.array(shape.stderr))
    # The scatter alone would be Student's t with 10 degrees of freedom, sd 1.118, known to 0.06 by 400 draws; the
    # difference of two fits has the noise of both, so that the whole error is at most some twice too large.
    assert (np.std(z, axis=0) < 1.118 + 0.18).all()
    assert (np.std(z, axis=0) > 0.5).all()
    assert np.abs(np.mean(z, axis=0)).max() < 0.25


@pytest.mark.parametrize("inner", [1, 2])
def test_the_error_covers_what_the_fit_leaves_out(inner):
    """Closed forms, rotated: the curvatures at the point are known, the surface is no polynomial of the fit."""
    a, b = GRID[0], GRID[1] / 2
    x, y = 0.8 * a + 0.6 * b, 0.8 * b - 0.6 * a
    smooth = {  # f, and d2f/dx2, d2f/dy2 at 0
        "quartic": (0.5 * x**2 - 0.2 * y**2 + 3 * x**4 - 2 * x**2 * y**2 + x**3, 1.0, -0.4),
        "sixth": (0.5 * x**2 + 0.3 * y**2 + 9 * x**6 - 7 * y**6 + x**4, 1.0, 0.6),
        "cosine": (np.cos(3 * x) + np.exp(y), -9.0, 1.0),
        "logistic": (np.log1p(np.exp(6 * x)) + np.log1p(np.exp(-4 * y)), 9.0, 4.0),
    }
    for name, (values, along_x, along_y) in smooth.items():
        truth = np.array(sorted([along_x, along_y]))
        shape = surface_shapes.surface_shape(A, A, values, inner=inner)
        off, errors = np.abs(np.array(shape.eigenvalues) - truth), np.array(shape.stderr)
        assert (off <= errors + 1e-11).all(), (name, shape)
        assert (errors <= (0.25 if inner == 2 else 1.0) * np.abs(truth).max()).all(), (name, shape)
        if name == "quartic" and inner == 2:
            assert errors.max() < 1e-10  # it is the polynomial
        # On the smallest grid the quadratic is the second fit, whose error is far larger.
        small = surface_shapes.surface_shape(A[8:13], A[8:13], values[8:13, 8:13])
        assert (np.abs(np.array(small.eigenvalues) - truth) <= np.array(small.stderr) + 1e-11).all(), name
        # At a border, where the window lies to one side.
        edge = surface_shapes.surface_shape(A[10:], A, values[10:])
        assert (np.abs(np.array(edge.eigenvalues) - truth) <= np.array(edge.stderr) + 1e-11).all(), (name, edge)


@pytest.mark.parametrize("points", [11, 21])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_curvatures_of_smooth_networks_are_those_of_the_hessian(activation, points):
    """Random planes of the parameters' own length, coarse and fine: within two errors of E'HE (1.95 at most)."""
    x = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 3)).double()
        objective = la.Objective(model, [(x, y)], la.supervised(nn.functional.cross_entropy))
        both = la.gaussian(objective, seed=seed), la.gaussian(objective, seed=seed + 100)
        found = la.surface(objective, *both, extent=((-1, 1), (-1, 1)), grid=(points, points))
        shape = surface_shapes.surface_shape(found.alphas, found.betas, found.values["loss"])
        plane = torch.stack([direction.vector.double() for direction in both], 1)
        exact = torch.linalg.eigvalsh(plane.T @ (la.hessian(objective) @ plane)).numpy()
        off, errors = np.abs(np.array(shape.eigenvalues) - exact), np.array(shape.stderr)
        assert (off < 2 * errors).all(), (seed, shape, exact)


def test_three_points_on_an_axis_tell_no_error():
    shape = surface_shapes.surface_shape(A[9:12], B[9:12], quadratic(2.0, 0.0, 1.0)[9:12, 9:12])
    assert shape.eigenvalues == pytest.approx((1.0, 2.0), abs=1e-12)
    assert np.isnan(shape.stderr).all()
    assert (shape.kind, shape.degree, shape.status) == ("other", 2, "ok")
    assert "5 x 5 points" in shape.reason


def test_curvature_within_its_error_has_no_sign():
    generator = np.random.default_rng(4)
    noise = generator.normal(size=(21, 21))
    shape = surface_shapes.surface_shape(A, B, noise)
    assert shape.kind == "other"
    assert surface_shapes.surface_shape(A, B, quadratic(2, 0, 1), gutter=0.6).kind == "gutter"
    assert surface_shapes.surface_shape(A, B, quadratic(2, 0, 1), gutter=0.4).kind == "bowl"


def test_borders_gaps_and_too_few_points():
    surface = quadratic(2.0, 0.0, 1.0)
    edge = surface_shapes.surface_shape(A, B, surface, at=(1.0, 0.0))
    assert (edge.points, edge.kind) == (25, "bowl")
    with pytest.raises(UserError, match="4 points cannot fix a quadratic"):
        surface_shapes.surface_shape(A[:2], B[:2], surface[:2, :2], inner=1)
    with pytest.raises(UserError, match="on a line or two"):
        surface_shapes.surface_shape(A, B[:2], surface[:, :2], inner=5)
    surface[10, 10] = np.nan
    broken = surface_shapes.surface_shape(A, B, surface)
    assert (broken.kind, broken.status, broken.reason) == ("other", "non-finite", "1 of 25 values are not finite")


def test_shapes_load_no_torch():
    modules = "lossatlas.landscape.surface_shapes, lossatlas.slice_results"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
