"""`make presets-small` goes on where it stopped, and says what failed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import published_layouts
from lossatlas import presets, registry
from lossatlas.tasks import data

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "presets_small.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("presets_small", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "presets_small", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.delenv("LOSSATLAS_DATA", raising=False)
    return module


def called(script: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path) -> int:
    arguments = ["--out", str(out), "--workers", "1", "--only", "digits"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    code: int = script.main()
    return code


def test_it_goes_on_where_it_stopped(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(script.SCALES, "digits", 2.0)
    assert called(script, monkeypatch, tmp_path) == 1
    assert "**exit code 2**" in capfd.readouterr().out.splitlines()[-1]
    monkeypatch.setitem(script.SCALES, "digits", 0.001)
    assert called(script, monkeypatch, tmp_path) == 0
    row = capfd.readouterr().out.splitlines()[-1]
    assert "2 cells, 4 models" in row
    monkeypatch.setattr(script.subprocess, "run", lambda *_words, **_options: pytest.fail("it is run again"))
    assert called(script, monkeypatch, tmp_path) == 0
    assert capfd.readouterr().out.splitlines()[-1] == row


def test_every_preset_has_a_command_and_its_data(script: ModuleType, tmp_path: Path) -> None:
    for preset in script.NAMES:
        names = script.data_of(preset)
        assert set(names.values()) <= registry.DATA.keys()
        words = script.command(preset, dict.fromkeys(names, tmp_path), tmp_path, 2)
        assert words[:3] == ["lossatlas", "run", preset]
        assert ("--workers" in words) == (preset in presets.names())
        assert [word.split("=")[0] for word in words if str(tmp_path) in word][2:] == list(names)


@pytest.mark.parametrize("name", published_layouts.PUBLISHED)
def test_made_data_are_read_as_published_ones(name: str, tmp_path: Path) -> None:
    folder = published_layouts.write(name, tmp_path / "data", train=24, test=12)
    raw = data.load(name, str(folder))
    assert (len(raw.train_inputs), len(raw.test_inputs)) == (24, 12)
    if name not in published_layouts.TEXT:
        facts = registry.DATA[name].facts
        assert facts is not None
        assert (raw.train_inputs.shape[1:], raw.classes) == (facts.input_shape, facts.classes)
