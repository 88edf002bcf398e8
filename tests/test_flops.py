"""Operations of models against closed forms, and what they take on a machine of a given speed."""

import pytest

from lossatlas.registry import Facts
from lossatlas.specs import Task
from lossatlas.sweep import flops

IMAGES = Facts(n_train=50_000, n_test=10_000, input_shape=(3, 32, 32), classes=10)


def task(**model: object) -> Task:
    return Task.model_validate({"data": {"name": "cifar10"}, "model": model})


def test_operations_of_a_perceptron() -> None:
    found = flops.work_of(task(name="mlp", width=128), IMAGES)
    assert found.flops == 3 * 2 * (3072 * 128 + 128 * 10)
    assert found.parameters == 394_634
    assert found.calls == flops.CALLS * 4  # flatten, linear, ReLU, linear


def test_operations_of_a_resnet() -> None:
    # Multiply-adds of a k x k convolution: outputs x k^2 x channels in; here of width 64, layer by layer.
    stem = 32 * 32 * 9 * 3 * 64
    first = 4 * 32 * 32 * 9 * 64 * 64
    later = 0
    for channels, side in ((128, 16), (256, 8), (512, 4)):
        half = channels // 2
        later += side * side * (9 * half * channels + 3 * 9 * channels * channels + half * channels)
    found = flops.work_of(task(name="resnet18", width=64), IMAGES)
    assert found.flops == 3 * 2 * (stem + first + later + 512 * 10)
    assert found.parameters == 11_173_962


def test_costs_follow_the_speed() -> None:
    machine = flops.Machine(per_call=2e-6, per_flop=3e-12)
    known = task(name="mlp", width=128)
    (cost,) = flops.costs_on(machine)({"one": known}, IMAGES).values()
    assert cost.gradients(256, 128) == pytest.approx(2 * 16 * 2e-6 + 256 * 6 * 394_496 * 3e-12, rel=1e-12)


def test_this_machine_has_a_speed() -> None:
    found = flops.this_machine()
    assert 1e-13 < found.per_flop < 1e-7  # between 10 MFLOP/s and 10 TFLOP/s
    assert 0 <= found.per_call < 1
