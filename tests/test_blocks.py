"""Diagonal blocks against the dense Hessian; operators of other libraries in the algorithms."""

import copy
import math
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor, nn

from cases import BY_NAME, CASES, Case
from lossatlas.errors import UserError
from lossatlas.landscape.adapters import from_scipy, from_tensors
from lossatlas.landscape.blocks import blocks
from lossatlas.landscape.density import density
from lossatlas.landscape.hutchinson import hutchinson
from lossatlas.landscape.lanczos import eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import SymmetricOperator, hessian
from oracles.dense import dense_hessian, gauss_newton

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.jit on import
    from curvlinops import GGNLinearOperator


def objective_of(case: Case, **options: object) -> Objective:
    return Objective(case.model, case.batches, case.criterion, **options)


def dense_of(operator: SymmetricOperator) -> Tensor:
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


# ---- blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_layers_are_the_diagonal_blocks_of_the_dense_hessian(case: Case) -> None:
    whole = dense_hessian(case.model, case.batches, case.criterion)
    found = blocks(objective_of(case, chunk=4))
    start = 0
    for name, block in found.items():
        stop = start + block.size
        expected = whole[start:stop, start:stop]  # a layer's parameters stand together in the flat vector
        # another order of some hundred float64 terms
        torch.testing.assert_close(dense_of(block), expected, rtol=1e-10, atol=1e-12)
        owner = case.model.get_submodule(name)
        assert block.size == sum(p.numel() for p in owner.parameters(recurse=False)) or case.name == "tied"
        assert block.matvecs == block.size
        start = stop
    assert start == len(whole)


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_groups_by_regular_expressions(memory: int) -> None:
    case = BY_NAME["conv_batchnorm"]
    objective = objective_of(case)
    whole = dense_hessian(case.model, case.batches, case.criterion)
    names = {"norms": r"^[15]\.", "biases": "bias", "all": ""}
    found = blocks(objective, names, memory=memory)
    assert list(found) == list(names)
    positions = objective.layout.unflatten(torch.arange(objective.layout.size))
    for block in found.values():
        chosen = block.layout.flatten(positions)
        expected = whole[chosen][:, chosen]
        torch.testing.assert_close(dense_of(block), expected, rtol=1e-10, atol=1e-12)


def test_blocks_share_their_graphs() -> None:
    objective = objective_of(BY_NAME["mlp_tanh"])
    calls = 0
    original = objective.loss_sum

    def counted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        return original(*arguments)

    objective.loss_sum = counted
    for block in blocks(objective).values():
        eigenpairs(block, 1, seed=0)
    pieces = len(list(objective.batches()))
    assert calls == pieces + 1  # and once more for the first piece, to measure its memory


def test_a_parameter_of_the_model_itself_and_another_theta() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(3)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.layer(x).tanh()

    torch.manual_seed(0)
    model, case = Scaled().double(), BY_NAME["mlp_tanh"]
    objective = Objective(model, case.batches, case.criterion)
    theta = objective.center + 0.3
    found = blocks(objective, theta=theta)
    assert list(found) == ["scale", "layer"]
    moved = copy.deepcopy(model)
    moved.load_state_dict(objective.unflatten(theta))
    expected = dense_hessian(moved, case.batches, case.criterion)[:3, :3]
    torch.testing.assert_close(dense_of(found["scale"]), expected, rtol=1e-10, atol=1e-12)


def test_a_group_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match=r"No parameter is in block head = 'fc'.*0\.weight"):
        blocks(objective_of(BY_NAME["mlp_relu"]), {"first": r"^0\.", "head": "fc"})
    block = blocks(objective_of(BY_NAME["mlp_relu"]))["0"]
    with pytest.raises(UserError, match=r"takes vectors of shape \(30,\)"):
        block @ torch.ones(3)


# ---- operators of other libraries ---------------------------------------------------------------------------


def curvlinops_ggn(case: Case) -> GGNLinearOperator:
    model = copy.deepcopy(case.model).eval()
    data = case.batches
    return GGNLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_curvlinops_ggn_in_the_algorithms() -> None:
    case = BY_NAME["mlp_tanh"]
    ggn = gauss_newton(case.model, case.batches, case.criterion)
    op = from_tensors(curvlinops_ggn(case))
    assert (op.size, op.dtype, op.device) == (len(ggn), torch.float64, torch.device("cpu"))
    exact = torch.linalg.eigvalsh(ggn)
    found = eigenpairs(op, 3, tol=1e-9, seed=0)
    # residual 1e-9 of the largest bounds the error
    torch.testing.assert_close(found.eigenvalues, exact.flip(0)[:3], rtol=0, atol=2e-9 * exact[-1].item())
    traced = hutchinson(op, rel=0.1, seed=0)
    assert abs(traced.value - exact.sum().item()) < 4 * traced.stderr  # seeded
    shares = density(op, probes=4, steps=10, seed=0)
    assert abs(shares.trace.value - exact.sum().item()) < 6 * shares.trace.stderr  # t with 3 degrees of freedom
    assert shares.mass_below(-1e-10).value == 0  # a GGN of a convex loss has no negative eigenvalue


@pytest.mark.parametrize("kind", ["LinearOperator", "sparse", "array", "matvec only", "float32"])
def test_scipy_operators(kind: str) -> None:
    draw = np.random.default_rng(0).standard_normal((30, 30))
    matrix = (draw + draw.T) / 2
    given = {
        "LinearOperator": aslinearoperator(matrix),
        "sparse": scipy.sparse.csr_array(matrix),
        "array": matrix,
        "matvec only": LinearOperator(matrix.shape, matvec=lambda v: matrix @ v, dtype=matrix.dtype),
        "float32": aslinearoperator(matrix.astype(np.float32)),
    }[kind]
    op = from_scipy(given)
    single = kind == "float32"
    assert op.dtype == (torch.float32 if single else torch.float64)
    found = eigenpairs(op, 2, which="both", tol=1e-5 if single else 1e-10, max_matvecs=60, seed=0)
    exact = torch.from_numpy(np.linalg.eigvalsh(matrix))[[29, 28, 0, 1]]
    scale = np.abs(matrix).sum(1).max()
    torch.testing.assert_close(found.eigenvalues, exact, rtol=0, atol=(1e-5 if single else 1e-10) * scale)
    assert math.isclose(density(op, probes=3, seed=0).moment(0).value, 30, rel_tol=1e-6 if single else 1e-12)


def test_what_is_not_symmetric_is_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 20))
    with pytest.raises(UserError, match="not symmetric"):
        from_scipy(aslinearoperator(rows))
    with pytest.raises(UserError, match="must be square"):
        from_scipy(rows[:3])
    with pytest.raises(UserError, match="must be real"):
        from_scipy(np.eye(3) * 1j)
    with pytest.raises(UserError, match="not symmetric"):
        from_tensors(torch.from_numpy(rows))


def test_the_adapters_agree_with_our_own_operator() -> None:
    operator = hessian(objective_of(BY_NAME["mlp_relu"]))
    adapted = from_tensors(dense_of(operator))
    vector = torch.ones(operator.size, dtype=torch.float64)
    torch.testing.assert_close(adapted @ vector, operator @ vector, rtol=1e-10, atol=1e-12)
