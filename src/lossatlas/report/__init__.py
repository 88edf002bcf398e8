"""One self-contained HTML page about results: it reads them and computes nothing that other modules do not.

From the bottom up: `markup`, `words`, `plain`, `arrays`, `page` (any page); `transitions`, `sentences`,
`grid_arrays`, `grid_texts`, `grid` (grids of runs); `compare` (two of them);
`local_texts`, `local` (single models). `assets` holds the style and the scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["of_grid", "of_local", "of_two"]


def of_grid(tree: xr.DataTree, labels: xr.Dataset, *, source: str = "") -> str:
    """The page of a results tree and its labels (`phases.label`) as HTML; `source` is how its reader names it."""
    from lossatlas.report import grid, page

    return page.render(grid.page(tree, labels, source=source))


def of_two(first: tuple[str, xr.DataTree, xr.Dataset], second: tuple[str, xr.DataTree, xr.Dataset]) -> str:
    """The page that compares two results trees on the cells that both have, each as (source, tree, labels).

    They are called by their names, or by their sources where the names are the same. Raises UserError if their
    axes differ or they have no cell in common.
    """
    from lossatlas.report import compare, grid_texts, page

    names = [grid_texts.name_of(tree) for _, tree, _ in (first, second)]
    if names[0] == names[1]:
        names = [first[0], second[0]]
    runs = [
        compare.Run(name, tree, labels) for name, (_, tree, labels) in zip(names, (first, second), strict=True)
    ]
    return page.render(compare.page(*runs))


def of_local(datasets: Mapping[str, xr.Dataset]) -> str:
    """The page of results of single models (`lossatlas.load`), by the names under which it shows them."""
    from lossatlas.report import local, page

    return page.render(local.page(datasets))
