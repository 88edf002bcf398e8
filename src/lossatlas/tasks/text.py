"""Corpora of German sentences and their English translations, as byte-pair tokens.

The vocabulary is one for both languages, learnt on the training text [Sennrich 2016] at the level of bytes: any
text has tokens (there is no unknown one), and tokens give back the text as it was.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossatlas import registry
from lossatlas.errors import FileError, UserError
from lossatlas.landscape.sequences import BOS, EOS, PAD
from lossatlas.measures.bleu import library
from lossatlas.tasks.data import DATA_PATH, RawData

SPECIAL = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}
LEAST_VOCABULARY = 256 + len(SPECIAL)  # every byte is a token
HUB = (
    "IWSLT/iwslt2017",
    "iwslt2017-de-en",
    "refs/convert/parquet",
)  # dataset, configuration, revision without code

Pairs = tuple[list[str], list[str]]  # the sentences, and their translations


def multi30k(path: str | None = None, *, vocabulary: int = 4000, max_length: int = 100) -> RawData:
    """Multi30k, task 1: descriptions of images, German to English, from a folder of its raw text files.

    29,000 pairs train, the 1,000 of test_2016_flickr test. See `from_sentences`.
    """
    if path is None:
        raise UserError(
            "Data 'multi30k' are read from a folder with train.de, train.en, test_2016_flickr.de and .en (or .gz) "
            f"of github.com/multi30k/dataset. Say where it is: {DATA_PATH}."
        )
    folder = Path(path)
    return from_sentences(
        _plain(folder, "train"), _plain(folder, "test_2016_flickr"), vocabulary=vocabulary, max_length=max_length
    )


def iwslt(path: str | None = None, *, vocabulary: int = 10_000, max_length: int = 100) -> RawData:
    """IWSLT's TED talks, German to English [Yang2021, appendix D.4]: from a folder, or IWSLT 2017 from the hub.

    A folder holds train.de, train.en, test.de, test.en (or .gz), or train-*.parquet and test-*.parquet with a
    column `translation`, as on the hub. See `from_sentences`.
    """
    if path is not None and not any(Path(path).glob("train-*.parquet")):
        train, test = (_plain(Path(path), part) for part in ("train", "test"))
    else:
        train, test = _from_datasets(path)
    return from_sentences(train, test, vocabulary=vocabulary, max_length=max_length)


def from_sentences(train: Pairs, test: Pairs, *, vocabulary: int, max_length: int) -> RawData:
    """Token arrays of sentence pairs, with a byte-pair vocabulary of at most `vocabulary` tokens.

    Both sides end with EOS. Training pairs of which a side has more than `max_length` tokens, EOS included, are
    left out and counted in `notes`; test pairs are kept whole, whatever their length. The same text gives the same
    arrays. Raises UserError for sides of different length, a vocabulary that cannot hold all bytes, and where the
    extra `text` is missing.
    """
    for part, (source, target) in (("training", train), ("test", test)):
        if len(source) != len(target) or not source:
            raise UserError(
                f"There are {len(source)} {part} sentences and {len(target)} translations; give as many, at least "
                "one."
            )
    if vocabulary < LEAST_VOCABULARY:
        raise UserError(
            f"vocabulary = {vocabulary} was given; allowed are integers from {LEAST_VOCABULARY} on, so that every "
            "byte is a token."
        )
    tokenizer = trained_tokenizer([*train[0], *train[1]], vocabulary)
    encoded = [_encoded(tokenizer, side) for side in (*train, *test)]
    kept = [i for i, pair in enumerate(zip(*encoded[:2], strict=True)) if max(map(len, pair)) <= max_length]
    if not kept:
        raise UserError(f"max_length = {max_length} leaves out all {len(train[0])} training pairs. Give more.")
    left_out = len(train[0]) - len(kept)
    chosen = [[side[i] for i in kept] for side in encoded[:2]]
    train_inputs, train_targets, test_inputs, test_targets = map(_padded, (*chosen, *encoded[2:]))
    notes = (f"{left_out} of {len(train[0])} training pairs have more than {max_length} tokens and are left out.",)
    return RawData(
        train_inputs,
        train_targets,
        test_inputs,
        test_targets,
        classes=tokenizer.get_vocab_size(),
        sequences=True,
        tokenizer=tokenizer.to_str(),
        notes=notes if left_out else (),
    )


def trained_tokenizer(text: Sequence[str], vocabulary: int) -> Any:
    """A byte-pair tokenizer (of `tokenizers`) learnt on lines of text."""
    tokenizers = library("tokenizers")
    level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = level(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SPECIAL[i] for i in sorted(SPECIAL)],
        initial_alphabet=level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _encoded(tokenizer: Any, side: Sequence[str]) -> list[list[int]]:
    tokenizer.encode_special_tokens = True  # a text "<pad>" is a text
    return [[*one.ids, EOS] for one in tokenizer.encode_batch(list(side))]


def _padded(rows: Sequence[Sequence[int]]) -> NDArray[Any]:
    """(N, the longest) integers, as small as they can be."""
    largest = max(max(row) for row in rows)
    kind = np.int16 if largest <= np.iinfo(np.int16).max else np.int32
    table = np.full((len(rows), max(map(len, rows))), PAD, dtype=kind)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return table


def _plain(folder: Path, part: str) -> Pairs:
    return _lines(folder, f"{part}.de"), _lines(folder, f"{part}.en")


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of a text file, or of the same compressed; not cut at the odd characters of `str.splitlines`."""
    readers: dict[str, Callable[[Path], bytes]] = {name: Path.read_bytes, f"{name}.gz": _decompressed}
    for file, read in readers.items():
        if (folder / file).is_file():
            try:
                text = read(folder / file).decode("utf-8")
            except (OSError, EOFError, ValueError) as error:
                raise FileError(f"{folder / file} cannot be read ({error}). Restore it.") from error
            return [line.strip() for line in text.removesuffix("\n").split("\n")]
    raise FileError(f"{folder} holds neither {name} nor {name}.gz. Mend the path: {DATA_PATH}.")


def _decompressed(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def _from_datasets(path: str | None) -> tuple[Pairs, Pairs]:
    """Training and test pairs from parquet files, or from the hub."""
    datasets = registry.extra("datasets", "data 'iwslt' need", "datasets")
    datasets.disable_progress_bars()
    try:
        if path is None:
            name, configuration, revision = HUB
            parts = datasets.load_dataset(name, configuration, revision=revision)
        else:
            files = {part: sorted(map(str, Path(path).glob(f"{part}-*.parquet"))) for part in ("train", "test")}
            parts = datasets.load_dataset("parquet", data_files=files)
        train, test = (_columns(parts[part]["translation"]) for part in ("train", "test"))
    except Exception as error:  # the library raises all sorts of things on damaged files
        raise FileError(
            f"IWSLT cannot be loaded from {path or 'the hub'} ({error}). Say where a folder with train.de, "
            f"train.en, test.de and test.en is, or with train-*.parquet and test-*.parquet: {DATA_PATH}."
        ) from error
    return train, test


def _columns(rows: Iterable[Any]) -> Pairs:
    pairs = [(row["de"].strip(), row["en"].strip()) for row in rows]
    return [german for german, _ in pairs], [english for _, english in pairs]
