"""The plane through three models: closed form, exact ends, the curve on it, and what is drawn of it."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossatlas as la
from cases import BY_NAME
from lossatlas import figures, slice_results
from lossatlas.errors import UserError
from lossatlas.landscape import paths
from lossatlas.landscape.planes import Plane
from lossatlas.landscape.slices import Surface
from test_figures import by_gid, drawn, legend_texts


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(dims: int = 5) -> tuple[la.Objective, Tensor, Tensor]:
    """An objective whose loss is mean (x'w - y)^2, a quadratic in w (dims,); its inputs and targets."""
    x, y = normal(9, dims), normal(9, 1, seed=1)
    model = nn.Linear(dims, 1, bias=False).double()
    extras = {"error": lambda outputs, batch: 100.0 * (outputs * batch[1] < 0).flatten()}
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    return la.Objective(model, batches, la.supervised(F.mse_loss, extras)), x, y[:, 0]


def single() -> la.Objective:
    """A small network in float32, where positions round."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        return la.Objective(model, [(torch.randn(30, 4), torch.arange(30) % 3)], la.supervised(F.cross_entropy))


def three(objective: la.Objective, seed: int = 0) -> list[Tensor]:
    return list(normal(3, objective.layout.size, seed=seed).to(objective.dtype))


# ---- the numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_surface_of_a_quadratic_loss_is_its_closed_form(seed: int, fast: bool) -> None:
    objective, x, y = quadratic()
    a, b, c = models = three(objective, seed)
    found = la.plane(objective, *models, grid=(7, 5), fast=fast)
    # Independently, by QR: u and v up to signs.
    q, r = np.linalg.qr(torch.stack([b - a, c - a], dim=1).numpy())
    u, v = (torch.from_numpy(q * np.sign(np.diag(r)))).T
    for i, s in enumerate(found.surface.alphas):
        for j, t in enumerate(found.surface.betas):
            residual = x @ (a + s * u + t * v) - y
            # 1e-12: float64 sums of 9 terms, after directions that are orthogonal to some eps
            assert found.surface.values["loss"][i, j].item() == pytest.approx(
                (residual**2).mean().item(), rel=1e-12
            )
    assert abs(found.surface.cosine) < 1e-15
    for name, model in zip("ABC", models, strict=True):
        k = found.names.index(name)
        assert found.values["loss"][k] == objective(model)
        losses = (x @ model - y) ** 2
        assert found.stderrs["loss"][k].item() == pytest.approx(losses.std().item() / 3, rel=1e-12)


def test_the_models_own_values_are_bitwise_those_at_their_parameters() -> None:
    objective = single()
    models = three(objective)
    found = la.plane(objective, *models, grid=(3, 3))
    kept = [objective(model).item() for model in models]
    assert found.values["loss"].tolist() == kept
    # This can fail: through the plane's coordinates the second and third are rounded elsewhere.
    u, v = ((models[k] - models[0]).double() for k in (1, 2))
    u = u / u.norm()
    v = v - (v @ u) * u
    v = v / v.norm()
    through = [
        objective(models[0] + s * u.float() + t * v.float()).item() for s, t in found.coordinates[1:].tolist()
    ]
    assert through != kept[1:]
    assert through == pytest.approx(kept[1:], rel=1e-5)
    assert found.surface.center["loss"] == kept[0]
    given = (f"{name} {loss:.4g} +- " for name, loss in zip("ABC", kept, strict=True))
    assert all(text in repr(found) for text in given)
    assert repr(found).endswith("; 3 x 3 points)")


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_parameter_space(seed: int) -> None:
    objective, _, _ = quadratic()
    models = torch.stack(three(objective, seed))
    found = la.plane(objective, *models, grid=(2, 2))
    # Relative to sides of some 3: rounding of float64 only.
    torch.testing.assert_close(torch.cdist(found.coordinates, found.coordinates), torch.cdist(models, models))
    assert found.coordinates[0].tolist() == [0, 0]
    assert found.coordinates[1, 1] == 0 < found.coordinates[2, 1]


def test_the_grid_covers_an_obtuse_triangle_with_its_margin() -> None:
    objective, _, _ = quadratic(3)
    a, b, c = torch.tensor([[1.0, 2, 3], [5, 2, 3], [-1, 5, 3]], dtype=torch.float64)
    found = la.plane(objective, a, b, c, margin=0.5, grid=(4, 4))
    assert found.coordinates.tolist() == [[0, 0], [4, 0], [-2, 3]]
    assert found.surface.alphas[[0, -1]].tolist() == [-5, 7]  # 6 wide, from -2
    assert found.surface.betas[[0, -1]].tolist() == [-1.5, 4.5]
    tight = la.plane(objective, a, b, c, margin=0, grid=(2, 2))
    assert tight.surface.alphas.tolist() == [-2, 4]
    assert tight.surface.values["loss"][1, 0].item() == pytest.approx(objective(b).item(), rel=1e-12)


@pytest.mark.parametrize("policy", ["eval", "recalibrate", "batch"])
def test_batchnorm_follows_the_objective_at_the_models_and_between(policy: str) -> None:
    case = BY_NAME["conv_batchnorm"]
    objective = la.Objective(case.model, case.batches, case.criterion, batchnorm=policy)
    before = copy.deepcopy(case.model.state_dict())
    models = [
        objective.center * scale + 0.1 * normal(objective.layout.size, seed=k)
        for k, scale in enumerate((1, 1.1, 1))
    ]
    found = la.plane(objective, *models, grid=(2, 3))
    assert found.values["loss"].tolist() == [objective(model).item() for model in models]
    assert found.surface.batchnorm == policy
    assert found.surface.values["loss"].unique().numel() == 6
    assert all(torch.equal(v, before[n]) for n, v in case.model.state_dict().items())


def test_values_that_are_not_finite_stay_also_at_a_model() -> None:
    model = nn.Linear(5, 1, bias=False)
    objective = la.Objective(model, [(normal(9, 5), normal(9, 1))], la.supervised(F.mse_loss))
    a, b, c = three(objective)
    found = la.plane(objective, a, 1e25 * b, 1e25 * c, margin=0.5, grid=(5, 5))  # its square overflows in float32
    assert found.values["loss"][0] == objective(a)
    assert found.values["loss"][1:].tolist() == [math.inf, math.inf]
    assert found.stderrs["loss"].isfinite().tolist() == [True, False, False]
    assert found.surface.non_finite > 10
    assert repr(found).endswith(f"; 5 x 5 points, {found.surface.non_finite} not finite)")


def test_a_stopped_plane_goes_on_and_gives_the_same_bits() -> None:
    objective = single()
    models, done = three(objective), {}
    whole = la.plane(objective, *models, grid=(3, 4), keep=done.__setitem__)
    assert len(done) == 12
    rest = {}
    some = dict(list(done.items())[:5])
    resumed = la.plane(objective, *models, grid=(3, 4), done=some, keep=rest.__setitem__)
    assert len(rest) == 7
    assert torch.equal(resumed.surface.values["loss"], whole.surface.values["loss"])


# ---- the curve ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_the_curve_lies_on_the_plane_where_its_points_project(kind: paths.Kind) -> None:
    objective, _, _ = quadratic()
    a, b, bend = three(objective)
    found = la.plane(objective, a, b, bend, grid=(2, 2), curve=kind)
    ts, way = found.path()
    points = torch.stack([paths.point(torch.stack([a, bend, b]), t, kind=kind) for t in ts.tolist()])
    basis = torch.linalg.qr(torch.stack([b - a, bend - a], dim=1))[0]  # (n, 2), up to signs
    inside = (points - a) @ basis * torch.sign((torch.stack([b - a, bend - a]) @ basis).diagonal())
    torch.testing.assert_close(way, inside, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        (points - a).norm(dim=1), way.norm(dim=1), rtol=1e-12, atol=1e-12
    )  # nothing outside
    assert way[0].tolist() == found.coordinates[0].tolist()
    assert way[-1].tolist() == found.coordinates[1].tolist()
    assert len(la.plane(objective, a, b, bend, grid=(2, 2)).path()[0]) == 0


# ---- what is no plane ---------------------------------------------------------------------------------------


def test_models_that_span_no_plane_are_refused() -> None:
    objective = single()
    a, b, c = three(objective)
    for models, pair in (((a, a, c), "A and B"), ((a, b, a), "A and C"), ((a, b, b.clone()), "B and C")):
        with pytest.raises(
            UserError, match=rf"The models {pair} are equal up to rounding \(their distance is 0\)"
        ):
            la.plane(objective, *models)
    for t in (0.5, 0.3, -2.0, 7.0):  # rounded to float32, so not quite on the line
        with pytest.raises(UserError, match=r"A, B, C lie on one straight line"):
            la.plane(objective, a, b, a + t * (b - a))
    off = a + 0.5 * (b - a) + 1e-3 * c  # a low triangle is one
    assert la.plane(objective, a, b, off, grid=(2, 2)).coordinates[2, 1] > 1e-4
    double, _, _ = quadratic()
    a, b, c = three(double)
    with pytest.raises(UserError, match="one straight line"):
        la.plane(double, a, b, a + 0.3 * (b - a))
    assert la.plane(double, a, b, a + 0.3 * (b - a) + 1e-9 * c, grid=(2, 2)).coordinates[2, 1] < 1e-8


def test_all_that_is_wrong_with_the_arguments_is_told_together() -> None:
    objective, _, _ = quadratic()
    a, b, c = three(objective)
    with pytest.raises(UserError) as refused:
        la.plane(objective, a[:3], b * math.nan, c, margin=-1, names=("A", "B", "A"), curve="arc")  # type: ignore
    for words in (
        r"model A has shape (3,) and dtype torch.float64; all three must be flat vectors (5,)",
        "5 of 5 parameters of model B are not finite",
        "the names A, B, A must be three different ones",
        "margin=-1 must be",
        "curve='arc' must be bezier, chain or None",
    ):
        assert words in str(refused.value)


# ---- dataset and figures ------------------------------------------------------------------------------------


def plane_of(curve: str | None = None, **options) -> Plane:
    objective, _, _ = quadratic()
    return la.plane(objective, *three(objective), grid=(6, 5), curve=curve, **options)


def test_a_plane_goes_to_a_file_and_its_surface_back(tmp_path) -> None:
    found = plane_of("bezier", names=("first", "second", "bend"))
    found.surface.values["loss"][0, 0] = math.nan
    found.save(tmp_path / "plane.nc", attrs={"model": "mine"})
    dataset = la.load(tmp_path / "plane.nc")
    assert dataset["model"].values.tolist() == ["first", "second", "bend"]
    for name in ("loss", "error"):
        assert dataset[f"model_{name}"].values.tolist() == found.values[name].tolist()
        assert dataset[f"model_{name}_se"].values.tolist() == found.stderrs[name].tolist()
    places = np.stack([dataset["model_alpha"], dataset["model_beta"]], axis=1)
    np.testing.assert_array_equal(places, found.coordinates)
    np.testing.assert_array_equal(np.stack([dataset["curve_alpha"], dataset["curve_beta"]], 1), found.path()[1])
    assert all({"units", "long_name", "estimator"} <= v.attrs.keys() for v in dataset.data_vars.values())
    assert (dataset.attrs["kind"], dataset.attrs["curve"]) == ("plane", "bezier")
    assert dataset["alpha"].attrs["long_name"] == "l2 distance from first, towards second"
    back = slice_results.from_dataset(dataset)
    assert isinstance(back, Surface)
    assert set(back.values) == {"loss", "error"}
    torch.testing.assert_close(back.values["loss"], found.surface.values["loss"], equal_nan=True, rtol=0, atol=0)


def test_the_models_are_marked_at_their_places_with_their_own_values() -> None:
    found = plane_of()
    figure = drawn(found.plot())
    marks = by_gid(figure, "model")
    assert [mark.get_xydata()[0].tolist() for mark in marks] == found.coordinates.tolist()
    assert len({mark.get_marker() for mark in marks}) == 3  # told apart without colour
    for name, loss, text in zip("ABC", found.values["loss"].tolist(), legend_texts(figure), strict=True):
        assert text.startswith(f"{name}: loss {loss:.3g} ± ")
        assert text.endswith(" nat")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["A", "B", "C"]
    assert axes.get_xlabel() == r"$\ell_2$ distance along A – B"
    assert axes.get_title() == ""
    assert by_gid(figure, "centre") == by_gid(figure, "curve") == []
    of_error = figures.surface(found.to_dataset(), quantity="error")
    assert all(text.endswith(" %") for text in legend_texts(of_error))


def test_the_curve_is_drawn_on_its_plane() -> None:
    found = plane_of("bezier")
    figure = drawn(found.plot())
    (curve,) = by_gid(figure, "curve")
    np.testing.assert_array_equal(curve.get_xydata(), found.path()[1])
    assert legend_texts(figure)[0] == "Bézier curve A – B, bend C"


def test_in_space_the_models_stand_at_their_own_heights() -> None:
    dataset = plane_of().to_dataset()
    dataset["loss"] = 1 + dataset["loss"] / dataset["loss"].max()  # a linear height
    dataset["model_loss"][:] = [1.2, 1.5, math.inf]
    figure = drawn(figures.surface_3d(dataset))
    marks = by_gid(figure, "model")
    heights = [mark.get_data_3d()[2].item() for mark in marks if hasattr(mark, "get_data_3d")]
    assert heights == [1.2, 1.5]
    assert legend_texts(figure)[2] == "C: loss not finite"
    dataset["loss"][:] = 10.0 ** np.linspace(-3, 0, 30).reshape(6, 5)
    dataset["model_loss"][:] = [0.01, 0.1, 0.0]
    marks = by_gid(drawn(figures.surface_3d(dataset)), "model")
    heights = [mark.get_data_3d()[2].item() for mark in marks if hasattr(mark, "get_data_3d")]
    assert heights == pytest.approx([-2, -1])  # 0 has no logarithm
