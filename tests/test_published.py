"""The restricted unpickler against hostile pickles, and the published archive against its authors' notebook."""

import io
import pickle
import subprocess
import sys
import tarfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lossatlas import published, results, summary, unpickle
from lossatlas.errors import FileError
from lossatlas.measures import STEPS

SENTINEL = "executed"


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def by_name(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument), also where this interpreter could not write it."""
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


def stacked(module: str, name: str) -> bytes:
    """The same with STACK_GLOBAL and no call: naming alone must be refused."""
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + texts + b"\x93."


HOSTILE = {
    "os.system": lambda path: pickle.dumps(Calls(__import__("os").system, f"touch {path}")),
    "posix.system": lambda path: by_name("posix", "system", f"touch {path}"),
    "builtins.eval": lambda path: pickle.dumps({0: [Calls(eval, f"open({str(path)!r}, 'w')")]}),
    "builtins.exec": lambda path: pickle.dumps((Calls(exec, f"open({str(path)!r}, 'w')"),), protocol=2),
    "builtins.getattr": lambda path: by_name("builtins", "getattr", str(path)),
    "__builtin__.open": lambda path: by_name("__builtin__", "open", str(path)),
    "torch._utils._rebuild_tensor_v2": lambda _path: by_name("torch._utils", "_rebuild_tensor_v2", "x"),
    "numpy.load": lambda path: by_name("numpy", "load", str(path)),
    "numpy.f2py.compile": lambda _path: by_name("numpy.f2py", "compile", "x"),
    "numpy.core.multiarray.fromfile": lambda path: by_name("numpy.core.multiarray", "fromfile", str(path)),
    "numpy.testing._private.utils.runstring": lambda _path: by_name(
        "numpy.testing._private.utils", "runstring", "x"
    ),
    "numpy.__builtins__": lambda _path: stacked("numpy", "__builtins__"),
    "numpy.dtype.__reduce__": lambda _path: stacked("numpy", "dtype.__reduce__"),
    "builtins.dict.__class__": lambda _path: stacked("builtins", "dict.__class__"),
    "collections.abc.sys": lambda _path: stacked("collections.abc", "sys"),
    "copyreg._reconstructor": lambda _path: by_name("copyreg", "_reconstructor", "x"),
    "this": lambda _path: by_name("this", "s", "x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name_and_not_executed(name: str, tmp_path: Path) -> None:
    sentinel = tmp_path / SENTINEL
    before = set(sys.modules)
    with pytest.raises(FileError, match="refused") as caught:
        unpickle.loads(HOSTILE[name](sentinel), name="metrics/hessian.pkl")
    assert "metrics/hessian.pkl" in str(caught.value)
    assert name.replace("posix", "").replace("os", "").split(".")[-1] in str(caught.value)
    assert not sentinel.exists()
    assert not {"this", "numpy.f2py"} & (set(sys.modules) - before)  # refused before any import


def test_a_hostile_pickle_would_have_worked(tmp_path: Path) -> None:
    """Without the restriction the sentinel appears, so its absence above means something."""
    pickle.loads(HOSTILE["os.system"](tmp_path / SENTINEL))
    assert (tmp_path / SENTINEL).exists()


def test_a_dtype_cannot_be_made_to_mean_pointers() -> None:
    # State of '<f8' with the flags NPY_ITEM_REFCOUNT | NPY_LIST_PICKLE, which NumPy itself would take over.
    state = (3, "<", None, None, None, -1, -1, 0x01 | 0x02)
    body = pickle.dumps(state, protocol=2)[2:-1]
    head = b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(U\x02f8I0\nI1\ntR" + body + b"b"
    value = unpickle.loads(head + b"U\x08" + np.float64(1.5).tobytes() + b"\x86R.", name="x")
    assert value == 1.5
    assert np.dtype("f8").flags == 0
    with pytest.raises(FileError, match="damaged"):
        unpickle.loads(pickle.dumps(np.array([{}], dtype=object)), name="x")


def test_an_array_can_claim_no_more_than_it_brings() -> None:
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(I1000000000000\ntU\x01b\x87R."
    assert unpickle.loads(head, name="x").size == 0
    with pytest.raises(FileError, match="damaged"):
        unpickle.loads(b"\x80\x02cnumpy\nndarray\n(I1000000000000\ntR.", name="x")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_survive_in_every_protocol(protocol: int) -> None:
    plain = {
        0: {"trace": np.float64(1.25), "top": [1.5, np.float32(2.5)], "n": np.int64(7), "yes": np.bool_(True)},
        "rest": (None, True, {1, 2}, 3 + 4j, "text", b"\xff\x00", 10**30, frozenset({5})),
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, b=[2]),
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "words": np.array(["a", "bc"]),
    }
    read = unpickle.loads(pickle.dumps(plain, protocol=protocol), name="x")
    for key in ("array", "fortran", "words"):
        expected, found = plain.pop(key), read.pop(key)
        # As NumPy itself does, some protocols bring a foreign byte order home.
        assert found.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
    assert read == plain
    assert type(read[0]["top"][1]) is np.float32
    assert read["default"].default_factory is list


def test_new_numpy_names_and_python_2_strings_are_read() -> None:
    old = pickle.dumps(np.float64(1.25), protocol=2)
    assert b"numpy._core" in old or b"numpy.core" in old
    for core in (b"numpy._core", b"numpy.core"):
        renamed = old.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)
        assert unpickle.loads(renamed, name="x") == 1.25
    assert unpickle.loads(b"S'caf\\xe9'\n.", name="x") == "café"


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", pickle.dumps({0: 1.0})[:-3], b"\x80\xff."])
def test_a_damaged_pickle_is_an_error_with_its_name(content: bytes) -> None:
    with pytest.raises(FileError, match=r"loss\.pkl is damaged"):
        unpickle.loads(content, name="loss.pkl")


# ------------------------------------------------------------------------------------------------ the layout


def metrics(width: int = 8, batch: int = 16) -> dict[str, bytes]:
    """One cell in the published layout, three seeds; the numbers are made up."""
    seeds = range(3)
    accuracies = {s: {"nll": 0.1 + s, "loss": 0.1 + s, "accuracy": 90.0 - s} for s in seeds}
    hessian = {s: {"top_eigenvalue": [2.0 + s], "trace": np.float64(10.0 + s)} for s in seeds}
    cka = {a: {b: [np.float32(0.0), np.float32(a + b / 4)] for b in seeds} for a in seeds}
    distances = {a: {b: {"dist": float(a + b)} for b in seeds} for a in seeds}
    curve = {"ts": np.linspace(0, 1, 5), "tr_err": np.array([2.0, 7.0, 1.0, 0.0, 4.0])}
    curve |= {key: np.arange(5.0) for key in ("tr_nll", "te_nll", "te_err")}
    stream = io.BytesIO()
    np.savez(stream, **curve)
    return {
        "loss_acc.pkl": pickle.dumps(accuracies),
        "loss_acc_test.pkl": pickle.dumps({s: {**accuracies[s], "accuracy": 80.0} for s in seeds}),
        "hessian.pkl": pickle.dumps(hessian),
        "CKA_mixup_alpha_16.0.pkl": pickle.dumps({"representation_similarity": cka}),
        "model_dist.pkl": pickle.dumps({"model_distance": distances}),
        "curve_test.npz": stream.getvalue(),
    }


def place(width: int = 8, batch: int = 16, *, subset: str = "10", schedule: str = "lr_decay") -> str:
    return f"different_knobs_subset_{subset}/bs_{batch}/{schedule}/ResNet18_w{width}/metrics"


def lay_out(root: Path, folder: str, files: dict[str, bytes]) -> Path:
    (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
    return root


def test_one_cell_by_hand(tmp_path: Path) -> None:
    tree = published.read(lay_out(tmp_path, place(), metrics()))
    models = tree["models"].to_dataset().sel(width=8, batch_size=16)
    np.testing.assert_array_equal(models["train_error"], [10.0, 11.0, 12.0])
    np.testing.assert_array_equal(models["hessian_trace"], [10.0, 11.0, 12.0])
    pairs = tree["pairs"].to_dataset().sel(width=8, batch_size=16)
    pair = pairs.sel(seed=0, seed_b=1)
    # h = (2 + 4)/2 = 3; the largest |3 - E| is 4, at t = .25
    assert (pair["mode_connectivity"], pair["t_star_at_end"]) == (-4.0, 0.0)
    # CKA (0, 1) = 1/4 and (1, 0) = 1
    assert (pair["cka"], pair["cka_se"]) == (0.625, 0.375)
    assert pair["distance"] == 1.0
    assert np.isnan(pairs["cka"].sel(seed=1, seed_b=0))
    assert np.isnan(pairs["mode_connectivity"].sel(seed=0, seed_b=2))
    curve = tree["curves"].to_dataset().sel(width=8, batch_size=16, seed=0, seed_b=1)
    np.testing.assert_array_equal(curve["t"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(curve["train_error"], [2, 7, 1, 0, 4])


def test_gaps_are_missing_and_other_files_do_not_matter(tmp_path: Path) -> None:
    lay_out(tmp_path, place(8, 16), metrics())
    lay_out(tmp_path, place(4, 32), {"loss_acc.pkl": metrics()["loss_acc.pkl"], "notes.pkl": b"junk"})
    cells = summary.cells(published.read(tmp_path))
    assert cells["train_loss"].shape == (2, 2)
    assert cells["status"].sel(width=8, batch_size=32) == "missing"
    assert np.isnan(cells["cka"].sel(width=4, batch_size=32))
    assert cells["train_loss"].sel(width=4, batch_size=32) == pytest.approx(1.1, rel=1e-15)


def test_a_collapsed_model_is_a_status_and_not_a_barrier(tmp_path: Path) -> None:
    files = metrics()
    collapsed = {s: {"nll": 1.0, "loss": 1.0, "accuracy": 10.0 if s == 0 else 60.0} for s in range(3)}
    lay_out(tmp_path, place(), {**files, "loss_acc.pkl": pickle.dumps(collapsed)})
    tree = published.read(tmp_path)
    pair = tree["pairs"].to_dataset().sel(width=8, batch_size=16, seed=0, seed_b=1)
    assert np.isnan(pair["mode_connectivity"])
    assert pair["status"] == "collapsed"
    assert tree["models"]["status"].sel(width=8, batch_size=16).values.tolist() == ["collapsed", "ok", "ok"]
    assert tree["curves"]["train_error"].notnull().sum() == 5  # what was measured stays


def test_several_sets_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    lay_out(tmp_path, place(subset="10"), metrics())
    lay_out(tmp_path, place(subset="5"), metrics())
    with pytest.raises(FileError, match=r"subset_10/bs_\*/lr_decay, .*subset_5/bs_\*/lr_decay") as caught:
        published.read(tmp_path)
    assert "Point at one" in str(caught.value)
    chosen = published.read(tmp_path / "different_knobs_subset_5")
    assert chosen["models"].sizes["seed"] == 3


def test_an_archive_and_its_folder_read_the_same(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "unpacked", place(), metrics())
    archive = tmp_path / "results.tar.gz"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(folder, arcname=".")
    assert published.read(archive).identical(published.read(folder))


@pytest.mark.parametrize("file", metrics())
@pytest.mark.parametrize(
    "content", [b"", b"junk", pickle.dumps({0: 1}), pickle.dumps([1]), pickle.dumps({"a": {}})]
)
def test_every_damaged_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    lay_out(tmp_path, place(), {**metrics(), file: content})
    with pytest.raises(FileError, match=f"ResNet18_w8/metrics/{file}"):
        published.read(tmp_path)


def test_an_npz_with_objects_is_refused_without_executing(tmp_path: Path) -> None:
    sentinel = tmp_path / SENTINEL
    stream = io.BytesIO()
    np.savez(stream, ts=np.array([Calls(__import__("os").system, f"touch {sentinel}")], dtype=object))
    lay_out(tmp_path / "x", place(), {**metrics(), "curve_test.npz": stream.getvalue()})
    with pytest.raises(FileError, match=r"curve_test\.npz"):
        published.read(tmp_path / "x")
    assert not sentinel.exists()


def test_a_hostile_pickle_in_an_archive_is_refused(tmp_path: Path) -> None:
    sentinel = tmp_path / SENTINEL
    folder = lay_out(tmp_path / "x", place(), {**metrics(), "hessian.pkl": HOSTILE["os.system"](sentinel)})
    archive = tmp_path / "results.tgz"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(folder, arcname=".")
    with pytest.raises(FileError, match=r"hessian\.pkl is refused: it asks for .*system"):
        published.read(archive)
    assert not sentinel.exists()


def test_a_truncated_or_altered_archive_is_an_error(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "x", place(), metrics())
    archive = tmp_path / "results.tar.gz"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(folder, arcname=".")
    content = archive.read_bytes()
    flipped = bytearray(content)
    flipped[-6] ^= 1  # in the checksum at the end
    cuts = [content[:end] for end in (0, 10, len(content) // 2, len(content) - 9)]
    for damaged in (*cuts, bytes(flipped)):
        archive.write_bytes(damaged)
        with pytest.raises(FileError, match=r"results\.tar\.gz"):
            published.read(archive)


def test_absurd_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_out(tmp_path / "x", place(), metrics())
    archive = tmp_path / "results.tar"
    with tarfile.open(archive, "w") as stream:
        stream.add(folder, arcname=".")
    monkeypatch.setattr(published, "MAX_MEMBER", 100)
    for source in (folder, archive):
        with pytest.raises(FileError, match="at most 100 "):
            published.read(source)
    monkeypatch.setattr(published, "MAX_MEMBER", 10**6)
    monkeypatch.setattr(published, "MAX_ARCHIVE", 500)
    with pytest.raises(FileError, match=r"unpacked, has \d+ bytes.* at most 500"):
        published.read(archive)


def test_a_curve_that_unpacks_to_much_more_is_refused_before_it_does(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, ts=np.zeros(2**22))  # 32 MB of zeros in 33 kB
    assert len(stream.getvalue()) < 10**5
    lay_out(tmp_path, place(), {**metrics(), "curve_test.npz": stream.getvalue()})
    with pytest.raises(FileError, match=r"curve_test\.npz, unpacked, has 3\d{7} bytes, too many"):
        published.read(tmp_path)


def test_units_are_written_as_in_results_of_ones_own(tmp_path: Path) -> None:
    tree = published.read(lay_out(tmp_path, place(), metrics()))
    ours = {q.name: q.units for step in STEPS for group in step.quantities.values() for q in group}
    for group in ("models", "pairs"):
        units = {str(name): v.attrs["units"] for name, v in tree[group].data_vars.items()}
        assert units == {name: ours.get(name, "1") for name in units}
    cells = summary.cells(tree)
    assert cells["test_accuracy"].attrs["units"] == cells["test_accuracy_se"].attrs["units"] == "%"


def test_links_and_paths_out_of_an_archive_are_not_followed(tmp_path: Path) -> None:
    archive = tmp_path / "results.tar"
    with tarfile.open(archive, "w") as stream:
        link = tarfile.TarInfo(f"{place()}/loss_acc.pkl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        stream.addfile(link)
    with pytest.raises(FileError, match="no published results"):
        published.read(archive)


def test_sources_are_told_apart(tmp_path: Path) -> None:
    tree = published.read(lay_out(tmp_path / "published", place(), metrics()))
    (tmp_path / "run").mkdir()
    results.save(tree, tmp_path / "run" / "results.nc")
    for path in (tmp_path / "run", tmp_path / "run" / "results.nc", tmp_path / "published"):
        found = published.load_source(path)
        xr.testing.assert_equal(found["models"].to_dataset()["train_loss"], tree["models"]["train_loss"])
    assert published.is_published(tmp_path / "published")
    assert not published.is_published(tmp_path / "run")
    assert not published.is_published(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for path, what in ((tmp_path / "empty", "holds no results"), (tmp_path / "notes.txt", "holds no results")):
        with pytest.raises(FileError, match=what):
            published.load_source(path)
    with pytest.raises(FileError, match="does not exist"):
        published.load_source(tmp_path / "nowhere")
    with pytest.raises(FileError, match="does not exist"):
        published.read(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------- the real archive


@pytest.fixture(scope="module")
def archive(shared_data: Path) -> xr.DataTree:
    source = shared_data / "taxonomy" / "results.tar.gz"
    if not source.is_file():
        pytest.skip(f"{source} is missing")
    return published.read(source)


def test_the_archive_is_complete(archive: xr.DataTree) -> None:
    models = archive["models"].to_dataset()
    assert dict(models.sizes) == {"width": 14, "batch_size": 8, "seed": 5}
    assert models["train_loss"].notnull().all()
    assert models["hessian_trace"].notnull().all()
    assert results.axes_of(models) == (["width"], ["batch_size"])


def test_the_archive_against_numbers_read_off_its_files(archive: xr.DataTree) -> None:
    """Width 45, batch 16, from a plain `pickle.load` and `numpy.load` of the files."""
    where = {"width": 45, "batch_size": 16}
    models = archive["models"].to_dataset().sel(where)
    assert models["train_loss"].sel(seed=0) == 0.11440772011518478
    assert models["test_error"].sel(seed=1) == 100 - 81.51
    assert models["hessian_trace"].sel(seed=4) == 499.7002944946289
    assert models["hessian_eig"].sel(seed=2) == 32.692012786865234
    pair = archive["pairs"].to_dataset().sel(where).sel(seed=0, seed_b=1)
    assert pair["distance"] == 64.319580078125
    # float32 values, widened exactly
    assert pair["cka"] == (float(np.float32(0.507337)) + float(np.float32(0.48189092))) / 2
    assert pair["mode_connectivity"] == pytest.approx((3.174 + 3.47) / 2 - 0.002, rel=1e-12)


def test_the_two_collapsed_cells_carry_a_status(archive: xr.DataTree) -> None:
    cells = summary.cells(archive)
    unwell = cells["status"] != "ok"
    assert unwell.sum() == 2
    for batch, seed, n_pairs in ((24, 4, 6), (64, 0, 6)):
        cell = cells.sel(width=1, batch_size=batch)
        assert cell["status"] == "collapsed"
        assert "constant" in str(cell["reason"].item())
        assert (cell["n_ok"], cell["cka_n"]) == (4, n_pairs)
        models = archive["models"].to_dataset().sel(width=1, batch_size=batch)
        assert models["seed"].values[models["status"].values == "collapsed"].tolist() == [seed]
    # Only the curve of batch 64 ends in a collapsed model.
    assert np.isnan(cells["mode_connectivity"].sel(width=1, batch_size=64))
    assert cells["mode_connectivity"].sel(width=1, batch_size=24) == pytest.approx(-11.445, rel=1e-12)
    assert cells["mode_connectivity"].notnull().sum() == 111


def test_curves_without_error_have_their_first_maximum_at_an_end(archive: xr.DataTree) -> None:
    pairs = archive["pairs"].to_dataset()
    at_end = pairs["t_star_at_end"] == 1
    assert at_end.sum() == 10
    assert (pairs["mode_connectivity"].where(at_end, 0) == 0).all()


def test_the_archive_is_read_fast_and_without_torch(shared_data: Path) -> None:
    source = shared_data / "taxonomy" / "results.tar.gz"
    code = (
        "import sys; from pathlib import Path; from lossatlas import published; "
        f"published.read(Path({str(source)!r})); "
        "print([m for m in ('torch', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
