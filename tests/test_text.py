"""Corpora as tokens: the text comes back as it was, and the same text gives the same arrays."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lossatlas import registry
from lossatlas.errors import FileError, UserError
from lossatlas.landscape.sequences import EOS, PAD
from lossatlas.sweep import data_cache
from lossatlas.tasks import data, text
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples

tokenizers = pytest.importorskip("tokenizers", reason="the extra [text] is not installed")

GERMAN = [
    "Zwei junge Männer im Freien.",
    "Ein Hund läuft über die Wiese.",
    "Ein Mann.",
    "Übergröße  ❤ <pad>\u2028x",
]
ENGLISH = ["Two young men outside.", "A dog runs across the meadow.", "A man.", "Oversize  ❤ <eos>\u2028x"]
LONG = " ".join(["immer weiter"] * 30)


def corpus(folder: Path, *, compressed: bool = False, train: int = 4) -> Path:
    """Text files of `train` training pairs and one test pair."""
    folder.mkdir(exist_ok=True)
    for language, sentences in (("de", GERMAN), ("en", ENGLISH)):
        for part, lines in (("train", sentences[:train]), ("test", sentences[1:2])):
            content = ("\n".join(lines) + "\n").encode()
            if compressed:
                (folder / f"{part}.{language}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{part}.{language}").write_bytes(content)
    return folder


def texts(raw: RawData, array: np.ndarray) -> list[str]:
    tokenizer = tokenizers.Tokenizer.from_str(raw.tokenizer)
    return [tokenizer.decode([int(t) for t in row if t not in (PAD, EOS)]).strip() for row in array]


def test_tokens_give_back_the_text_as_it_was(tmp_path: Path) -> None:
    raw = data.load("iwslt", str(corpus(tmp_path)), {"vocabulary": 300})
    assert texts(raw, raw.train_inputs) == GERMAN
    assert texts(raw, raw.train_targets) == ENGLISH
    assert texts(raw, raw.test_targets) == ENGLISH[1:2]
    assert raw.sequences
    assert 256 < raw.classes <= 300
    unseen = "日本語, Straße"  # has tokens too, since every byte has
    tokenizer = tokenizers.Tokenizer.from_str(raw.tokenizer)
    assert tokenizer.decode(tokenizer.encode(unseen).ids).strip() == unseen


def test_every_row_ends_with_one_end(tmp_path: Path) -> None:
    raw = data.load("iwslt", str(corpus(tmp_path)), {"vocabulary": 300})
    for name in data_cache.ARRAYS:
        array = getattr(raw, name)
        counts = (array != PAD).sum(1)
        assert array.dtype == np.int16
        assert array.shape[1] == counts.max()
        assert (array[np.arange(len(array)), counts - 1] == EOS).all()
        assert ((array == EOS).sum(1) == 1).all()


def test_files_may_be_compressed(tmp_path: Path) -> None:
    plain = data.load("iwslt", str(corpus(tmp_path / "plain")))
    packed = data.load("iwslt", str(corpus(tmp_path / "packed", compressed=True)))
    assert plain.fingerprint() == packed.fingerprint()


def test_the_same_text_gives_the_same_tokens_in_other_processes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = ["".join(map(chr, generator.integers(97, 123, 5))) for _ in range(300)]
    lines = [" ".join(generator.choice(words, 8)) for _ in range(400)]
    corpus(tmp_path)
    for name in ("train.de", "train.en"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    program = f"from lossatlas.tasks import data; print(data.load('iwslt', {str(tmp_path)!r}).fingerprint())"
    prints = {data.load("iwslt", str(tmp_path)).fingerprint()}
    for threads in ("1", "2"):  # the library counts words on several
        environment = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        prints.add(done.stdout.strip())
    assert len(prints) == 1


def test_the_vocabulary_is_part_of_the_content(tmp_path: Path) -> None:
    folder = str(corpus(tmp_path))
    prints = {data.load("iwslt", folder, {"vocabulary": size}).fingerprint() for size in (280, 300, 301)}
    assert len(prints) == 3


def test_long_pairs_are_left_out_of_training_and_told_and_kept_in_the_test(tmp_path: Path) -> None:
    corpus(tmp_path)
    for name in ("train.de", "test.en"):
        (tmp_path / name).write_text(
            (tmp_path / name).read_text().replace("Ein Hund", LONG).replace("A dog", LONG)
        )
    raw = data.load("iwslt", str(tmp_path), {"vocabulary": 270, "max_length": 40})
    assert texts(raw, raw.train_inputs) == [GERMAN[0], GERMAN[2], GERMAN[3]]
    assert texts(raw, raw.train_targets) == [ENGLISH[0], ENGLISH[2], ENGLISH[3]]
    assert raw.notes == ("1 of 4 training pairs have more than 40 tokens and are left out.",)
    assert texts(raw, raw.test_targets) == [ENGLISH[1].replace("A dog", LONG)]
    assert data.load("iwslt", str(tmp_path), {"vocabulary": 270, "max_length": 1000}).notes == ()
    with pytest.raises(UserError, match="max_length = 2 leaves out all 4 training pairs"):
        data.load("iwslt", str(tmp_path), {"max_length": 2})


def test_the_data_keep(tmp_path: Path) -> None:
    raw = data.load("iwslt", str(corpus(tmp_path / "text")), {"vocabulary": 270, "max_length": 15})
    assert raw.notes
    data_cache.keep(tmp_path, raw, raw.fingerprint())
    back = data_cache.kept(tmp_path, raw.fingerprint())
    assert back is not None
    assert (back.tokenizer, back.sequences, back.notes) == (raw.tokenizer, True, raw.notes)
    for name in data_cache.ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(raw, name), strict=True)


def test_facts_tell_usual_lengths(tmp_path: Path) -> None:
    raw = data.load("iwslt", str(corpus(tmp_path)), {"vocabulary": 300})
    facts = raw.facts()
    assert facts.tokens is not None
    assert (facts.n_train, facts.n_test, facts.classes) == (4, 1, raw.classes)
    longest = (raw.train_inputs.shape[1], raw.train_targets.shape[1])
    assert all(0 < usual <= most for usual, most in zip(facts.tokens, longest, strict=True))


def test_what_is_wrong_with_a_corpus_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"multi30k.*Say where it is"):
        data.load("multi30k", None)
    with pytest.raises(FileError, match=r"holds neither train.de nor train.de.gz. Mend the path"):
        data.load("iwslt", str(tmp_path))
    folder = corpus(tmp_path)
    with pytest.raises(UserError, match="vocabulary = 200 was given; allowed are integers from 259 on"):
        data.load("iwslt", str(folder), {"vocabulary": 200})
    with pytest.raises(UserError, match="data 'iwslt' have no option limit; allowed are vocabulary, max_length"):
        data.load("iwslt", str(folder), {"limit": 3})
    (folder / "train.de").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="There are 2 training sentences and 4 translations"):
        data.load("iwslt", str(folder))
    (folder / "train.de").write_bytes(b"\xff\xfe\n" * 4)
    with pytest.raises(FileError, match=r"train.de cannot be read .*utf-8"):
        data.load("iwslt", str(folder))
    (folder / "train.de").unlink()
    (folder / "train.de.gz").write_bytes(gzip.compress(b"one\n")[:-3])
    with pytest.raises(FileError, match=r"train.de.gz cannot be read"):
        data.load("iwslt", str(folder))


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs tokenizers, of the extra: pip install 'lossatlas\[text\]'"):
        data.load("iwslt", str(corpus(tmp_path)))


def test_iwslt_comes_from_parquet_files_as_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra [datasets] is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    features = datasets.Features({"translation": datasets.Translation(languages=["de", "en"])})
    for part, pairs in (
        ("train-00000-of-00001", zip(GERMAN, ENGLISH, strict=True)),
        ("test-00000-of-00001", [(GERMAN[1], ENGLISH[1])]),
    ):
        table = [{"de": german, "en": english} for german, english in pairs]
        datasets.Dataset.from_dict({"translation": table}, features=features).to_parquet(
            tmp_path / f"{part}.parquet"
        )
    found = data.load("iwslt", str(tmp_path))
    assert found.fingerprint() == data.load("iwslt", str(corpus(tmp_path / "plain"))).fingerprint()
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(FileError, match="IWSLT cannot be loaded"):
        data.load("iwslt", str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train_inputs": np.array([[3, 0, 4], [3, 4, 2]])}, "train_inputs must hold at least one token a row"),
        ({"test_targets": np.array([[0, 0], [3, 2]])}, "test_targets must hold at least one token a row"),
        ({"train_targets": np.array([[3, 9], [3, 2]])}, "train_targets hold tokens beyond 0 to 8"),
        ({"train_targets": np.array([[-1, 2], [3, 2]])}, "train_targets hold tokens beyond"),
        ({"test_inputs": np.array([3, 2])}, r"test_inputs are int64 of shape \(2,\); sequences must be integers"),
        ({"test_inputs": np.ones((2, 2))}, "test_inputs are float64"),
        ({"test_inputs": np.array([[3, 2]])}, "there are 1 test inputs and 2 targets"),
    ],
)
def test_sequences_of_ones_own_are_checked(
    changes: dict[str, np.ndarray], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = np.array([[3, 4, 2], [5, 2, 0]])
    arrays = dict.fromkeys(data_cache.ARRAYS, good) | changes
    raw = RawData(**arrays, classes=9, sequences=True)
    monkeypatch.setattr(text, "iwslt", lambda: raw)
    with pytest.raises(UserError, match=problem):
        data.load("lossatlas.tasks.text:iwslt", None)


def test_batches_are_as_wide_as_their_longest_rows() -> None:
    source = np.array([[3, 2, 0, 0], [3, 4, 5, 2], [2, 0, 0, 0]], np.int16)
    target = np.array([[3, 3, 2], [2, 0, 0], [4, 2, 0]], np.int16)
    samples = Samples(source, target, RawData(source, target, source, target, 6, sequences=True))
    shapes = [(tuple(x.shape), tuple(y.shape)) for x, y in samples.batches(2)()]
    assert shapes == [((2, 4), (2, 3)), ((1, 1), (1, 2))]
    assert samples.head(1)[0].tolist() == [[3, 2]]
    for x, y in samples.batches(1)():
        assert x.dtype == y.dtype == samples.head(1)[0].dtype
    rows = [
        (tuple(x[x != PAD].tolist()), tuple(y[y != PAD].tolist()))
        for batch in samples.shuffled(2, torch.Generator().manual_seed(0), drop_last=False)
        for x, y in zip(*batch, strict=True)
    ]
    assert sorted(rows) == sorted([((3, 2), (3, 3, 2)), ((3, 4, 5, 2), (2,)), ((2,), (4, 2))])


def test_multi30k(shared_data: Path) -> None:
    folder = shared_data / "multi30k"
    if not folder.is_dir():
        pytest.skip(f"Multi30k is not at {folder}")
    raw = data.load("multi30k", str(folder))
    assert raw.facts() == registry.DATA["multi30k"].facts
    assert raw.notes == ()
    english = gzip.decompress((folder / "test_2016_flickr.en.gz").read_bytes()).decode().splitlines()
    assert texts(raw, raw.test_targets) == [line.strip() for line in english]
