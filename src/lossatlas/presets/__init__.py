"""The named experiments that come with lossatlas, as spec files: grids, and studies of single models."""

from __future__ import annotations

from importlib import resources

STUDIES = ("xu2024",)  # the folders whose files are studies; `_models.toml` is what they share


def names() -> list[str]:
    """The names of all presets that are grids, as `digits` or `yang2021/fig3`."""
    return [name for name in _all() if name.split("/")[0] not in STUDIES]


def studies() -> list[str]:
    """The names of all presets that are studies, as `xu2024/fig7`, by their numbers."""
    found = [name for name in _all() if name.split("/")[0] in STUDIES]
    return sorted(found, key=lambda name: (len(name), name))


def text(name: str) -> str:
    """The TOML text of a preset; raises KeyError if there is none of this name."""
    if name not in _all():
        raise KeyError(name)
    return resources.files(__name__).joinpath(*f"{name}.toml".split("/")).read_text(encoding="utf-8")


def shared(folder: str) -> str:
    """The TOML text that the studies of a folder share."""
    return resources.files(__name__).joinpath(folder, "_models.toml").read_text(encoding="utf-8")


def _all() -> list[str]:
    root = resources.files(__name__)
    found = []
    for entry in root.iterdir():
        if entry.name.endswith(".toml"):
            found.append(entry.name.removesuffix(".toml"))
        elif entry.is_dir():
            inner = [f.name.removesuffix(".toml") for f in entry.iterdir() if f.name.endswith(".toml")]
            found += [f"{entry.name}/{name}" for name in inner if not name.startswith("_")]
    return sorted(found)
