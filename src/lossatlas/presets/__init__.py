"""The named experiments that come with lossatlas, as spec files."""

from __future__ import annotations

from importlib import resources


def names() -> list[str]:
    """The names of all presets, as `digits` or `yang2021/fig3`."""
    root = resources.files(__name__)
    found = []
    for entry in root.iterdir():
        if entry.name.endswith(".toml"):
            found.append(entry.name.removesuffix(".toml"))
        elif entry.is_dir():
            inner = [f.name.removesuffix(".toml") for f in entry.iterdir() if f.name.endswith(".toml")]
            found += [f"{entry.name}/{name}" for name in inner]
    return sorted(found)


def text(name: str) -> str:
    """The TOML text of a preset; raises KeyError if there is none of this name."""
    if name not in names():
        raise KeyError(name)
    return resources.files(__name__).joinpath(*f"{name}.toml".split("/")).read_text(encoding="utf-8")
