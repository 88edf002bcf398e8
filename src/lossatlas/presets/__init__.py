"""The named experiments that come with lossatlas, as spec files: grids, and studies of single models."""

from __future__ import annotations

from importlib import resources

STUDIES = ("xu2024",)  # the folders whose files are studies
SHARED = "_models"  # of such a folder: the file of what its studies share


def names() -> list[str]:
    """The names of all presets that are grids, as `digits` or `yang2021/fig3`."""
    return [name for name in _all() if name.split("/")[0] not in STUDIES]


def studies() -> list[str]:
    """The names of all presets that are studies, as `xu2024/fig7`, by their numbers."""
    found = [name for name in _all() if name.split("/")[0] in STUDIES]
    return sorted(found, key=lambda name: (len(name), name))


def texts() -> list[str]:
    """The names that `text` knows: all presets, and what studies share, as `xu2024/_models`."""
    return [*names(), *studies(), *(f"{folder}/{SHARED}" for folder in STUDIES)]


def text(name: str) -> str:
    """The TOML text of a preset, or of what studies share; raises KeyError if there is none of this name."""
    if name not in texts():
        raise KeyError(name)
    return resources.files(__name__).joinpath(*f"{name}.toml".split("/")).read_text(encoding="utf-8")


def shared(folder: str) -> str:
    """The TOML text that the studies of a folder share."""
    return text(f"{folder}/{SHARED}")


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
