"""Sentences as integers: a vocabulary, padded tokens, and the sentiment sentences of SST-2."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcore.checks import check_positive
from kdcore.data.arrays import Arrays
from kdcore.data.dataset import Dataset, MissingDataError, data_folders, verify_file

__all__ = ["PADDING", "UNKNOWN", "TextDataset", "build_vocabulary", "encode", "sst2"]

PADDING, UNKNOWN = 0, 1
"""Token numbers of a place after the sentence's end, and of a word that is not in the vocabulary."""

_SST2_FILES = {
    "SST2/train.tsv": "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
    "SST2/dev.tsv": "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
    "SST2/test.tsv": "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
}


@dataclass(frozen=True)
class TextDataset(Dataset):
    """Labelled sentences; `inputs` of each split are int64 token numbers of shape (N, L).

    Attributes:
        vocabulary: the word of each token number; the first two stand for padding and unknown words.
        validation: a third split, disjoint from the others.

    Example:
        >>> splits = [Arrays(inputs=encode(["so good"], {"good": 2}, 3), labels=torch.tensor([1]))] * 3
        >>> TextDataset("toy", ("bad", "good"), *splits[:2], "typed here", ("", "?", "good"), splits[2]).read(0)
        '? good'
    """

    vocabulary: tuple[str, ...]
    validation: Arrays

    def read(self, row: int) -> str:
        """The training sentence of a row, as a network sees it."""
        return " ".join(self.vocabulary[token] for token in self.train.inputs[row].tolist() if token != PADDING)

    def to(self, device: torch.device | str) -> TextDataset:
        """The same data set on `device`."""
        parts = (self.train.to(device), self.test.to(device))
        return TextDataset(
            self.name, self.classes, *parts, self.provenance, self.vocabulary, self.validation.to(device)
        )


def build_vocabulary(sentences: Iterable[str], min_count: int = 1) -> dict[str, int]:
    """Token numbers of the words, from 2 on: frequent words first, equally frequent ones by alphabet.

    Args:
        sentences: words are separated by blanks; capitals are not told from small letters.
        min_count: words that occur less often are left out.

    Raises:
        ValueError: `min_count` is not positive.

    Example:
        >>> build_vocabulary(["a good film", "A bad film", "film"], min_count=2)
        {'film': 2, 'a': 3}
    """
    check_positive(min_count=min_count)
    counts = Counter(word for sentence in sentences for word in sentence.lower().split())
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    return {word: number for number, word in enumerate(kept, start=2)}


def encode(sentences: Iterable[str], vocabulary: Mapping[str, int], length: int) -> Tensor:
    """Sentences as token numbers, cut or padded to one length.

    Args:
        sentences: words are separated by blanks.
        vocabulary: token number by word, from `build_vocabulary`.
        length: L, tokens kept of each sentence.

    Returns:
        int64, shape (N, L): 0 for padding, 1 for a word that the vocabulary lacks.

    Raises:
        ValueError: no sentence, or `length` is not positive.

    Example:
        >>> encode(["A film", "a very bad film"], {"film": 2, "a": 3}, length=3)
        tensor([[3, 2, 0],
                [3, 1, 1]])
    """
    check_positive(length=length)
    rows = [[vocabulary.get(word, UNKNOWN) for word in sentence.lower().split()[:length]] for sentence in sentences]
    if not rows:
        raise ValueError("sentences must hold at least one sentence, got none.")
    return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])


def sst2(
    data_dir: str | Path | None = None, *, length: int = 32, min_count: int = 2, device: torch.device | str = "cpu"
) -> TextDataset:
    """SST-2: 6,920 + 1,821 sentences of film reviews and 872 for validation, negative (0) or positive (1).

    Args:
        data_dir: folder that holds `SST2/{train,dev,test}.tsv`, a sentence and a label per line; see `data_folders`
            for the others tried.
        length: L, tokens kept of each sentence.
        min_count: training words that occur less often are unknown words.
        device: where the tensors lie.

    Raises:
        MissingDataError: the files are in none of the folders; nobody downloads them.
        ValueError: a file is corrupt, or `length` or `min_count` is not positive.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "SST2").mkdir()
        >>> for name in _SST2_FILES:
        ...     _ = (folder / name).write_bytes(b"not the original")
        >>> sst2(folder)
        Traceback (most recent call last):
        ValueError: ...train.tsv is corrupt (...); delete it and try again.
    """
    folders = data_folders(data_dir)
    found = [folder for folder in folders if all((folder / name).exists() for name in _SST2_FILES)]
    if not found:
        raise MissingDataError(
            f"SST-2 is not on this machine. Put {', '.join(_SST2_FILES)} (a sentence, a tab and a label per line) into "
            f"{folders[0]}, or name their folder by data_dir or KDCORE_DATA."
        )
    for name, sha256 in _SST2_FILES.items():
        verify_file(found[0] / name, sha256)
    train, validation, test = (_read(found[0] / name) for name in _SST2_FILES)
    vocabulary = build_vocabulary((sentence for sentence, _ in train), min_count)
    train_split, test_split, validation_split = (
        Arrays(
            inputs=encode((sentence for sentence, _ in rows), vocabulary, length),
            labels=torch.tensor([label for _, label in rows]),
        )
        for rows in (train, test, validation)
    )
    return TextDataset(
        name="sst2",
        classes=("negative", "positive"),
        train=train_split,
        test=test_split,
        provenance=f"SST-2 (Socher et al. 2013), {len(train)} sentences for training, from {found[0].name}/SST2",
        vocabulary=("", "?", *vocabulary),
        validation=validation_split,
    ).to(device)


def _read(path: Path) -> list[tuple[str, int]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(sentence, int(label)) for sentence, label in rows]
