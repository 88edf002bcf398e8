"""Libraries of models that tests compare with; a test that needs one is skipped where it is missing."""

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch


def torchvision_models() -> Any:
    """torchvision.models; its import fails beside a PyTorch of another build until its operators are known."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return importlib.import_module("torchvision.models")


def transformers() -> Any:
    """Hugging Face Transformers, which imports torchvision where that is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        torchvision_models()
    return pytest.importorskip("transformers", reason="transformers is not installed")
