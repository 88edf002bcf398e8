"""The report in a browser, from disk: what it shows is what the results hold and what the commands say."""

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.interpolate import RegularGridInterpolator
from typer.testing import CliRunner

from browser import chromium, downloaded, opened
from grids import build
from lossatlas import local_results, phases, report, results, specs, summary
from lossatlas.cli.app import app
from lossatlas.cli.explore import labelled
from lossatlas.figures.boundaries import boundaries
from lossatlas.figures.grid import grid_of
from report_material import SPEC, full, single_models

WIDTHS = (1440, 390)
AUTO = {**SPEC, "phases": {"auto": True}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def saved(folder: Path, tree: xr.DataTree) -> tuple[Path, Path]:
    """The results file and its page, as the command makes it."""
    source, path = folder / "results.nc", folder / "report.html"
    results.save(tree, source)
    loaded = results.load(source)
    path.write_text(report.of_grid(loaded, labelled(loaded), source=str(source)), encoding="utf-8")
    return source, path


def run(*arguments: str) -> None:
    """A command in this process: 20 of them in processes of their own take half a minute."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return saved(tmp_path_factory.mktemp("report"), full())


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def number(text: str) -> float:
    return float(text) if text else math.nan


def same_labels(page: Any, folder: Path) -> None:
    """The labels, margins and probabilities of the page are those of the command that the page names."""
    named = shlex.split(page.locator("#phases .command").inner_text())
    assert named[:2] == ["lossatlas", "phases"]
    run(*named[1:], "--out", str(folder / "labels.csv"))
    theirs = rows_of((folder / "labels.csv").read_bytes())
    axes = [name for name in theirs[0] if name not in ("phase", "margin", "probability")]
    ours = {tuple(float(row[name]) for name in axes): row for row in rows_of(downloaded(page, "phases", "CSV"))}
    assert len(ours) == len(theirs)
    for row in theirs:
        mine = ours[tuple(float(row[name]) for name in axes)]
        assert mine["phase"] == row["phase"]
        for name in ("margin", "probability"):  # the command writes six digits
            assert number(mine[name]) == pytest.approx(number(row[name]), rel=1e-5, abs=1e-9, nan_ok=True)
    drawn = page.eval_on_selector_all("#phases [data-cell]", "cells => cells.map(cell => cell.dataset.phase)")
    assert sorted(drawn) == sorted(row["phase"] for row in ours.values())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_cell_tells_the_numbers_of_the_results(browser: Any, made: tuple[Path, Path], width: int) -> None:
    source, path = made
    cells = summary.cells(results.load(source))
    with opened(browser, path, width=width) as page:
        page.get_by_role("gridcell", name=re.compile("width 8, batch size 64: Phase")).click()
        shown = page.locator("#story")
        assert shown.locator("h2").inner_text() == "width 8, batch size 64"
        at = {"width": 8, "batch_size": 64}
        for name in ("train_loss", "test_accuracy", "ln_hessian_trace", "mode_connectivity", "cka", "distance"):
            text = shown.locator(f'[data-metric="{name}"] td').inner_text().replace("−", "-")
            value, _, error = re.sub(r" (nat|%)$", "", text).partition(" ± ")
            found, sure = (float(cells[key].sel(at)) for key in (name, f"{name}_se"))
            # Two digits of the error, and as many decimals of the value: half a unit of the last of them.
            unit = 10.0 ** -len(error.partition(".")[2])
            assert float(value) == pytest.approx(found, abs=0.51 * unit)
            assert float(error) == pytest.approx(sure, abs=0.51 * unit)
        pair = shown.get_by_role("table").filter(has_text="mode connectivity (%)").locator("tbody tr").first
        assert pair.locator("td").nth(1).inner_text().count(" ± ") == 1
        page.wait_for_selector('#story [data-figure^="running_loss"] [data-drawn] .scatterlayer .trace')
        assert shown.locator('[data-figure^="running_loss"] .scatterlayer .trace').count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways


@pytest.mark.parametrize("width", WIDTHS)
def test_downloads_hold_the_numbers_of_the_results(browser: Any, made: tuple[Path, Path], width: int) -> None:
    source, path = made
    tree = results.load(source)
    cells = summary.cells(tree)
    with opened(browser, path, width=width) as page:
        for row in rows_of(downloaded(page, "cka", "CSV")):
            at = {name: float(row[name]) for name in ("width", "batch_size")}
            assert float(row["cka"]) == float(cells["cka"].sel(at))
            assert float(row["cka_se"]) == float(cells["cka_se"].sel(at))
        page.get_by_role("gridcell", name=re.compile("width 2, batch size 16: Phase")).click()
        history = rows_of(downloaded(page, "running_loss-width 2-batch size 16", "CSV"))
        loss = tree["history"]["running_loss"].sel(width=2, batch_size=16)
        for row in history:
            for seed in (0, 1, 2):
                expected = float(np.float32(loss.sel(seed=seed, epoch=int(row["epoch"]))))
                assert float(row[f"seed {seed}"]) == expected
        page.keyboard.press("Escape")  # the story lies over the page
        assert downloaded(page, "phases", "PNG").startswith(b"\x89PNG")
        assert b"<svg" in downloaded(page, "phases", "SVG")[:200]
        assert b"<svg" in downloaded(page, "slice-along-width", "SVG")[:200]


@pytest.mark.parametrize("width", WIDTHS)
def test_sliders_relabel_as_the_command_does(
    browser: Any, made: tuple[Path, Path], tmp_path: Path, width: int
) -> None:
    source, path = made
    cells = summary.cells(results.load(source))
    with opened(browser, path, width=width) as page:
        same_labels(page, tmp_path)
        before = page.locator("#phases .command").inner_text()
        page.locator('[data-threshold="ln_trace"] input[type="range"]').press("ArrowRight")
        page.wait_for_function("text => document.querySelector('#phases .command').innerText !== text", arg=before)
        same_labels(page, tmp_path)
        assert page.locator(".moved").is_visible()
        # On the edge: a loss at its threshold is not sharp, a CKA at its threshold is similar.
        edges = (("train_loss", (32, 64)), ("cka", (32, 64)), ("mode_connectivity", (8, 16)))
        for name, at in edges[: 3 if width == WIDTHS[0] else 1]:
            exact = float(cells[name].sel(width=at[0], batch_size=at[1]))
            field = page.locator(f'[data-threshold="{name}"] input[type="text"]')
            field.fill(repr(exact))
            field.press("Enter")
            page.wait_for_function(
                "text => document.querySelector('#phases .command').innerText.includes(text)", arg=repr(exact)
            )
            same_labels(page, tmp_path)
        page.get_by_role("button", name="Back to the report").click()
        page.wait_for_function("text => document.querySelector('#phases .command').innerText === text", arg=before)


@pytest.mark.parametrize(
    "options",
    [{"n_seeds": 7}, {"n_seeds": 5, "one_curve": True}, {"n_seeds": 2}],
    ids=["sampled bootstrap", "one curve a cell", "two seeds"],
)
def test_unknown_metrics_and_any_number_of_seeds_are_labelled_as_by_the_command(
    browser: Any, tmp_path: Path, options: dict
) -> None:
    cells = {
        (2, 16): {"phase": "I"},
        (2, 32): {"phase": "I", "trace": math.nan},
        (2, 64): {"phase": "IV-A", "trace": math.nan},
        (4, 16): {"phase": "II", "mc": math.nan},
        (4, 32): {"phase": "III", "cka": math.nan},
        (4, 64): {"phase": "IV-B", "cka": math.nan},
        (8, 16): {"phase": "IV-A", "loss": 0.019},
        (8, 32): {"phase": "IV-B", "trace": 5.495},  # resampled to either side of the threshold
        (8, 64): {"loss": math.nan},
    }
    _, path = saved(tmp_path, build(cells, noise=0.03, **options))
    with opened(browser, path) as page:
        same_labels(page, tmp_path)


def test_a_metric_without_a_transition_stays_on_its_side(browser: Any, tmp_path: Path) -> None:
    tree = full(spec=AUTO)
    _, path = saved(tmp_path, tree)
    forced = json.loads(phases.label(tree, auto=True).attrs["sides"])
    assert forced  # otherwise this tests nothing
    with opened(browser, path) as page:
        assert "--auto" in page.locator("#phases .command").inner_text()
        same_labels(page, tmp_path)
        name = next(iter(forced))
        field = page.locator(f'[data-threshold="{name}"] input[type="text"]')
        field.fill("0.5")
        field.press("Enter")
        page.wait_for_function(
            "text => document.querySelector('#phases .command').innerText.includes(text)", arg=f"{name}=0.5"
        )
        if len(forced) == 1:
            same_labels(page, tmp_path)


def test_pointing_marks_a_cell_in_every_map_and_keys_walk(browser: Any, made: tuple[Path, Path]) -> None:
    with opened(browser, made[1]) as page:
        maps = page.locator("svg.map").count()
        assert maps == 1 + 7
        page.locator('#metrics [data-figure="cka"] [data-cell="4"]').hover()
        assert page.locator('svg.map .pointed[visibility="visible"]').count() == maps
        assert "width 8, batch size 64" in page.locator(".card").inner_text()
        assert "CKA similarity" in page.locator(".card").inner_text()
        page.locator("#phases [data-cell][tabindex='0']").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.locator("#story h2").inner_text() == "width 8, batch size 16"
        page.keyboard.press("Escape")
        assert page.locator("#story").is_hidden()


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u2028</script>'


def test_nothing_in_a_spec_or_a_path_is_executed(browser: Any, tmp_path: Path) -> None:
    spec = {**SPEC, "name": HOSTILE, "task": {**SPEC["task"], "model": {"name": f"it's \"{HOSTILE}", "x": "'\"`"}}}
    tree = full(spec=spec)
    tree.attrs["name"] = HOSTILE
    tree.attrs["versions"] = HOSTILE
    models = tree["models"].to_dataset()
    status, reason = models["status"].values.copy(), models["reason"].values.copy()
    status[0, 0, 0], reason[0, 0, 0] = "failed", HOSTILE
    models["status"], models["reason"] = (models["status"].dims, status), (models["reason"].dims, reason)
    models["train_loss"].attrs["long_name"] = HOSTILE
    tree["models"] = xr.DataTree(models)
    folder = tmp_path / "it's <b>'$(touch x)"
    folder.mkdir()
    _, path = saved(folder, tree)
    with opened(browser, path) as page:  # a dialog or an error would be told
        assert (
            page.locator("h1").inner_text() == HOSTILE.replace("\u2028", " ")
            or HOSTILE[:20] in page.locator("h1").inner_text()
        )
        page.locator('#phases [data-cell="0"]').click()
        assert HOSTILE[:30] in page.locator("#story").inner_text()
        page.locator('#phases [data-cell="0"]').hover(force=True)
        page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        assert page.locator("img, b").count() == 0
        assert page.locator("script").count() <= 5  # content, numbers, plotly packed and unpacked, the program


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        ({(2, 16): {"phase": "IV-B", "accuracy": 90}}, {}),
        ({(2, 16): {"phase": "I", "accuracy": 90}, (4, 16): {"phase": "III", "accuracy": 80}}, {"n_seeds": 1}),
        ({(2, 16): {"loss": math.nan}, (2, 32): {}}, {}),
    ],
    ids=["one cell", "one seed", "nothing"],
)
def test_poor_results_are_shown(browser: Any, tmp_path: Path, cells: dict, options: dict) -> None:
    _, path = saved(tmp_path, build(cells, **options))
    with opened(browser, path) as page:
        page.locator("#phases [data-cell]").first.click()
        assert page.locator("#story h2").inner_text() == "width 2, batch size 16"
        assert "NaN" not in page.locator("body").inner_text()


def test_an_unfinished_run_says_so(browser: Any, tmp_path: Path) -> None:
    tree = full()
    models = tree["models"].to_dataset()
    status, reason = models["status"].values.copy(), models["reason"].values.copy()
    status[0, 0], status[1, 1, 0] = "missing", "diverged"
    reason[1, 1, 0] = "the training loss is not finite in epoch 2"
    models["status"], models["reason"] = (models["status"].dims, status), (models["reason"].dims, reason)
    models["train_loss"][0, 0] = np.nan
    tree["models"] = xr.DataTree(models)
    _, path = saved(tmp_path, tree)
    with opened(browser, path) as page:
        assert "Unfinished: 24 of 27 models (89 %); 1 diverged" in page.locator(".complete").inner_text()
        page.get_by_role("gridcell", name=re.compile("width 8, batch size 64: Phase")).click()
        assert "not finite in epoch 2" in page.locator("#story .trouble").first.inner_text()
        same_labels(page, tmp_path)


def test_the_card_of_a_cell_leaves_an_open_story_free(browser: Any, made: tuple[Path, Path]) -> None:
    with opened(browser, made[1]) as page:
        cells = page.locator("#phases [data-cell]")
        cells.first.click()
        page.get_by_role("gridcell", name=re.compile("width 8, batch size 64: Phase")).hover()
        card, story = page.locator(".card").bounding_box(), page.locator("#story").bounding_box()
        assert card["x"] + card["width"] <= story["x"]


def test_three_axes_show_one_plane_at_a_time(browser: Any, tmp_path: Path) -> None:
    cells = {
        (width, n, batch): {"phase": "IV-A" if n == 100 else "II", "accuracy": 50 + width}
        for width in (2, 4)
        for n in (100, 200)
        for batch in (16, 32)
    }
    _, path = saved(tmp_path, build(cells, axes=("width", "n_train", "batch_size"), spread=1.0))
    phase = "cells => [...new Set(cells.map(cell => cell.dataset.phase))]"
    with opened(browser, path) as page:
        assert page.eval_on_selector_all("#phases [data-cell]", phase) == ["IV-A"]
        page.locator(".chooser select").select_option("1")
        page.wait_for_selector('#phases [data-cell="4"]')
        assert page.eval_on_selector_all("#phases [data-cell]", phase) == ["II"]


def test_the_spec_of_a_cell_runs_that_cell(browser: Any, made: tuple[Path, Path], tmp_path: Path) -> None:
    with opened(browser, made[1]) as page:
        page.get_by_role("gridcell", name=re.compile("width 8, batch size 64: Phase")).click()
        (tmp_path / "cell.toml").write_text(page.locator(".spec-file").text_content())
    found, whole = specs.read(tmp_path / "cell.toml"), specs.validate(SPEC, "whole")
    assert found.task == whole.task
    assert found.train == whole.train
    assert found.measures == whole.measures
    assert found.seeds == whole.seeds
    assert [(axis.name, axis.role, axis.values) for axis in found.axes] == [
        ("width", "load", (8.0,)),
        ("batch_size", "temperature", (64.0,)),
    ]


def test_the_dark_page_draws_too(browser: Any, made: tuple[Path, Path]) -> None:
    with opened(browser, made[1], scheme="dark") as page:
        page.locator("#slices").scroll_into_view_if_needed()
        page.wait_for_selector("#slices [data-drawn] .scatterlayer")
        red, green, blue = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert max(red, green, blue) < 60


def test_the_page_is_made_in_memory_too(browser: Any, tmp_path: Path) -> None:
    tree = full()
    (tmp_path / "page.html").write_text(report.of_grid(tree, phases.label(tree)))
    with opened(browser, tmp_path / "page.html") as page:
        assert page.locator("h1").inner_text() == "made up"


def test_two_runs_show_their_differences(browser: Any, tmp_path: Path) -> None:
    first = full((2, 8, 32), (16, 64, 256))
    second = full((2, 8, 64), (16, 64, 256, 512), n_seeds=5)
    second["models"]["test_error"] = second["models"]["test_error"] - 3.0
    second["pairs"]["cka"] = second["pairs"]["cka"] + 0.4
    for name, tree in (("a.nc", first), ("b.nc", second)):
        results.save(tree, tmp_path / name)
    run("report", *(str(tmp_path / name) for name in ("a.nc", "b.nc")), "--out", str(tmp_path / "two.html"))
    at = {"width": [2, 8], "batch_size": [16, 64, 256]}
    a, b = (summary.cells(tree).sel(at) for tree in (first, second))
    labels = [phases.label(tree).sel(at) for tree in (first, second)]
    differs = int((labels[0]["phase"] != labels[1]["phase"]).sum())
    assert differs  # otherwise this tests nothing
    with opened(browser, tmp_path / "two.html") as page:
        names = " and ".join(str(tmp_path / name) for name in ("a.nc", "b.nc"))  # both runs have the same name
        assert page.locator("h1").inner_text() == names
        assert page.locator('#phases [data-figure="phases-a"] [data-cell]').count() == 6
        assert page.locator('#phases [data-figure="phases-b"] [data-differs]').count() == differs
        assert f"In {differs} of the 6 cells" in page.locator("#answers").inner_text()
        for row in rows_of(downloaded(page, "test_accuracy", "CSV")):
            here = {name: float(row[name]) for name in ("width", "batch_size")}
            gap = float(b["test_accuracy"].sel(here)) - float(a["test_accuracy"].sel(here))
            error = math.hypot(*(float(each["test_accuracy_se"].sel(here)) for each in (a, b)))
            assert float(row["b_less_a"]) == pytest.approx(gap, rel=1e-12)
            assert float(row["b_less_a_se"]) == pytest.approx(error, rel=1e-12)
        page.locator('#phases [data-figure="phases-a"] [data-cell="0"]').focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "story"
        assert page.locator("#story h2").inner_text() == "width 2, batch size 16"


@pytest.fixture(scope="module")
def of_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    for name, dataset in single_models().items():
        local_results.save(dataset, folder / name)
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_results_of_single_models_are_drawn(browser: Any, of_models: Path, width: int) -> None:
    run("report", str(of_models), "--out", str(of_models / "local.html"))
    datasets = single_models()
    with opened(browser, of_models / "local.html", width=width) as page:
        text = page.locator("main").inner_text()
        assert "Class: w-peak" in text
        assert "the plane holds 40.0% of the trajectory" in text
        assert "most of it happens elsewhere" in text
        assert "1 of 2 did not converge (out of products)" in text
        assert "1 of 41 values of the loss are not finite." in text
        page.locator("#section-0").scroll_into_view_if_needed()
        page.wait_for_selector('[data-figure="spectrum.nc-density"] [data-drawn] .bars')
        for row, share in zip(
            rows_of(downloaded(page, "spectrum.nc-density", "CSV")),
            datasets["spectrum.nc"]["density"],
            strict=True,
        ):
            assert float(row["density"]) == float(share)
        loss = datasets["surface.nc"]["loss"]
        for row in rows_of(downloaded(page, "surface.nc-plane", "CSV")):
            there = {name: float(row[name]) for name in ("alpha", "beta")}
            assert float(row["loss"]) == float(loss.sel(there, method="nearest"))
        title = page.locator('[data-figure="surface.nc-plane"] .ytitle')
        assert title.text_content().startswith("β along <b>second</b> & co")  # no markup to plotly
        page.locator('[data-figure="surface.nc-3d"]').scroll_into_view_if_needed()
        page.wait_for_selector('[data-figure="surface.nc-3d"] [data-drawn] canvas', state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_trajectory_lies_on_the_surface(browser: Any, of_models: Path, tmp_path: Path) -> None:
    surface = single_models()["surface.nc"]
    run("report", str(of_models / "surface.nc"), "--out", str(tmp_path / "surface.html"))
    with opened(browser, tmp_path / "surface.html") as page:
        page.wait_for_selector('[data-figure="surface.nc-3d"] [data-drawn] canvas', state="attached")
        drawn = page.evaluate("""[...document.querySelector('[data-figure="surface.nc-3d"] .chart').data]
            .map(({mode, x, y, z}) => ({mode, x, y, z}))""")
    ground, path, dots = drawn[0], drawn[1], drawn[2]
    assert (path["mode"], dots["mode"]) == ("lines", "markers")
    for name, along in (("alpha", "x"), ("beta", "y")):
        checkpoints = surface[f"trajectory_{name}"].values
        assert path[along][::40] == pytest.approx(checkpoints)  # 40 pieces from one to the next
        assert dots[along] == pytest.approx(checkpoints)
    heights = np.array(ground["z"], dtype=float)
    linear = RegularGridInterpolator((ground["y"], ground["x"]), heights, bounds_error=False)
    expected = linear(np.column_stack([path["y"], path["x"]]))
    above = 0.008 * (np.nanmax(heights) - np.nanmin(heights))
    found = np.array(path["z"], dtype=float)
    assert np.isfinite(found).sum() > 40
    assert found == pytest.approx(expected + above, nan_ok=True)


def with_double_descent() -> xr.DataTree:
    """Along the width the test error falls, rises and falls."""
    accuracy = [60, 75, 80, 70, 60, 72, 85, 88]
    cells = {
        (2**k, batch): {"phase": "I" if k < 4 else "IV-A", "accuracy": value}
        for k, value in enumerate(accuracy)
        for batch in (16, 32)
    }
    return build(cells, n_seeds=5, spread=0.3)


def test_double_descent_is_marked_in_its_slice(browser: Any, tmp_path: Path) -> None:
    _, path = saved(tmp_path, with_double_descent())
    with opened(browser, path) as page:
        page.locator("#slices").scroll_into_view_if_needed()
        marked = page.locator('[data-figure="slice-along-width"] .annotation-text', has_text="double descent")
        marked.wait_for()
        assert page.locator('[data-figure="slice-along-batch_size"]').count() == 1
        bands = page.locator('[data-figure="slice-along-width"] .scatterlayer .fills path')
        assert bands.count() >= 1


def test_notes_are_read_on_dark_paper_and_phases_on_their_colours(browser: Any, tmp_path: Path) -> None:
    _, path = saved(tmp_path, with_double_descent())
    with opened(browser, path, scheme="dark") as page:
        page.locator("#slices").scroll_into_view_if_needed()
        texts = page.locator('[data-figure="slice-along-width"] .annotation-text')
        texts.filter(has_text="double descent").wait_for()
        for text, is_light in (("double descent", True), ("IV-A", False)):
            fill = texts.filter(has_text=text).first.evaluate("each => getComputedStyle(each).fill")
            brightness = [int(each) for each in re.findall(r"\d+", fill)[:3]]
            assert min(brightness) > 150 if is_light else max(brightness) < 80


def test_advice_is_said_once(browser: Any, tmp_path: Path) -> None:
    # Sharp, and mode connectivity clearly above zero: two rules with the same advice.
    _, path = saved(tmp_path, build({(2, 16): {"loss": 1.0, "trace": 9.0, "mc": 5.0, "cka": 0.5}}))
    with opened(browser, path) as page:
        page.locator("#phases [data-cell]").first.click()
        told = page.locator("#story p", has_text="What would help").inner_text()
        assert told.lower().count("longer training") == 1


def test_differences_without_errors_are_pale(browser: Any, tmp_path: Path) -> None:
    first, second = full(n_seeds=2), full(n_seeds=2)  # one pair a cell: its CKA has no error
    second["pairs"]["cka"] = second["pairs"]["cka"] - 0.2
    for name, tree in (("a.nc", first), ("b.nc", second)):
        results.save(tree, tmp_path / name)
    run("report", *(str(tmp_path / name) for name in ("a.nc", "b.nc")), "--out", str(tmp_path / "two.html"))
    with opened(browser, tmp_path / "two.html") as page:
        opacity = "cells => cells.map(cell => Number(cell.getAttribute('fill-opacity')))"
        assert set(page.eval_on_selector_all('[data-figure="cka"] [data-cell]', opacity)) == {0.35}


def test_models_on_a_plane_have_readable_letters_and_no_path(browser: Any, tmp_path: Path) -> None:
    surface = single_models()["surface.nc"]
    surface = surface.drop_vars([name for name in surface.data_vars if "trajectory" in str(name)])
    places = {"alpha": [0.0, 0.8, 0.2], "beta": [0.0, 0.0, 0.6], "loss": [1.0, 2.9, 1.5]}
    plane = surface.assign({f"model_{name}": ("model", values) for name, values in places.items()})
    local_results.save(plane.assign_coords(model=["A", "B", "C"]), tmp_path / "plane.nc")
    run("report", str(tmp_path / "plane.nc"), "--out", str(tmp_path / "plane.html"))
    with opened(browser, tmp_path / "plane.html", width=390, scheme="dark") as page:
        page.locator('[data-figure="plane.nc-plane"]').scroll_into_view_if_needed()
        letters = page.locator('[data-figure="plane.nc-plane"] .textpoint text')
        letters.first.wait_for()
        assert letters.all_text_contents() == ["A", "B", "C"]
        fills = letters.evaluate_all("texts => texts.map(each => getComputedStyle(each).fill)")
        assert set(fills) == {"rgb(31, 29, 26)"}  # ink on markers of paper
        page.locator('[data-figure="plane.nc-3d"]').scroll_into_view_if_needed()
        page.wait_for_selector('[data-figure="plane.nc-3d"] [data-drawn] canvas', state="attached")
        modes = """document.querySelector('[data-figure="plane.nc-3d"] .chart').data.map(each => each.mode)"""
        assert page.evaluate(modes)[1:] == ["markers"]  # the models are no path


def test_boundaries_are_those_of_the_figures(browser: Any, made: tuple[Path, Path]) -> None:
    labels = phases.label(results.load(made[0]))
    lines = boundaries(labels, grid_of(labels))
    u, v = np.log(lines.x), np.log(lines.y)  # widths to the right, batches downwards
    with opened(browser, made[1]) as page:
        frame = {
            name: float(page.locator("#phases .frame").get_attribute(name))
            for name in ("x", "y", "width", "height")
        }
        drawn = page.locator("#phases [data-boundary]")
        assert sorted(each.get_attribute("data-boundary") for each in drawn.all()) == sorted(
            each.name for each in lines.found
        )
        for boundary in lines.found:
            d = page.locator(f'#phases [data-boundary="{boundary.name}"]').get_attribute("d")
            points = np.array(re.findall(r"([\d.]+) ([\d.]+)", d), dtype=float)
            across = (points[:, 0] - frame["x"]) / frame["width"]
            down = (points[:, 1] - frame["y"]) / frame["height"]
            places = np.column_stack([v[0] + down * np.ptp(v), u[0] + across * np.ptp(u)])
            found = RegularGridInterpolator((v, u), boundary.field)(places.clip([v[0], u[0]], [v[-1], u[-1]]))
            known = np.isfinite(found)
            assert known.mean() > 0.8
            # Points are written to a tenth of a pixel, of some 500 along an axis.
            assert np.abs(found[known]).max() < 0.01 * np.nanmax(np.abs(boundary.field))
