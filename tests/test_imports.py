"""The layers: a module imports only from what stands above it, in functions and for type checks too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lossatlas

SOURCE = Path(lossatlas.__file__).parent

# From the bottom up, as in docs/architecture.md. A new module has to find its place here.
LAYERS = [
    "errors",
    "files",
    "json_files",
    "registry",
    "unpickle",
    "seeding",
    "settings",
    "landscape",
    "results",
    "slice_results",
    "spectrum_results",
    "probe_results",
    "pair_results",
    "local_results",
    "measures",
    "specs",
    "presets",
    "tasks",
    "training",
    "summary",
    "sweep",
    "published",
    "transition",
    "phase_rule",
    "phases",
    "findings",
    "figures",
    "studies",
    "report",
    "cli",
    "__main__",
]


# The one module that points upwards, inside functions: the methods of a result. No other edge may be listed here.
UPWARDS = {"lossatlas.landscape.result": {"lossatlas.local_results", "lossatlas.figures"}}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of lossatlas that a module names, wherever in it; of a package its part that is meant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "lossatlas")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module and node.module.split(".")[0] == "lossatlas":
                for alias in node.names:
                    part = f"{node.module}.{alias.name}"
                    yield part if part in MODULES else node.module


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
GRAPH = {name: set(imported(tree)) - {name} - UPWARDS.get(name, set()) for name, tree in TREES.items()}


def layer(name: str) -> int:
    """The number of a module's layer; the package itself stands above all."""
    parts = name.split(".")
    if len(parts) == 1:
        return len(LAYERS)
    assert parts[1] in LAYERS, f"{name} has no place in LAYERS"
    return LAYERS.index(parts[1])


def test_the_walk_sees_every_kind_of_import() -> None:
    program = """
from lossatlas import files, __doc__
from lossatlas.tasks import data
import lossatlas.phases, os
def f():
    from lossatlas.sweep.plan import Plan
"""
    found = set(imported(ast.parse(program)))
    expected = {"files", "tasks.data", "phases", "sweep.plan"}
    assert found == {"lossatlas", *(f"lossatlas.{name}" for name in expected)}
    assert len(MODULES) > 40
    assert sum(map(len, GRAPH.values())) > 100


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_layers_below(name: str) -> None:
    wrong = {other for other in GRAPH[name] if layer(other) > layer(name)}
    assert not wrong, f"{name} imports {', '.join(sorted(wrong))} from above"


def test_results_point_upwards_from_their_methods_alone() -> None:
    for name, upwards in UPWARDS.items():
        methods = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef)]
        assert {other for method in methods for other in imported(method)} == upwards
        program = f"import sys, {name}; print(*sorted(n for n in sys.modules if n.startswith('lossatlas')))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert not upwards & set(done.stdout.split())


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_every_layer_is_there() -> None:
    there = {name.split(".")[1] for name in MODULES if "." in name}
    assert set(LAYERS) == there
