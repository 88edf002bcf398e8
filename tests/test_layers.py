"""What goes into a module and comes out of it: copies by hand, whatever the network does afterwards."""

import pytest
import torch
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape.layers import watched


class Net(nn.Module):
    """A layer, an activation in place, a layer used twice, one that gives a tuple, one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.relu = nn.ReLU(inplace=True)
        self.twice = nn.Linear(4, 4)
        self.cell = nn.LSTM(4, 2, batch_first=True)
        self.idle = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.relu(self.first(x))))
        return self.cell(x[:, None])[0][:, 0]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_inputs_and_outputs_are_kept_as_they_were(net: Net) -> None:
    x = torch.randn(5, 3)
    before = net.first(x).detach()
    assert bool((before < 0).any())  # the activation in place changes it
    for layer, side, expected in (
        ("first", "inputs", x),
        ("first", "outputs", before),
        ("relu", "inputs", before),
        ("relu", "outputs", before.relu()),
    ):
        with watched(net, layer, side) as found:
            net(x)
            assert torch.equal(found(), expected), (layer, side)
            net(2 * x)
            assert found().shape == expected.shape  # the next pass begins anew
    assert not net.first._forward_hooks
    assert not net.relu._forward_pre_hooks


def test_what_cannot_be_told_is_refused(net: Net) -> None:
    with pytest.raises(UserError, match=r"no layer 'frist'; its modules are first, relu, .* Did you mean first"):
        watched(net, "frist", "outputs").__enter__()
    for layer, side, message in (
        ("twice", "outputs", "'twice' works 2 times"),
        ("idle", "inputs", "'idle' works 0 times"),
        ("cell", "outputs", "'cell' gives no tensor"),
    ):
        with watched(net, layer, side) as found:
            net(torch.randn(2, 3))
            with pytest.raises(UserError, match=message):
                found()
