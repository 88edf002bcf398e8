"""Weights from files: what is read, and how each kind of wrong file is refused without running anything in it."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lossatlas.errors import FileError
from lossatlas.settings import content_key
from lossatlas.sweep.store import Record, Store
from lossatlas.tasks import weights


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_loaded(path: Path, expected: nn.Module) -> weights.Weights:
    model = network(1)
    found = weights.read(path)
    weights.load(model, found)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    return found


FORMATS: dict[str, Any] = {
    "safetensors": lambda s, p: safetensors.torch.save_file(s, p),
    "plain": lambda s, p: torch.save(s, p),
    "legacy": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
    "state_dict": lambda s, p: torch.save({"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}}, p),
    "model_state_dict": lambda s, p: torch.save({"model_state_dict": s, "loss": 0.5}, p),
    "model": lambda s, p: torch.save({"model": s}, p),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])  # the content decides
def test_every_format_is_read(write: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    write(state(network()), path)
    found = assert_loaded(path, network())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.notes == ()


@pytest.mark.parametrize("length", [128, 640, 1152])  # of the header; its low bytes are those of a pickle
def test_safetensors_that_begin_as_a_pickle_are_read(length: int, tmp_path: Path) -> None:
    tensors, path = state(network()), tmp_path / "w"
    if length == 128:
        tensors = {"3.bias": tensors["3.bias"]}
    told = next(
        told
        for told in ({"about": "x" * n} for n in range(length))
        if int.from_bytes(safetensors.torch.save(tensors, told)[:8], "little") == length
    )
    content = safetensors.torch.save(tensors, told)
    assert content[0] == 0x80
    path.write_bytes(content)
    found = weights.read(path)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.tensors.items())
    assert found.tensors.keys() == tensors.keys()
    path.write_bytes(content[:-1])
    with pytest.raises(FileError, match="is damaged, or holds no weights"):
        weights.read(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed_and_told(prefix: str, tmp_path: Path) -> None:
    torch.save({prefix + name: t for name, t in state(network()).items()}, tmp_path / "w.pt")
    found = assert_loaded(tmp_path / "w.pt", network())
    assert all("prefix" in note and "9 names" in note for note in found.notes)
    assert len(found.notes) == prefix.count(".")


class Holder(nn.Module):
    """Keeps a network under the name of DataParallel's prefix."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner


@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_prefix_that_is_the_models_own_stays(depth: int, wrap: str, tmp_path: Path) -> None:
    def held(seed: int) -> nn.Module:
        return Holder(network(seed)) if depth == 1 else Holder(Holder(network(seed)))

    torch.save({wrap + name: t for name, t in state(held(0)).items()}, tmp_path / "w.pt")
    model, found = held(1), weights.read(tmp_path / "w.pt")
    assert [note.split("'")[1] for note in weights.fitted(found, model.state_dict()).notes] == [
        f"{part}." for part in wrap.split(".")[:-1]
    ]
    weights.load(model, found)
    assert all(torch.equal(t, held(0).state_dict()[name]) for name, t in model.state_dict().items())


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    tensors = state(network())
    tensors["module.0.weight"] = tensors.pop("0.weight")
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(FileError, match=r"1 missing \(0.weight\); 1 unexpected \(module.0.weight\)"):
        weights.load(network(), weights.read(tmp_path / "w.pt"))


def test_what_pytorch_lets_be_missing_may_be_missing(tmp_path: Path) -> None:
    tensors = {n: t for n, t in state(network()).items() if not n.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt", network())
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    safetensors.torch.save_model(tied, str(tmp_path / "tied.safetensors"))  # leaves the second name out
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other[1].weight = other[0].weight
    found = weights.read(tmp_path / "tied.safetensors")
    assert len(found.tensors) == 3
    weights.load(other, found)
    assert torch.equal(other[1].weight, tied[0].weight)


def test_everything_that_does_not_fit_is_listed_with_counts_and_nothing_is_changed(tmp_path: Path) -> None:
    tensors = state(network())
    tensors["3.weight"] = torch.zeros(5, 4)
    tensors["1.weight"] = torch.ones(4, dtype=torch.long)
    tensors |= {f"extra.{i}": torch.zeros(1) for i in range(8)}
    del tensors["0.bias"], tensors["3.bias"]
    torch.save(tensors, tmp_path / "w.pt")
    model = network()
    before = state(model)
    with pytest.raises(FileError) as refused:
        weights.load(model, weights.read(tmp_path / "w.pt"))
    text = str(refused.value)
    for part in (
        "w.pt",
        "2 missing (0.bias, 3.bias)",
        "8 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4, ...)",
        "1 of another shape (3.weight [5, 4] for [2, 4])",
        "1 of another kind of number (1.weight torch.int64 for torch.float32)",
    ):
        assert part in text
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_pickles_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), "zip.pt")
    torch.save({"state_dict": {"a": Trap()}}, "legacy.pt", _use_new_zipfile_serialization=False)
    Path("raw.pt").write_bytes(pickle.dumps(Trap()))
    torch.save(network(), "whole.pt")
    for name in ("zip.pt", "legacy.pt", "raw.pt", "whole.pt"):
        with pytest.raises(FileError, match="state_dict"):
            weights.read(Path(name))
    assert not Path("sprung").exists()


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, 0.97])
def test_a_damaged_file_is_refused(write: Any, keep: float, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    write(state(network()), path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(FileError, match=r"w\.pt"):
        weights.load(network(), weights.read(path))


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    for name, content in (("list", [1, 2]), ("empty", {}), ("numbers", {"a": 1.0})):
        torch.save(content, tmp_path / name)
        with pytest.raises(FileError, match=name):
            weights.read(tmp_path / name)
    (tmp_path / "text.pt").write_text("these are no weights at all")
    with pytest.raises(FileError, match="neither a safetensors nor a torch"):
        weights.read(tmp_path / "text.pt")
    with pytest.raises(FileError, match=r"nowhere\.pt cannot be read: No such file"):
        weights.read(tmp_path / "nowhere.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="no training step"):
        weights.read(tmp_path / "folder")


def test_a_step_of_a_runs_store_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    arrays = {"best": {name: t.numpy() for name, t in state(network()).items()}}
    arrays["final"] = {name: t.numpy() for name, t in state(network(5)).items()}
    store.commit("train", {"seed": 0}, Record({}, "ok", ""), meta={}, arrays=arrays)
    store.commit("train", {"seed": 1}, Record({}, "diverged", "epoch 2"), meta={})
    folder = store.folder("train", content_key({"seed": 0}))
    assert assert_loaded(folder, network()).path == folder / "best.safetensors"
    assert_loaded(folder / "final.safetensors", network(5))
    with pytest.raises(FileError, match=r"status is diverged \(epoch 2\)"):
        weights.read(store.folder("train", content_key({"seed": 1})))
    best = folder / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(FileError, match="check sum"):
        weights.read(folder)
