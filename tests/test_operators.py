"""The Hessian against a dense one, against curvlinops, in pieces and with or without kept graphs."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import BY_NAME, CASES, Case
from lossatlas.errors import UserError
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import HessianOperator, from_matrix, hessian
from oracles.dense import dense_hessian

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.jit on import
    from curvlinops import HessianLinearOperator

# Sums of some hundred float64 terms in another order: 1e-12 relative to the largest entry is rounding with room.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def objective_of(case: Case, **options: object) -> Objective:
    return Objective(case.model, case.batches, case.criterion, **options)


def dense_of(operator: HessianOperator) -> Tensor:
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_equals_the_dense_hessian_on_ragged_batches(case: Case) -> None:
    expected = dense_hessian(case.model, case.batches, case.criterion)
    found = dense_of(hessian(objective_of(case)))
    torch.testing.assert_close(found, expected, **CLOSE)


# curvlinops takes neither tied parameters nor, without further arguments, batches that are dicts
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in ("siamese", "tied")], ids=repr)
def test_equals_curvlinops(case: Case) -> None:
    loss = nn.CrossEntropyLoss() if "mse" not in case.name else nn.MSELoss()
    model = copy.deepcopy(case.model).eval()
    params = list(model.parameters())
    theirs = HessianLinearOperator(model, loss, params, case.batches, check_deterministic=False)
    objective = objective_of(case)
    vector = torch.randn(objective.layout.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(hessian(objective) @ vector, theirs @ vector, **CLOSE)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_kept_graphs_change_no_bit(case: Case) -> None:
    objective = objective_of(case, chunk=4)
    vectors = torch.randn(
        objective.layout.size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    kept, partly, anew = (hessian(objective, memory=m) for m in (1 << 30, 0, 0))
    partly._memory = (
        kept._saved_bytes(next(iter(objective.batches()))) * 3 // 2
    )  # of some five pieces: the first one
    products = [[op @ vectors, op @ vectors] for op in (kept, partly, anew)]
    assert len(kept._kept) == len(list(objective.batches()))
    assert 0 < len(partly._kept) < len(kept._kept)
    assert not anew._kept
    for first, second in products:
        assert torch.equal(first, products[0][0])
        assert torch.equal(second, products[0][0])
    assert [op.matvecs for op in (kept, partly, anew)] == [6, 6, 6]


def test_estimated_memory_is_that_of_the_saved_activations() -> None:
    model = nn.Sequential(nn.Linear(10, 1000), nn.Tanh(), nn.Linear(1000, 2))
    data = [(torch.randn(64, 10), torch.randint(0, 2, (64,)))]
    operator = hessian(Objective(model, data, supervised(F.cross_entropy)))
    bytes_of_one = 64 * 1000 * 4
    saved = operator._saved_bytes(data[0])
    # tanh, its gradient and their like: a few tensors of the hidden layer's size, certainly not ten
    assert 2 * bytes_of_one <= saved <= 10 * bytes_of_one


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_agree(chunk: int) -> None:
    case = BY_NAME["conv_batchnorm"]
    expected = dense_of(hessian(objective_of(case, chunk=3)))
    torch.testing.assert_close(dense_of(hessian(objective_of(case, chunk=chunk))), expected, **CLOSE)


def test_at_another_theta_and_with_recalibrated_statistics() -> None:
    case = BY_NAME["conv_batchnorm"]
    objective = objective_of(case, batchnorm="recalibrate")
    theta = objective.center + 0.1
    model = conv_with(case.model, objective, theta)
    expected = dense_hessian(model, case.batches, case.criterion)
    torch.testing.assert_close(dense_of(hessian(objective, theta)), expected, **CLOSE)


def conv_with(model: nn.Module, objective: Objective, theta: Tensor) -> nn.Module:
    """The model with the parameters of theta and its recalibrated statistics written into it."""
    model = copy.deepcopy(model)
    model.load_state_dict({**objective.unflatten(theta), **objective.buffers(theta)})
    return model


class BatchStatistics(nn.BatchNorm1d):
    """BatchNorm on the statistics of the batch, in plain operations."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(0)
        return self.weight * centred / (centred.square().mean(0) + self.eps).sqrt() + self.bias


def test_batch_statistics_are_differentiated_through() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)]
    model = nn.Sequential(*layers).double()
    by_hand = copy.deepcopy(model)
    by_hand[1] = BatchStatistics(5).double()
    case = BY_NAME["mlp_relu"]
    objective = Objective(model, case.batches, case.criterion, batchnorm="batch")
    expected = dense_hessian(by_hand, case.batches, case.criterion)
    torch.testing.assert_close(dense_of(hessian(objective)), expected, **CLOSE)


def test_chosen_parameters_give_a_block() -> None:
    case = BY_NAME["mlp_relu"]
    whole = dense_of(hessian(objective_of(case)))
    block = dense_of(hessian(objective_of(case, params=r"^0\.")))
    torch.testing.assert_close(block, whole[: len(block), : len(block)], **CLOSE)


def test_a_loss_linear_in_the_parameters_has_a_zero_hessian() -> None:
    model = nn.Linear(3, 1, bias=False)
    objective = Objective(model, [torch.randn(4, 3)], lambda model, x: model(x).mean())
    assert torch.equal(hessian(objective) @ torch.ones(3), torch.zeros(3))


def test_what_cannot_be_differentiated_twice_names_the_way_out() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(_: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(_: object, g: Tensor) -> Tensor:
            return g * 1.0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.layer(x).tanh())

    objective = Objective(Model(), [(torch.randn(4, 3), torch.randn(4, 2))], supervised(F.mse_loss))
    with pytest.raises(UserError, match=r"cannot differentiate twice.*params"):
        hessian(objective) @ torch.ones(objective.layout.size)


def test_the_callers_grad_mode_and_random_state_do_not_matter() -> None:
    objective = objective_of(BY_NAME["mlp_tanh"])
    vector = torch.ones(objective.layout.size, dtype=torch.float64)
    expected, state = hessian(objective) @ vector, torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(hessian(objective) @ vector, expected)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_refuses_vectors_of_another_size() -> None:
    operator = hessian(objective_of(BY_NAME["mlp_relu"]))
    with pytest.raises(UserError, match="takes vectors of shape"):
        operator @ torch.ones(3, dtype=torch.float64)


def test_from_matrix() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    operator = from_matrix(matrix)
    assert (operator.size, operator.dtype, operator.device) == (2, torch.float32, torch.device("cpu"))
    assert torch.equal(operator @ torch.ones(2), torch.tensor([3.0, 4.0]))
    with pytest.raises(UserError, match="not symmetric"):
        from_matrix(torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    with pytest.raises(UserError, match="real square matrix"):
        from_matrix(torch.ones(2, 3))
    with pytest.raises(UserError, match="real square matrix"):
        from_matrix(torch.ones(2, 2, dtype=torch.int64))
