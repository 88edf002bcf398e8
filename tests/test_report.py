"""The report without a browser: what is escaped, what the sentences say, where transitions lie, what it loads."""

import base64
import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import command
from grids import build
from lossatlas import local_results, phases, presets, report, results, specs, summary
from lossatlas.cli.explore import lacking
from lossatlas.figures.grid import scale_of
from lossatlas.findings import advice, claims, columns
from lossatlas.findings.evidence import Evidence
from lossatlas.report import grid, grid_arrays, page, sentences, words
from lossatlas.report.arrays import Arrays
from lossatlas.report.markup import Markup, script_json, table, tag
from lossatlas.report.transitions import crossings, transitions
from lossatlas.studies import reading as study_reading
from lossatlas.sweep.collect import given
from lossatlas.sweep.cost import Estimate
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.run import open_folder, write_plan, write_spec
from lossatlas.sweep.store import Record
from lossatlas.sweep.worker import note_failure
from report_material import full, single_models

NAN = math.nan


def test_every_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", tag("b", "<i>"), title='"x"') == (
        '<p title="&quot;x&quot;">a &lt; b &amp; c<b>&lt;i&gt;</b></p>'
    )
    assert tag("br") == "<br>"
    assert tag("label", "x", for_="y", data_cell="1") == '<label for="y" data-cell="1">x</label>'
    assert isinstance(tag("p"), Markup)


def test_columns_of_numbers_stand_to_the_right() -> None:
    made = table(["name", "size"], [["<a>", "1.5"], ["b", ""]])
    assert re.findall(r'<td class="(\w+)">', made) == ["text", "number"] * 2
    assert "&lt;a&gt;" in made


def test_json_in_a_script_ends_neither_the_script_nor_a_line() -> None:
    hostile = "</script><!-- & \u2028 \u2029 é"
    made = script_json({"a": hostile})
    assert not set("<>&\u2028\u2029") & set(made)
    assert json.loads(made) == {"a": hostile}
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"a": NAN})


def test_arrays_are_aligned_and_come_back() -> None:
    arrays = Arrays()
    given = {
        "a": np.array([1, 2, 255], "u1"),
        "b": np.array([[1.5, NAN], [-math.inf, 1e-300]]),
        "c": np.float32(2.5),
    }
    for name, dtype in (("a", "|u1"), ("b", "<f8"), ("c", "<f4")):
        arrays.add(name, given[name], dtype)
    texts = arrays.add_texts("d", np.array([["ok", "failed"], ["ok", ""]], object))
    content = gzip.decompress(base64.b64decode(arrays.encoded()))
    for name, dtype in (("a", "u1"), ("b", "<f8"), ("c", "<f4")):
        entry = arrays.index[name]
        assert entry["at"] % 8 == 0
        found = np.frombuffer(content, dtype, int(np.prod(entry["shape"])), entry["at"]).reshape(entry["shape"])
        np.testing.assert_array_equal(found, given[name])
    codes = np.frombuffer(content, "<u2", 4, arrays.index["d"]["at"])
    assert [texts[code] for code in codes] == ["ok", "failed", "ok", ""]


def test_the_page_is_one_file_that_asks_for_nothing() -> None:
    tree = full()
    made = report.of_grid(tree, phases.label(tree), source="runs/x")
    assert made == report.of_grid(tree, phases.label(tree), source="runs/x")  # no date, no order of a hash
    assert not re.search(r"<(?:link|img|iframe|object|embed|base)\b", made)
    assert not re.search(r"<script[^>]*\bsrc\b", made)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;")
    assert not re.search("unsafe-(inline|eval)", policy[1].split("style-src")[0])
    assert len(made) < 3e6


def test_what_is_put_into_the_page_is_not_searched_again() -> None:
    made = page.render(
        page.Page(
            title="{{body}}", body=Markup("{{title}}"), content={"x": "{{style}}"}, arrays=Arrays(), scripts=()
        )
    )
    assert "<title>{{body}}</title>" in made
    assert "</noscript>\n{{title}}\n" in made
    assert '"x":"{{style}}"' in made


def test_values_are_written_as_precisely_as_their_errors() -> None:
    assert words.with_error(86.2571, 0.131, "%") == "86.26 ± 0.13 %"
    assert words.with_error(-1234.5, 25.0) == "−1234 ± 25"
    assert words.with_error(0.5, NAN) == "0.5"
    assert words.with_error(0.5, 0.0, "nat") == "0.5 ± 0 nat"
    assert words.with_error(NAN, 0.1) == "not measured"
    assert words.with_error(-3.1e-8, 1.2e-9, "nat") == "(−3.10 ± 0.12)e−8 nat"
    assert words.with_error(25.1066, 1.6e-14) == "25.11 ± 1.6e−14"  # rounding
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.counted(1, "cell") + words.counted(1200, "cell") == "1 cell1,200 cells"


def test_crossings_lie_between_neighbours_that_have_values() -> None:
    u = np.array([0.0, 1.0, 3.0, 4.0])
    field = np.array([[-1.0, 1.0, 1.0, -3.0], [-1.0, NAN, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    found = crossings(field, u)
    np.testing.assert_allclose(found[0], [0.5, 3.25])  # halfway, and a quarter of the last step
    assert len(found[1]) == 0  # what lies beside a gap is not interpolated
    np.testing.assert_allclose(found[2], [1.0])  # zero is not above
    assert len(found[3]) == 0


def evidence_of(tree, **options) -> Evidence:
    return Evidence(tree, phases.label(tree, **options))


def test_transitions_lie_where_the_thresholds_are_met() -> None:
    # ln trace rises by 1 per doubling of the width and passes 5.5 between 8 and 16: at 8 * 2^0.5.
    cells = {
        (width, batch): {
            "loss": 0.001,
            "trace": 2.0 + math.log2(width),
            "mc": -5.0 if batch == 16 else 0.0,
            "cka": 0.3,
        }
        for width in (4, 8, 16, 32)
        for batch in (16, 32, 64)
    }
    found = {each.test: each for each in transitions(evidence_of(build(cells)))}
    assert set(found) == {"sharp", "mode_connectivity"}
    sharp, poor = found["sharp"], found["mode_connectivity"]
    assert (sharp.axis.name, sharp.crossing, sharp.slices) == ("width", 3, 3)
    assert sharp.at == pytest.approx(8 * 2**0.5, rel=1e-9)
    assert sharp.is_first_below is False  # sharp above
    assert poor.is_first_below is True
    told = sentences.where(evidence_of(build(cells)), [sharp, poor])
    first, second = told.answer.splitlines()
    assert first.startswith("Flat below and sharp above width 11.31 ")
    assert second.startswith("Poorly connected below and well connected above batch size 25.11 ")
    assert second.endswith("(median over 4 of 4 slices, 25.1 to 25.1).")
    assert sharp.error == pytest.approx(0.0, abs=1e-9)  # the seeds are alike
    assert (poor.axis.name, poor.crossing) == ("batch_size", 4)
    # -5 at 16 and 0 at 32: -1.75 lies at 65 % of the step in the logarithm.
    assert poor.at == pytest.approx(16 * 2**0.65, rel=1e-9)


def test_the_error_of_a_transition_is_the_jackknife_over_the_seeds() -> None:
    cells = {(w, 16): {"loss": 0.001, "trace": 2.0 + math.log2(w), "mc": 0.0, "cka": 0.3} for w in (4, 8, 16, 32)}
    noisy = evidence_of(build(cells, noise=0.1))
    (found,) = transitions(noisy)
    # Without each seed the two traces about the threshold are means of the others: by hand, in log2(width).
    off = [-0.1, 0.0, 0.1]
    at = []
    for left_out in range(3):
        kept = [x for k, x in enumerate(off) if k != left_out]
        low, high = (
            5 + math.log(1 + s * np.mean(kept)) for s in (-1, 1)
        )  # width 8 is the second cell: turned around
        high += 1
        at.append(math.log(8) + (5.5 - low) / (high - low) * math.log(2))
    expected = math.sqrt(2 / 3 * sum((x - np.mean(at)) ** 2 for x in at))
    assert found.error == pytest.approx(found.at * expected, rel=1e-6)
    assert transitions(evidence_of(build(cells, n_seeds=1))) == []  # no pairs, so no phases


def test_the_best_cell_is_told_with_its_phase_and_its_rivals() -> None:
    cells = {
        (2, 16): {"phase": "I", "accuracy": 70},
        (2, 32): {"phase": "III", "accuracy": 80},
        (4, 16): {"phase": "IV-A", "accuracy": 85},
        (4, 32): {"phase": "IV-B", "accuracy": 90},
    }
    told = sentences.best(evidence_of(build(cells, spread=0.5)))
    assert told.answer.startswith(
        "The best test accuracy, 90.00 ± 0.29 %, is that of width 4, batch size 32, in Phase IV-B"
    )
    assert "No other cell comes within 2 standard errors of it." in told.because
    assert "any other phase (width 4, batch size 16, IV-A) is 5.00 ± 0.58 % below it." in told.because
    silent = sentences.best(evidence_of(build({(2, 16): {"phase": "I"}})))
    assert "was not measured" in silent.answer
    one = sentences.best(evidence_of(build(cells, n_seeds=1)))
    assert "With one seed there is no error" in one.because


@pytest.mark.parametrize(
    ("accuracies", "words_"),
    [((80.0, 70.0), "No: it costs accuracy in the one column"), ((70.0, 80.0), "Yes: it pays in the one column")],
)
def test_whether_zero_loss_pays_is_told_by_the_columns_through_iii(accuracies: tuple, words_: str) -> None:
    cells = {
        (2, 16): {"phase": "I", "accuracy": accuracies[0]},
        (2, 32): {"phase": "III", "accuracy": accuracies[1]},
        (4, 16): {"phase": "II", "accuracy": 80},
        (4, 32): {"phase": "IV-B", "accuracy": 90},
    }
    tree = build(cells, spread=0.5)
    evidence = evidence_of(tree)
    (claim,) = [each for each in claims.check(evidence) if each.claim.name == "zero-loss-costs"]
    told = sentences.zero_loss(columns.best_of_columns(tree, evidence.labels), claim, evidence.labels)
    assert told.answer.startswith(words_)
    assert "at width 2" in told.answer
    assert "In 1 column without Phase III it changes accuracy by 10 %, and pays in 1." in told.because


def test_advice_is_the_same_rule_by_rule_as_in_the_table_of_the_page() -> None:
    tree = full()
    labels = phases.label(tree)
    fired = grid.rules_of_advice()["fired"]
    limit = abs(json.loads(labels.attrs["thresholds"])["mode_connectivity"])
    seen = set()
    for each in advice.advise(labels):
        above = float(labels["mode_connectivity"].sel(each.at)) > limit
        assert [rule.name for rule in each.rules] == fired[each.phase][above]
        seen.add(each.phase)
    assert len(seen) >= 4


def test_axes_are_laid_out_as_in_the_figures() -> None:
    tree = full()
    labels = phases.label(tree)
    content = grid.page(tree, labels, source="").content
    for axis in content["axes"]:
        scale = scale_of(labels[axis["name"]])
        assert axis["edges"] == scale.u_edges.tolist()
        assert axis["is_inverted"] == scale.is_inverted
    assert [axis["name"] for axis in content["axes"]] == ["batch_size", "width"]  # temperature, then load


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["nowhere"], "does not exist"), (["results.nc", "--set", "colour=3"], "--set 'colour=3' sets no threshold")],
)
def test_mistakes_end_with_a_sentence(tmp_path: Path, arguments: list, says: str) -> None:
    results.save(full(), tmp_path / "results.nc")
    done = command.run(tmp_path, "report", *arguments)
    assert done.code == 2
    assert says in done.err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("out", [".", "sub", "results.nc", "sub/../results.nc"])
def test_the_page_replaces_no_folder_and_no_results(tmp_path: Path, out: str) -> None:
    (tmp_path / "sub").mkdir()
    results.save(full(), tmp_path / "results.nc")
    before = (tmp_path / "results.nc").read_bytes()
    for source in (".", "results.nc"):
        done = command.run(tmp_path, "report", source, "--out", out)
        assert done.code == 2
        assert ("is a folder. Name a file" if (tmp_path / out).is_dir() else "would replace") in done.err
    assert (tmp_path / "results.nc").read_bytes() == before


def test_folders_without_a_page_say_what_to_give(tmp_path: Path) -> None:
    for name in ("study", "variants", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "study" / "study.json").write_bytes(
        study_reading.as_file(study_reading.read("xu2024/fig7"), "", {})
    )
    write_spec(tmp_path / "variants", specs.parse(presets.text("yang2021/cka-ablation"), "ablation"))
    for name, says in (
        ("study", "give a file study/store/local-*/*/*/dataset.nc"),
        ("variants", "None is begun yet; `lossatlas run variants` does them"),
        ("other", "other holds no results. Give a run folder,"),
    ):
        done = command.run(tmp_path, "report", name)
        assert (done.code, says in done.err) == (2, True), done.err


def test_a_run_that_is_not_finished_shows_what_is_there(tmp_path: Path) -> None:
    root = tmp_path / "run"
    spec = specs.read(command.TINY)
    plan, opened = Plan(spec, "f" * 32), open_folder(root, None)
    names = tuple(name for name, _ in plan.kinds())
    write_spec(root, spec)
    write_plan(opened, plan, Estimate(names, np.ones((len(plan), len(names))), 0, np.ones(len(plan))))
    none = command.run(tmp_path, "report", "run")
    assert (none.code, "run has no trained model yet" in none.err) == (2, True)

    first, second, third, *_ = [step for cell in plan for step in cell.steps if step.name == "train"]
    values = {"epochs": 2, "running_loss": [2.0, 1.0], "running_error": [50.0, 40.0], "running_lr": [0.1, 0.1]}
    for step in (first, second):
        opened.store.commit("train", step.content, Record(values, "ok", ""), meta={})
    note_failure(opened.failed, third, ValueError("no <b>luck</b>"))
    damaged = opened.store.folder("train", second.key) / "result.json"
    damaged.write_text("{}")
    done = command.run(tmp_path, "report", "run")
    assert done.code == 0
    assert "`lossatlas run run` continues" in done.err
    made = (tmp_path / "report.html").read_text()
    total = sum(step.name == "train" for cell in plan for step in cell.steps)
    steps = sum(len(cell.steps) for cell in plan)
    assert f"Unfinished: </strong>2 of {total} models" in made
    assert f"1 failed, 1 of {steps} steps, 1 more damaged." in made
    for name, *options in (["phases"], ["findings"], ["advise"], ["figures", "--out", "drawn"]):
        done = command.run(tmp_path, name, "run", *options)
        assert (done.code, "run is not finished: this is what is there, 1 of" in done.err) == (0, True), done.err
    assert damaged.read_text() == "{}"  # nobody's step is moved by looking at it
    assert not (root / "results.nc").exists()

    before = full()  # results of before the spec has grown
    results.save(before, root / "results.nc")
    assert "run is not finished" in command.run(tmp_path, "advise", "run").err
    before.attrs["spec"] = results.plain(given(spec))
    results.save(before, root / "results.nc")
    assert "not finished" not in command.run(tmp_path, "advise", "run").err
    (root / "spec.json").write_text("{")
    assert command.run(tmp_path, "advise", "run").code == 0  # results need no other file


def test_what_results_lack_is_told_in_captions() -> None:
    tree = full()
    assert lacking(tree) == ""
    tree.attrs |= {"unfinished": "2 of 9 steps", "spec": json.dumps({"reduced": "scaled by 0.1"})}
    assert lacking(tree) == "unfinished: 2 of 9 steps; scaled by 0.1"


def test_a_translation_has_a_map_of_bleu() -> None:
    tree = full()
    models = tree["models"].to_dataset()
    scores = (30 - models["test_loss"]).assign_attrs(long_name="BLEU", units="1")
    tree["models"] = xr.DataTree(models.assign(bleu=scores, bleu_se=xr.zeros_like(scores)))
    arrays = Arrays()
    cells = summary.cells(tree)
    panels = grid_arrays.content(tree, cells, phases.label(tree), arrays)["panels"]
    assert [panel["name"] for panel in panels][-1] == "bleu"
    assert panels[-1]["low"] == pytest.approx(cells["bleu"].min().item())
    assert len(panels) == 8


def test_a_run_whose_models_all_failed_has_a_page() -> None:
    tree = full()
    for name in ("history", "curves", "models"):  # as they are collected without a single record
        group = tree[name].to_dataset()
        last = {"history": "epoch", "curves": "t", "models": "rank"}[name]
        lost = {
            key: variable.isel({last: 0}, drop=True) * np.nan
            for key, variable in group.items()
            if last in variable.dims
        }
        tree[name] = xr.DataTree(group.assign(lost))
    tree["models"]["status"] = xr.full_like(tree["models"]["status"], "failed")
    made = report.of_grid(tree, phases.label(tree))
    assert "With failures: </strong>all 27 models; 27 failed" in made
    assert "The test error was not measured of any model that is ok" in made


def test_metrics_without_a_transition_are_told_in_one_sentence() -> None:
    tree = build({(width, batch): {"phase": "I"} for width in (2, 4) for batch in (16, 32)})
    told = sentences.where(evidence_of(tree, auto=True), [])
    assert told.answer == "No transition in this grid in ln trace, loss, mc and CKA."


def test_two_runs_with_other_thresholds_say_so() -> None:
    tree = full()
    runs = [("a", tree, phases.label(tree)), ("b", tree, phases.label(tree, thresholds={"cka": 0.5}))]
    assert "Their thresholds differ, which alone can change a phase" in report.of_two(*runs)
    assert "Their thresholds differ" not in report.of_two(runs[0], runs[0])


def test_runs_on_other_axes_are_not_compared(tmp_path: Path) -> None:
    results.save(full(), tmp_path / "a.nc")
    results.save(full((4, 16)), tmp_path / "b.nc")
    cells = {(width, 0.1): {"phase": "I"} for width in (2, 8)}
    results.save(build(cells, axes=("width", "lr")), tmp_path / "c.nc")
    for other, says in (
        ("b.nc", "no value of width in common"),
        ("c.nc", "on the same axes"),
        ("d.nc", "not exist"),
    ):
        done = command.run(tmp_path, "report", "a.nc", other)
        assert done.code == 2
        assert says in done.err


@pytest.mark.parametrize("arguments", [["line.nc", "line.nc"], ["results.nc", "line.nc"], ["line.nc", "--auto"]])
def test_single_models_have_no_phases(tmp_path: Path, arguments: list) -> None:
    results.save(full(), tmp_path / "results.nc")
    local_results.save(single_models()["line.nc"], tmp_path / "line.nc")
    done = command.run(tmp_path, "report", *arguments)
    assert done.code == 2
    assert "line.nc holds results of single models, which have no phases. Give it alone" in done.err


def test_damaged_files_end_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.nc").write_bytes(b"no file of results")
    done = command.run(tmp_path, "report", "broken.nc")
    assert done.code == 2
    assert "cannot be read" in done.err


def test_what_the_page_does_not_draw_is_shown_as_the_figure_of_the_package() -> None:
    angles = xr.Dataset(
        {"cosine": (("direction", "other"), np.eye(2)), "fit_loss": ("epoch", [1.0, 0.5])},
        coords={"epoch": [0, 1]},
    )
    made = report.of_local({"fit.nc": angles})
    assert 'src="data:image/svg+xml;base64,' in made
    assert "There is no figure" in report.of_local({"number.nc": xr.Dataset({"value": ((), 1.5)})})


def test_pages_of_single_models_load_no_torch(tmp_path: Path) -> None:
    for name, dataset in single_models().items():
        local_results.save(dataset, tmp_path / name)
    assert command.modules_loaded(["report", "."], ("torch", "sklearn"), tmp_path) == ([], "report.html")


def test_a_grid_of_a_thousand_models_stays_below_six_megabytes() -> None:
    widths, batches = tuple(2**k for k in range(14)), tuple(2**k for k in range(15))
    tree = full(widths, batches, n_seeds=5, epochs=100, points=9)
    assert len(report.of_grid(tree, phases.label(tree))) < 6e6


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    results.save(full(), tmp_path / "results.nc")
    loaded = command.modules_loaded(["report", "results.nc"], ("torch", "sklearn"), tmp_path)
    assert loaded == ([], "report.html")
