"""The landscape of anybody's model and loss: five that are not `model(x)` with cross entropy.

    python examples/own_loss.py

Each prints one number of its landscape with its error. Nothing of the model is changed by it.
"""

import torch
import torch.nn.functional as F
from torch import nn

import lossatlas as la

torch.manual_seed(0)


class TextClassifier(nn.Module):
    """Takes and returns what models of Hugging Face `transformers` do: named tensors in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, labels=None):
        states = self.layer(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        seen = attention_mask.unsqueeze(2)
        logits = self.head((states * seen).sum(1) / seen.sum(1))
        return {"logits": logits, "loss": None if labels is None else F.cross_entropy(logits, labels)}


def dict_batches():
    """Batches are dicts, and the model computes its loss itself: any function (model, batch) -> mean loss does.

    Fused attention cannot be differentiated twice; an la.PlainMathsWarning says what is done instead.
    """
    lengths = torch.randint(3, 12, (40,))
    batch = {
        "input_ids": torch.randint(50, (40, 12)),
        "attention_mask": (torch.arange(12) < lengths.unsqueeze(1)).long(),
        "labels": torch.randint(3, (40,)),
    }
    objective = la.Objective(TextClassifier(), [batch], lambda model, batch: model(**batch)["loss"])
    print("dict batches:      ", la.eigenpairs(la.hessian(objective), 1, seed=0))


def regression():
    """Losses of PyTorch with a `reduction` argument become a Criterion, which knows the loss of every sample."""
    x = torch.linspace(-1, 1, 100).unsqueeze(1)
    model = nn.Sequential(nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 1))
    objective = la.Objective(model, [(x, torch.sin(3 * x))], la.supervised(F.mse_loss))
    print("regression:        ", la.trace(objective, seed=0))


def physics():
    """A loss with derivatives of the outputs inside: the residual of u'' + u = 0 with u(0) = 0, u'(0) = 1."""

    def loss(model, points):
        x = points.clone().requires_grad_()
        u = model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        return (ddu + u).square().mean() + u[0].square().mean() + (du[0] - 1).square().mean()

    points = torch.linspace(0, 3, 50).unsqueeze(1)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    objective = la.Objective(model, [points], loss, dtype=torch.float64)
    print("physics:           ", la.eigenpairs(la.hessian(objective), 1, which="both", seed=0))


def tied_weights():
    """An autoencoder that uses one matrix twice: a parameter counts once, under its first name."""

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
            self.decoder.weight = self.encoder.weight

        def forward(self, x):
            return self.decoder(F.relu(self.encoder(x)))

    x = torch.randn(80, 6)
    objective = la.Objective(Autoencoder(), [(x, x)], la.supervised(F.mse_loss))
    print(f"tied weights:       {objective.layout.size} parameters,", la.trace(objective, seed=0))


def frozen_backbone():
    """What does not require a gradient is no direction of the landscape; `params=` chooses by name beside that."""
    backbone = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU()).requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(32, 4))
    data = [(torch.randn(60, 10), torch.randint(4, (60,)))]
    objective = la.Objective(model, data, la.supervised(F.cross_entropy))
    curve = la.line(objective, la.gaussian(objective, seed=0), classes=4)
    print(f"frozen backbone:    {objective.layout.size} parameters,", curve)


if __name__ == "__main__":
    dict_batches()
    regression()
    physics()
    tied_weights()
    frozen_backbone()
