"""Every public function leaves the caller's things bit for bit as they were, also when it raises in the middle.

Things: parameters, buffers, gradients, modes, flags, optimiser, random states of torch, NumPy and Python, and
every tensor that is handed in. The data come from a DataLoader, and the model is called by a function that draws a
number, so that both would move torch's random state if nobody put it back.
"""

import inspect
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lossatlas as la
from lossatlas.errors import UserError

MODULES = ("paths", "curve_fitting", "similarity")  # whose functions take objectives, models or their outputs
POLICIES = ("eval", "recalibrate", "batch")


class Blown(Exception):
    """Of no kind that the package knows, so that it may not be caught on the way."""


class Fuse:
    """Counts the calls of the model, and blows after `limit` of them."""

    def __init__(self) -> None:
        self.calls, self.limit = 0, math.inf

    def reset(self, limit: float = math.inf) -> None:
        self.calls, self.limit = 0, limit

    def predict(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        torch.rand(1)
        self.calls += 1
        if self.calls > self.limit:
            raise Blown
        return model(batch[0])


@dataclass(frozen=True)
class Scene:
    """A model in the middle of its training, and what a caller may hand in beside it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader
    fuse: Fuse
    criterion: la.Criterion
    policy: str
    objective: la.Objective
    points: Tensor  # (3, n)
    probabilities: tuple[Tensor, Tensor]
    labels: Tensor
    pairs: Any
    directions: list[Any]
    curve: Any
    plane: Any

    def anew(self) -> la.Objective:
        return la.Objective(self.model, self.loader, self.criterion, batchnorm=self.policy)

    def epoch(self, _epoch: int) -> Iterable[Any]:
        return self.loader


def scene_of(policy: str) -> Scene:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).double()
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(7, 1, 4, 4, dtype=torch.float64), torch.arange(7) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=4)  # the last batch holds 3
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    model[1].bias.grad = None  # some have a gradient, others none
    model[3].eval()  # a mixture of modes
    fuse = Fuse()
    criterion = la.Criterion(predict=fuse.predict, loss=la.supervised(F.cross_entropy).loss)
    objective = la.Objective(model, loader, criterion, batchnorm=policy)
    directions = [la.gaussian(objective, seed=seed) for seed in range(2)]
    outputs = [objective.outputs(objective.center * scale).softmax(1) for scale in (1.0, 1.5)]
    return Scene(
        model=model,
        optimizer=optimizer,
        loader=loader,
        fuse=fuse,
        criterion=criterion,
        policy=policy,
        objective=objective,
        points=torch.stack([objective.center, *(objective.center + d.vector for d in directions)]),
        probabilities=(outputs[0], outputs[1]),
        labels=y,
        pairs=la.eigenpairs(la.hessian(objective), 2, max_matvecs=10, seed=0),
        directions=directions,
        curve=la.line(objective, directions[0], points=5),
        plane=la.surface(objective, *directions, grid=(5, 5)),
    )


@pytest.fixture(scope="module", params=POLICIES)
def scene(request: pytest.FixtureRequest) -> Scene:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scene_of(request.param)


def bits(value: Any) -> Any:
    """Tensors and arrays as their bytes, everything else as it is: what compares bit for bit, NaN included."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.requires_grad, value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    if is_dataclass(value):
        return {f.name: bits(getattr(value, f.name)) for f in fields(value)}
    return repr(value)  # nan != nan


def state_of(scene: Scene) -> dict[str, Any]:
    model, modules = scene.model, dict(scene.model.named_modules())
    return {
        "tensors": {name: (id(t), bits(t)) for name, t in model.state_dict(keep_vars=True).items()},
        "gradients": {name: (id(p.grad), bits(p.grad)) for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in modules.items()},
        "attributes": {name: sorted(module.__dict__) for name, module in modules.items()},
        "hooks": {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in modules.items()},
        "momentum": model[1].momentum,
        "optimizer": bits(scene.optimizer.state_dict()),
        "data": bits(list(scene.loader.dataset.tensors)),
        "torch": bits(torch.get_rng_state()),
        "numpy": bits(np.random.get_state()),  # noqa: NPY002  it is the global state that must stay
        "python": random.getstate(),
        "switches": (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        ),
        "given": bits([scene.points, scene.probabilities, scene.labels, scene.objective.center]),
        "results": bits([scene.pairs, scene.directions, scene.curve, scene.plane]),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


Call = Callable[[Scene], Any]

# What evaluates the loss: these are also stopped in the middle.
EVALUATING: dict[str, Call] = {
    "against_gaussians": lambda s: la.against_gaussians(s.objective, s.directions[0], distance=0.1, count=2),
    "Objective": lambda s: [f(s.objective.center) for o in [s.anew()] for f in (o, o.gradient, o.scores)],
    "blocks": lambda s: [op @ torch.ones(op.size).double() for op in la.blocks(s.objective).values()],
    "curve_fitting.fit": lambda s: la.curve_fitting.fit(
        s.model, (s.points[0], s.points[2]), s.epoch, s.criterion, seed=0, epochs=2
    ),
    "density": lambda s: la.density(la.hessian(s.objective), probes=2, steps=3, seed=0),
    "eigenpairs": lambda s: la.eigenpairs(la.hessian(s.objective), max_matvecs=4, seed=0),
    "expand": lambda s: la.expand(s.objective, s.points[1]),
    "hessian": lambda s: la.hessian(s.objective, s.points[1], memory=0) @ s.points.T,
    "line": lambda s: la.line(s.objective, s.directions, points=3),
    "local_pieces": lambda s: la.local_pieces(s.objective, s.points[1], [0.0, 1.0]),
    "mine_vvv_basin": lambda s: la.mine_vvv_basin(s.objective, s.epoch, s.points[1], epochs=2, seed=0),
    "mine_w_peak": lambda s: la.mine_w_peak(s.objective, s.epoch, epochs=2, seed=0, start=s.points[1]),
    "negative_gradient": lambda s: [
        la.negative_gradient(s.objective, batch=batch) for batch in (None, (s.loader.dataset[:3]))
    ],
    "paths.evaluate": lambda s: la.paths.evaluate(s.objective, s.points, [0.0, 0.5, 1.0]),
    "plane": lambda s: la.plane(s.objective, *s.points, grid=(3, 2)),
    "project": lambda s: la.project(s.objective, s.points, *s.directions),
    "sample_changes": lambda s: la.sample_changes(s.objective, draws=4, seed=0),
    "surface": lambda s: la.surface(s.objective, *s.directions, grid=(2, 3)),
    "survives": lambda s: la.survives(s.objective, s.objective, s.points[1], [-1.0, 1.0]),
    "trace": lambda s: la.trace(s.objective, max_matvecs=20, seed=0),
    "trace_of_square": lambda s: la.trace_of_square(la.hessian(s.objective), max_matvecs=16, seed=0),
}
# What computes with what the caller hands in.
COMPUTING: dict[str, Call] = {
    "alignment": lambda s: la.alignment(s.points[1], s.pairs),
    "angle": lambda s: la.angle(s.points[0], s.directions[0].vector),
    "curve_shape": lambda s: la.curve_shape(s.curve.positions, s.curve.values["loss"][0]),
    "curve_fitting.learning_rate": lambda _: la.curve_fitting.learning_rate(0.1, 0, 2),
    "difference": lambda s: la.difference(s.objective, s.points[1], start=s.points[2], theta=s.points[0]),
    "eigenvectors": lambda s: la.eigenvectors(s.objective, s.pairs, scaling="model"),
    "gaussian": lambda s: la.gaussian(s.objective, seed=0, scaling="filter", theta=s.points[1]),
    "given": lambda s: la.given(s.objective, s.points[1], name="mine", scaling="layer"),
    "gmi": lambda s: la.gmi(s.curve.positions, s.curve.values["loss"][0]),
    "mli": lambda s: la.mli(s.curve.positions, s.curve.values["loss"][0]),
    "orthogonalised": lambda s: la.orthogonalised(s.directions),
    "paths.arc_length": lambda s: la.paths.arc_length(s.points, [0.0, 1.0]),
    "paths.bezier": lambda s: la.paths.bezier(s.points, 0.3),
    "paths.chain": lambda s: la.paths.chain(s.points, 0.5),
    "paths.connectivity": lambda s: la.paths.connectivity(s.curve.values["loss"][0, :3], [0.0, 0.5, 1.0]),
    "paths.guessing_error": lambda s: la.paths.guessing_error(s.labels),
    "paths.line": lambda s: la.paths.line(s.points[:2], 1.0),
    "paths.point": lambda s: la.paths.point(s.points, 0.0).zero_(),  # a new tensor, at an end, too
    "paths.summary": lambda s: la.paths.summary([0.0, 0.5, 1.0], s.curve.values["loss"][0, :3], torch.arange(3.0)),
    "paths.weights": lambda _: la.paths.weights("bezier", 0.3, 2),
    "principal_components": lambda s: la.principal_components(s.objective, s.points, 2),
    "similarity.agreement": lambda s: la.similarity.agreement(*s.probabilities),
    "similarity.cka": lambda s: la.similarity.cka(*s.probabilities),
    "similarity.cosine": lambda s: la.similarity.cosine(*s.probabilities),
    "similarity.disagreement": lambda s: la.similarity.disagreement(*s.probabilities),
    "similarity.distance": lambda s: la.similarity.distance(s.points[0], s.points[1]),
    "similarity.ensemble_error": lambda s: la.similarity.ensemble_error(s.probabilities, s.labels),
    "similarity.jensen_shannon": lambda s: la.similarity.jensen_shannon(*s.probabilities),
    "similarity.mixup": lambda s: la.similarity.mixup(s.loader.dataset[:][0], generator=np.random.default_rng(0)),
    "similarity.noisy": lambda s: la.similarity.noisy(
        s.loader.dataset[:][0], 0.1, generator=np.random.default_rng(0)
    ),
    "surface_shape": lambda s: la.surface_shape(s.plane.alphas, s.plane.betas, s.plane.values["loss"]),
    "to_dataset": lambda s: [la.to_dataset(result) for result in (s.curve, s.plane, s.pairs)],
}
# What takes neither a model nor anything made from one, or only reads a finished result.
WITHOUT_MODEL = {
    "gaussian_change",
    "sphere_change",
    "Criterion",
    "PlainMathsWarning",
    "figures",
    "from_matrix",
    "from_scipy",
    "from_tensors",
    "load",
    "results",
    "save",
    "similarity.mixup_runs",
    "supervised",
}
# Derivatives and descents do not exist under this policy; the refusal, too, leaves everything as it was.
REFUSED = {"recalibrate": {"expand", "local_pieces", "mine_w_peak", "mine_vvv_basin"}}


def test_every_public_function_stands_in_these_tables() -> None:
    """A new public name goes into one of the tables above."""
    names = set(la.__all__) - set(MODULES)
    for module in MODULES:
        found = vars(getattr(la, module)).items()
        home = {f"lossatlas.landscape.{module}", "lossatlas.landscape.alignment"}  # whose cka is similarity's, too
        own = {n for n, f in found if inspect.isfunction(f) and f.__module__ in home}
        names |= {f"{module}.{name}" for name in own if not name.startswith("_")}
    tables = [*EVALUATING, *COMPUTING, *WITHOUT_MODEL]
    assert sorted(tables) == sorted(names)


@pytest.mark.parametrize("name", EVALUATING)
def test_what_evaluates_the_loss_leaves_everything_as_it_was(name: str, scene: Scene) -> None:
    call, fuse = EVALUATING[name], scene.fuse
    fuse.reset()
    value = scene.objective(scene.objective.center)
    before = state_of(scene)
    fuse.reset()
    if name in REFUSED.get(scene.policy, ()):
        with pytest.raises(UserError, match="recalibrate"):
            call(scene)
        assert changed(before, state_of(scene)) == set()
        return
    call(scene)
    assert changed(before, state_of(scene)) == set()
    total = fuse.calls
    for limit in sorted({0, total // 3, 2 * total // 3, total - 1}):
        fuse.reset(limit)
        with pytest.raises(Blown):
            call(scene)
        assert changed(before, state_of(scene)) == set(), f"after the error at call {limit + 1} of {total}"
        fuse.reset()
        assert torch.equal(scene.objective(scene.objective.center), value)  # the private copy is whole, too


@pytest.mark.parametrize("name", COMPUTING)
def test_what_computes_with_given_tensors_leaves_them_as_they_were(name: str, scene: Scene) -> None:
    scene.fuse.reset()
    before = state_of(scene)
    COMPUTING[name](scene)
    assert changed(before, state_of(scene)) == set()
    assert scene.fuse.calls == 0


def test_the_state_shows_what_a_careless_function_would_do(scene: Scene) -> None:
    """Else the tests above could not fail."""
    careless: dict[str, Callable[[nn.Module], object]] = {
        "tensors": lambda model: model[1](torch.zeros(2, 2, 1, 1).double()),
        "gradients": lambda model: setattr(model[1].weight, "grad", model[1].weight.grad.clone()),
        "modes": lambda model: model.eval(),
        "attributes": lambda model: setattr(model[5], "forward", model[5].forward),
        "hooks": lambda model: model[0].register_forward_hook(lambda *_: None),
        "optimizer": lambda _: scene.optimizer.state[scene.model[0].weight]["momentum_buffer"].mul_(2),
        "torch": lambda _: torch.rand(1),
        "numpy": lambda _: np.random.rand(1),  # noqa: NPY002
        "python": lambda _: random.random(),
        "given": lambda _: scene.points[1].mul_(-1),
    }
    scene = scene_of(scene.policy)  # not the one that the other tests share
    for part, act in careless.items():
        before = state_of(scene)
        act(scene.model)
        assert changed(before, state_of(scene)) == {part}
