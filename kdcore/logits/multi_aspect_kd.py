r"""Multi-aspect distillation: a student also learns to answer yes-or-no questions about each training image.

Taegyeong Lee, Jinsik Bang, Soyeong Kwon, Taehwan Kim: *Multi-aspect Knowledge Distillation with Large Language
Model*, CVPR 2025 Workshop on Fine-Grained Visual Categorization, arXiv 2501.13341.

**Idea.** A label says which class an image has, not by what one sees it. A language model is asked for yes-or-no
questions about the data set, a multimodal model answers each of them for each training image, and the student gets an
extra output unit per question that is to predict the answer. The answerer may be a poor classifier and still help. The
extra units are for training only.

**Equations.** Batch of $B$ images, $C$ classes, $Q$ questions. From the answerer's logits of "Yes" and "No" at the
first generated token, for image $i$ and question $q$,

$$a_{iq}=\frac{e^{\ell_{yes}}}{e^{\ell_{yes}}+e^{\ell_{no}}}=\sigma(\ell_{yes}-\ell_{no}) \tag{1}$$

computed once per training image and constant from then on. One linear layer has $C+Q$ outputs, $o=[z\,|\,v]$ with
$z\in\mathbb R^{B\times C}$ and $v\in\mathbb R^{B\times Q}$. With a weight $w$, 1 by default, the loss is

$$L=-\frac wB\sum_i\log\mathrm{softmax}(z_i)_{y_i}+\alpha L_{asp} \tag{2}$$

$$L_{asp}=-\frac1{BQ}\sum_{i,q}\bigl[a_{iq}\log\sigma(v_{iq})+(1-a_{iq})\log(1-\sigma(v_{iq}))\bigr] \tag{3}$$

The softmax runs over the $C$ class columns only, the mean in (3) over images **and** questions: the weight of a
single question is $\alpha/Q$. The gradient of (3) at $v_{iq}$ is $(\sigma(v_{iq})-a_{iq})/(BQ)$. $L_{asp}$ is smallest
at $v=\mathrm{logit}(a)$, where it is the mean entropy of the answers, not 0.

**Paper and code.** The published validation takes the argmax over all $C+Q$ outputs, so that a sure "yes" may win
against every class; here, as the paper describes it, only class columns predict (`ClassColumns`). The published code
answers questions on the whole image and trains on random crops of it, for which an answer may be wrong. It takes the
ids of "Yes" and "No" from one tokenizer; here they are looked up (`single_token`). A temperature in its configuration
is never used; there is none here. Its CIFAR-100 configurations belong to another method.

**Source status.** Loss, trainer, validation, both scripts that extract answers, the configuration for OxfordPets and
the README with its prompts and its two main tables were read in the authors' code. The paper's ablations rest on
memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_finite,
    check_fraction,
    check_labels,
    check_not_negative,
    check_positive,
    check_same_shape,
    readable,
)
from kdcore.data import Arrays
from kdcore.precision import at_least_float32
from kdcore.training import Learner

__all__ = [
    "MEASURES",
    "AspectSource",
    "AspectTable",
    "ClassColumns",
    "LanguageModelAspects",
    "MultiAspectDistillation",
    "MultiAspectLoss",
    "ProceduralOracle",
    "aspect_loss",
    "check_answers",
    "class_mean_answers",
    "flipped_answers",
    "hard_answers",
    "measure",
    "shuffled_answers",
    "single_token",
    "split_outputs",
    "with_aspects",
    "yes_probability",
]

MEASURES: tuple[str, ...] = (
    "Is there much ink?",
    "Is there more ink in the upper half than in the lower?",
    "Is there more ink on the left than on the right?",
    "Is there ink in the centre?",
    "Is it symmetric from left to right?",
    "Is it symmetric from top to bottom?",
    "Does it look the same upside down?",
    "Does it lean to the right?",
    "Is it wide?",
    "Does it enclose a hole?",
    "Is there a hole in the upper half?",
    "Is there a hole in the lower half?",
    "Is it drawn in several pieces?",
    "Is the stroke thick?",
    "Is there a horizontal stroke near the top?",
    "Is there a horizontal stroke near the bottom?",
    "Is there a tall vertical stroke?",
    "Does a horizontal line through the middle cross it more than once?",
    "Does a vertical line through the middle cross it more than twice?",
    "Is there ink in the lower left corner?",
)
"""The questions of `ProceduralOracle`, in the order of the columns of `measure`."""


def yes_probability(yes_logits: Tensor, no_logits: Tensor) -> Tensor:
    """Soft answers from two logits, equation (1).

    Args:
        yes_logits: of the token "Yes", any shape.
        no_logits: of the token "No", the same shape.

    Returns:
        Probabilities of the same shape.

    Raises:
        ValueError: shapes differ, or a value is not finite.

    Example:
        >>> yes_probability(torch.tensor([2.0]), torch.tensor([2.0]))
        tensor([0.5000])
    """
    check_same_shape(yes_logits=yes_logits, no_logits=no_logits)
    check_finite(yes_logits=yes_logits, no_logits=no_logits)
    return (at_least_float32(yes_logits) - at_least_float32(no_logits)).sigmoid()


def split_outputs(outputs: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Class logits z and aspect logits v, the two blocks of a student's outputs.

    Args:
        outputs: shape (B, C + Q).
        num_classes: C.

    Returns:
        z of shape (B, C) and v of shape (B, Q); views, no copies.

    Raises:
        ValueError: `outputs` is no matrix, C < 2, or no column is left for a question.

    Example:
        >>> [part.shape[1] for part in split_outputs(torch.zeros(4, 15), num_classes=10)]
        [10, 5]
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
    if outputs.ndim != 2 or outputs.shape[0] < 1 or outputs.shape[1] <= num_classes:
        raise ValueError(
            f"outputs must have shape (B, C + Q) with C = {num_classes}, Q >= 1 and at least one row, "
            f"got {tuple(outputs.shape)}."
        )
    return outputs[:, :num_classes], outputs[:, num_classes:]


def check_answers(answers: Tensor, rows: int, questions: int) -> None:
    """Raise `ValueError` unless `answers` holds probabilities for every row and question.

    Args:
        answers: wanted of shape (rows, questions), floating point, in [0, 1].
        rows: B or N.
        questions: Q.

    Raises:
        ValueError: shape or type is wrong, or a value is NaN or outside [0, 1].

    Example:
        >>> check_answers(torch.tensor([[0.2, 1.7]]), rows=1, questions=2)
        Traceback (most recent call last):
        ValueError: answers must be probabilities in [0, 1], got values from 0.2 to 1.7.
    """
    if answers.shape != (rows, questions):
        raise ValueError(
            f"answers must have one row per image and one column per question, ({rows}, {questions}), "
            f"got {tuple(answers.shape)}."
        )
    if not answers.is_floating_point():
        raise ValueError(f"answers must be floating point, got {answers.dtype}.")
    check_finite(answers=answers)
    if readable(answers) and answers.numel():
        low, high = (value.item() for value in answers.detach().aminmax())
        if low < 0 or high > 1:
            raise ValueError(f"answers must be probabilities in [0, 1], got values from {low:.3g} to {high:.3g}.")


def aspect_loss(aspect_logits: Tensor, answers: Tensor) -> Tensor:
    """Mean binary cross-entropy over images and questions, equation (3).

    Args:
        aspect_logits: v, shape (B, Q), before any sigmoid.
        answers: a, shape (B, Q), in [0, 1]; no gradient flows into them.

    Returns:
        Scalar, at least the mean binary entropy of the answers; ln 2 at v = 0.

    Raises:
        ValueError: a value of `aspect_logits` is not finite, or `answers` are no probabilities of its shape.

    Example:
        >>> aspect_loss(torch.zeros(3, 5), torch.rand(3, 5))
        tensor(0.6931)
    """
    if aspect_logits.ndim != 2:
        raise ValueError(f"aspect_logits must have shape (B, Q), got {tuple(aspect_logits.shape)}.")
    check_finite(aspect_logits=aspect_logits)
    check_answers(answers, *aspect_logits.shape)
    logits = at_least_float32(aspect_logits)
    return F.binary_cross_entropy_with_logits(logits, answers.detach().to(logits.dtype))


def hard_answers(answers: Tensor) -> Tensor:
    """Control: each answer rounded to 0 or 1 (a half to 1).

    Args:
        answers: shape (N, Q), in [0, 1].

    Returns:
        Zeros and ones of the same shape and type.

    Raises:
        ValueError: `answers` are no probabilities.

    Example:
        >>> hard_answers(torch.tensor([[0.2, 0.5, 0.9]]))
        tensor([[0., 1., 1.]])
    """
    check_answers(answers, *_matrix(answers))
    return (answers >= 0.5).to(answers.dtype)


def class_mean_answers(answers: Tensor, labels: Tensor) -> Tensor:
    """Control: each image gets the mean answers of its class, which say nothing about the image.

    Args:
        answers: shape (N, Q), in [0, 1].
        labels: shape (N,).

    Returns:
        Shape (N, Q).

    Raises:
        ValueError: `answers` are no probabilities, or `labels` do not fit.

    Example:
        >>> class_mean_answers(torch.tensor([[0.2], [0.4], [1.0]]), torch.tensor([0, 0, 1])).flatten()
        tensor([0.3000, 0.3000, 1.0000])
    """
    check_answers(answers, *_matrix(answers))
    number = int(labels.max()) + 1 if labels.numel() else 0
    check_labels(labels, len(answers), number)
    members = F.one_hot(labels, number).to(answers.dtype)
    means = (members.T @ answers) / members.sum(dim=0).clamp(min=1)[:, None]
    return means[labels]


def shuffled_answers(answers: Tensor, seed: int) -> Tensor:
    """Control: the rows in random order, so that each image gets the answers for another one.

    Args:
        answers: shape (N, Q), in [0, 1].
        seed: of the order.

    Returns:
        Shape (N, Q); every column keeps its values, and every row its correlations.

    Raises:
        ValueError: `answers` are no probabilities.

    Example:
        >>> shuffled_answers(torch.tensor([[0.0], [0.5], [1.0]]), seed=1).sum()
        tensor(1.5000)
    """
    check_answers(answers, *_matrix(answers))
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed))
    return answers[order.to(answers.device)]


def flipped_answers(answers: Tensor, share: float, seed: int) -> Tensor:
    """An inaccurate answerer: each answer a becomes 1 − a with probability `share`, apart from all others.

    Args:
        answers: shape (N, Q), in [0, 1].
        share: in [0, 1]; at ½ nothing is left to learn but that nothing is known.
        seed: of the choice.

    Returns:
        Shape (N, Q).

    Raises:
        ValueError: `answers` are no probabilities, or `share` lies outside [0, 1].

    Example:
        >>> flipped_answers(torch.tensor([[0.25, 1.0]]), share=1.0, seed=0)
        tensor([[0.7500, 0.0000]])
    """
    check_answers(answers, *_matrix(answers))
    check_fraction(share=share)
    flipped = torch.rand(answers.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(flipped.to(answers.device), 1 - answers, answers)


class AspectSource(Protocol):
    """Who answers the questions. Anything with these two members will do.

    Attributes:
        questions: Q questions in a fixed order, that of the columns.

    Example:
        >>> class Sceptic:
        ...     questions = ("Is it so?",)
        ...
        ...     def answer(self, images, keys):
        ...         return torch.full((len(images), 1), 0.5)
        >>> with_aspects(Arrays(inputs=torch.zeros(2, 1, 8, 8)), Sceptic()).answers.tolist()
        [[0.5], [0.5]]
    """

    questions: tuple[str, ...]

    def answer(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Probabilities of "yes" of shape (N, Q) for images (N, c, H, W), each with a name of its own."""


def with_aspects(data: Arrays, source: AspectSource, keys: Sequence[str] | None = None) -> Arrays:
    """`data` with the source's answers as `answers`, asked once. For training data; test images are never asked about.

    Args:
        data: with `inputs`, the images without augmentation.
        source: who answers.
        keys: one name per image, for a source that looks answers up; row numbers if left out.

    Returns:
        The same arrays and `answers` (N, Q), on the data's device.

    Raises:
        ValueError: `keys` are not one per image, or what the source returns are no probabilities for every image and
            question.

    Example:
        >>> images = torch.rand(6, 1, 8, 8)
        >>> with_aspects(Arrays(inputs=images), ProceduralOracle(images)).answers.shape
        torch.Size([6, 20])
    """
    keys = [str(row) for row in range(len(data))] if keys is None else list(keys)
    if len(keys) != len(data):
        raise ValueError(f"keys must name each of the {len(data)} images, got {len(keys)}.")
    answers = source.answer(data.inputs, keys)
    check_answers(answers, len(data), len(source.questions))
    return data.with_(answers=answers.detach().to(data.device, torch.float32))


def measure(images: Tensor) -> Tensor:
    """What `MEASURES` ask about, as numbers that are larger the more an image deserves a "yes".

    Args:
        images: bright strokes on black, shape (N, 1, H, W) in [0, 1], H and W at least 6.

    Returns:
        Shape (N, 20), on the CPU.

    Raises:
        ValueError: the shape is another one, or a value is not finite or lies outside [0, 1].

    Example:
        >>> ring = torch.zeros(1, 1, 8, 8)
        >>> ring[0, 0, 1:7, 2:6] = 1.0
        >>> ring[0, 0, 2:6, 3:5] = 0.0
        >>> found = dict(zip(MEASURES, measure(ring)[0].tolist()))
        >>> found["Does it enclose a hole?"], found["Is it drawn in several pieces?"]
        (1.0, 1.0)
    """
    if images.ndim != 4 or images.shape[1] != 1 or min(images.shape[2:]) < 6:
        raise ValueError(f"images must have shape (N, 1, H, W) with H, W >= 6, got {tuple(images.shape)}.")
    check_finite(images=images)
    if images.numel() and (images.min() < 0 or images.max() > 1):
        raise ValueError(
            f"images must lie in [0, 1], got values from {images.min().item():.3g} to {images.max().item():.3g}."
        )
    ink = images.squeeze(1).float().cpu()
    height, width = ink.shape[1:]
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]
    total = ink.sum(dim=(1, 2)).clamp(min=1e-6)

    def share(where: Tensor) -> Tensor:
        """Part of the ink on a region, or its moment with a function of place."""
        return (ink * where).sum(dim=(1, 2)) / total

    def likeness(other: Tensor) -> Tensor:
        return 1 - (ink - other).abs().sum(dim=(1, 2)) / (2 * total)

    x, y = share(columns), share(rows)
    spread_x, spread_y = (share(columns**2) - x**2).clamp(min=1e-4), (share(rows**2) - y**2).clamp(min=1e-4)
    lean = -(share(rows * columns) - x * y) / (spread_x * spread_y).sqrt()
    mask = ink > 0.4 * ink.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    third = max(1, height // 3)
    by_row, by_column = ink.mean(dim=2), ink.mean(dim=1)
    shape = torch.tensor(np.array([_topology(one) for one in mask.numpy()]).reshape(-1, 4), dtype=torch.float32)
    values = [
        ink.mean(dim=(1, 2)),
        share((rows < 0).float()) - share((rows > 0).float()),
        share((columns < 0).float()) - share((columns > 0).float()),
        share(((rows.abs() < 0.34) & (columns.abs() < 0.34)).float()),
        likeness(ink.flip(2)),
        likeness(ink.flip(1)),
        likeness(ink.flip(1, 2)),
        lean,
        (spread_x / spread_y).log(),
        *shape.T,
        mask.sum(dim=(1, 2)) / _edges(mask).clamp(min=1),
        by_row[:, :third].amax(dim=1),
        by_row[:, -third:].amax(dim=1),
        by_column.amax(dim=1),
        _runs(mask[:, height // 2]),
        _runs(mask[:, :, width // 2]),
        share(((rows > 0.34) & (columns < 0)).float()),
    ]
    return torch.stack([value.float() for value in values], dim=1)


def _topology(mask: np.ndarray) -> tuple[int, float, float, int]:
    """Holes, their pixels (as a share of the image) in the upper and in the lower half, and connected pieces."""
    # A stroke is connected across corners; what it encloses must then not leak across corners.
    pieces = ndimage.label(mask, structure=np.ones((3, 3)))[1]
    background, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    inside = ((background > 0) & (background != background[0, 0]))[1:-1, 1:-1]
    half = len(mask) // 2
    return count - 1, inside[:half].mean(), inside[half:].mean(), pieces


def _edges(mask: Tensor) -> Tensor:
    """Steps between stroke and background: the length of the outline, in pixels."""
    padded = F.pad(mask, (1, 1, 1, 1)).int()
    return padded.diff(dim=1).abs().sum(dim=(1, 2)) + padded.diff(dim=2).abs().sum(dim=(1, 2))


def _runs(lines: Tensor) -> Tensor:
    """How often each line (N, L) enters the stroke."""
    return (F.pad(lines, (1, 0)).int().diff(dim=1) > 0).sum(dim=1)


class ProceduralOracle:
    """Answers by measurement: σ(slope · (m − m₀) / s), with mean m₀ and spread s of each measure over some images.

    It stands in for a multimodal model where there is none: it sees the image only, never the label.

    Args:
        images: training images (N, 1, H, W) in [0, 1], at least two, that say what is usual.
        slope: how sure it is; large values give nearly hard answers.
        questions: which of `MEASURES`, in order; all if left out.

    Raises:
        ValueError: the images do not fit `measure`, there are fewer than two, `slope` is not positive, or a question
            is unknown, repeated, or there is none.

    Example:
        >>> images = torch.rand(50, 1, 8, 8)
        >>> oracle = ProceduralOracle(images, questions=("Is there much ink?",))
        >>> bright, dark = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
        >>> (oracle.answer(bright, ["a"]) > 0.9).item(), (oracle.answer(dark, ["b"]) < 0.1).item()
        (True, True)
    """

    def __init__(self, images: Tensor, slope: float = 2.0, questions: Sequence[str] = MEASURES) -> None:
        check_positive(slope=slope)
        unknown = [question for question in questions if question not in MEASURES]
        if unknown or not questions or len(set(questions)) < len(questions):
            raise ValueError(f"questions must be different members of MEASURES, at least one, got {list(questions)!r}.")
        if len(images) < 2:
            raise ValueError(f"images must be at least two, to know what is usual, got {len(images)}.")
        self.questions = tuple(questions)
        self.slope = slope
        self._columns = [MEASURES.index(question) for question in questions]
        usual = measure(images)[:, self._columns]
        # A measure that never varies gives 0.5 for its constant; its spread must not be a divisor of 0.
        self._mean, self._spread = usual.mean(dim=0), usual.std(dim=0).clamp(min=1e-6)

    def answer(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Answers (N, Q) for images as in `measure`; `keys` are not looked at."""
        found = measure(images)[:, self._columns]
        return (self.slope * (found - self._mean) / self._spread).sigmoid().to(images.device)


class AspectTable:
    """Answers that were computed before, by image key; read from JSON, written as JSON.

    The file is one object: ``{"questions": [...], "answers": {"<image key>": [one probability per question]}}``.

    Args:
        questions: Q questions, in the order of the columns.
        answers: image key → Q probabilities.

    Raises:
        ValueError: there is no question or one is repeated, or a row has another length, a NaN, or a value outside
            [0, 1]; names the image.

    Example:
        >>> table = AspectTable(["Is it red?"], {"apple.png": [0.9], "pear.png": [0.1]})
        >>> table.answer(torch.zeros(2, 3, 8, 8), ["pear.png", "apple.png"])
        tensor([[0.1000], [0.9000]])
    """

    def __init__(self, questions: Sequence[str], answers: dict[str, Sequence[float]]) -> None:
        if not questions or len(set(questions)) < len(questions):
            raise ValueError(f"questions must be different, and at least one, got {list(questions)!r}.")
        self.questions = tuple(questions)
        self._rows = {key: torch.tensor(row, dtype=torch.float32) for key, row in answers.items()}
        for key, row in self._rows.items():
            try:
                check_answers(row.reshape(1, -1), 1, len(questions))
            except ValueError as error:
                raise ValueError(f"answers of image {key!r}: {error}") from None

    @classmethod
    def read(cls, path: str | Path) -> AspectTable:
        """The table in a JSON file.

        Args:
            path: of the file.

        Returns:
            The table.

        Raises:
            ValueError: the file is not of the form above.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "answers.json"
            >>> AspectTable(["Is it red?"], {"apple.png": [0.9]}).write(path)
            >>> AspectTable.read(path).questions
            ('Is it red?',)
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["questions"], content["answers"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            message = f"{path} must hold an object with questions and answers by image key: {error!r}."
            raise ValueError(message) from None

    @classmethod
    def ask(cls, source: AspectSource, images: Tensor, keys: Sequence[str]) -> AspectTable:
        """What a source answers, as a table to be written: a large model is asked once.

        Args:
            source: who answers.
            images: shape (N, c, H, W).
            keys: one name per image, all different.

        Returns:
            The table.

        Raises:
            ValueError: keys are not one per image or not different, or the answers are no probabilities.

        Example:
            >>> images = torch.rand(3, 1, 8, 8)
            >>> table = AspectTable.ask(ProceduralOracle(images), images, ["a", "b", "c"])
            >>> table.answer(images[:1], ["a"]).shape
            torch.Size([1, 20])
        """
        if len(set(keys)) < len(keys):
            raise ValueError("keys must all be different, got a repeated one.")
        answered = with_aspects(Arrays(inputs=images), source, keys).answers
        return cls(source.questions, dict(zip(keys, answered.tolist(), strict=True)))

    def write(self, path: str | Path) -> None:
        """Write the table as JSON; see `read`."""
        content = {"questions": self.questions, "answers": {key: row.tolist() for key, row in self._rows.items()}}
        Path(path).write_text(json.dumps(content), encoding="utf-8")

    def answer(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Answers (N, Q) for `keys`; the images are not looked at. ValueError if an image is not in the table."""
        missing = [key for key in keys if key not in self._rows]
        if missing:
            raise ValueError(f"keys must be in the table; {len(missing)} are not, first {missing[0]!r}.")
        return torch.stack([self._rows[key] for key in keys]).to(images.device)


def single_token(tokenizer: Any, word: str) -> int:
    """The id of a word that a tokenizer knows as one token.

    Case and a leading space make another token, or several. A model answers with the one that follows its prompt; an
    id copied from another tokenizer stands for some other word.

    Args:
        tokenizer: of the library transformers.
        word: "Yes", "No", or " Yes" where the model's answers begin with a space.

    Returns:
        The id.

    Raises:
        ValueError: the word is several tokens, none, or unknown.

    Example:
        >>> class Letters:
        ...     unk_token_id = None
        ...
        ...     def encode(self, text, add_special_tokens):
        ...         return [ord(letter) for letter in text]
        >>> single_token(Letters(), "Yes")
        Traceback (most recent call last):
        ValueError: word must be one token of this tokenizer, got 'Yes', which is [89, 101, 115].
    """
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        known = "" if len(ids) != 1 else " (unknown)"
        raise ValueError(f"word must be one token of this tokenizer, got {word!r}, which is {ids}{known}.")
    return ids[0]


class LanguageModelAspects:
    """A multimodal model of the library transformers that is really asked: equation (1) from its first token.

    One image at a time, all questions as a batch, padded on the left so that the last position is the one that
    speaks. The logits there are those from which greedy decoding takes its first token. Ask once and keep an
    `AspectTable`: a model with billions of parameters needs a second or so per image.

    Args:
        model: from images and text to logits (batch, length, vocabulary), such as
            ``AutoModelForImageTextToText.from_pretrained(...)``; it is put into evaluation mode.
        processor: the model's own, with `tokenizer`.
        questions: in the order of the columns.
        prompt: text with ``{question}``, used where the processor has no chat template; has the model's image token.
        yes: the word for "yes", one token.
        no: the word for "no", one token.

    Raises:
        ValueError: no question, a repeated one, no ``{question}`` in the prompt, `yes` or `no` not one token, or both
            the same.

    Example:
        >>> LanguageModelAspects(None, None, [])
        Traceback (most recent call last):
        ValueError: questions must be different, and at least one, got [].
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[str],
        *,
        prompt: str = "USER: <image>\n{question} Answer with Yes or No. ASSISTANT:",
        yes: str = "Yes",
        no: str = "No",
    ) -> None:
        if not questions or len(set(questions)) < len(questions):
            raise ValueError(f"questions must be different, and at least one, got {list(questions)!r}.")
        if "{question}" not in prompt:
            raise ValueError(f"prompt must contain {{question}}, got {prompt!r}.")
        self.questions = tuple(questions)
        self.model = model.eval()
        self.processor = processor
        self.prompt = prompt
        self.yes, self.no = (single_token(processor.tokenizer, word) for word in (yes, no))
        if self.yes == self.no:
            raise ValueError(f"yes and no must be different tokens, got {yes!r} and {no!r}.")

    @classmethod
    def from_pretrained(cls, name: str, questions: Sequence[str], **options: Any) -> LanguageModelAspects:
        """The source for a model by its name or folder; needs the extra `language`.

        Args:
            name: of a model on the Hugging Face hub, or a folder.
            questions: in the order of the columns.
            **options: as for the class.

        Returns:
            The source.

        Raises:
            ImportError: transformers is not installed; the message names the extra.

        Example:
            ``LanguageModelAspects.from_pretrained("llava-hf/llava-1.5-7b-hf", ["Is the tail curled?"])``
        """
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ImportError(
                'asking a multimodal model needs transformers: pip install "kdcore[language]".'
            ) from error
        model = AutoModelForImageTextToText.from_pretrained(name)
        return cls(model, AutoProcessor.from_pretrained(name), questions, **options)

    @torch.no_grad()
    def answer(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Answers (N, Q) for images (N, 1 or 3, H, W) in [0, 1]; `keys` are not looked at."""
        from torchvision.transforms.functional import to_pil_image

        prompts = [self._text(question) for question in self.questions]
        self.processor.tokenizer.padding_side = "left"
        rows = []
        for image in images:
            picture = to_pil_image(image.float().cpu()).convert("RGB")
            inputs = self.processor(
                images=[picture] * len(prompts), text=prompts, return_tensors="pt", padding=True
            ).to(self.model.device)
            logits = self.model(**inputs).logits[:, -1]
            rows.append(yes_probability(logits[:, self.yes], logits[:, self.no]))
        return torch.stack(rows).to(images.device)

    def _text(self, question: str) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            return self.prompt.format(question=question)
        content = [{"type": "image"}, {"type": "text", "text": f"{question} Answer with Yes or No."}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


class MultiAspectLoss(nn.Module):
    """Cross-entropy on class columns and binary cross-entropy on aspect columns, equation (2).

    Args:
        num_classes: C.
        alpha: weight α ≥ 0 of the aspects; each of the Q questions weighs α / Q.
        ce_weight: weight w ≥ 0 of cross-entropy.

    Raises:
        ValueError: a weight is negative, or C < 2.

    Example:
        >>> loss = MultiAspectLoss(num_classes=2, alpha=4.0)
        >>> loss(torch.zeros(3, 7), torch.full((3, 5), 0.5), torch.tensor([0, 1, 1]))
        tensor(3.4657)
    """

    def __init__(self, num_classes: int, alpha: float = 4.0, ce_weight: float = 1.0) -> None:
        super().__init__()
        check_not_negative(alpha=alpha, ce_weight=ce_weight)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        self.num_classes = num_classes
        self.alpha = alpha
        self.ce_weight = ce_weight

    def terms(self, outputs: Tensor, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both weighted terms, of outputs (B, C + Q), answers (B, Q) and labels (B,)."""
        class_logits, aspect_logits = split_outputs(outputs, self.num_classes)
        check_labels(labels, *class_logits.shape)
        check_finite(class_logits=class_logits)
        hard = F.cross_entropy(at_least_float32(class_logits), labels)
        return self.ce_weight * hard, self.alpha * aspect_loss(aspect_logits, answers)

    def forward(self, outputs: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of outputs (B, C + Q), answers (B, Q) and labels (B,)."""
        hard, aspects = self.terms(outputs, answers, labels)
        return hard + aspects


class MultiAspectDistillation(Learner):
    """A student with C + Q outputs, trained on data that carry `answers` (see `with_aspects`).

    Args:
        student: maps inputs to (B, C + Q).
        loss: equation (2).

    Example:
        >>> from kdcore.models import MLP
        >>> learner = MultiAspectDistillation(MLP(64, (8,), 10 + 3), MultiAspectLoss(10))
        >>> batch = Arrays(inputs=torch.rand(4, 64), labels=torch.arange(4), answers=torch.rand(4, 3))
        >>> list(learner.losses(batch)), learner.classifier(batch.inputs).shape
        (['cross_entropy', 'aspects'], torch.Size([4, 10]))
    """

    def __init__(self, student: nn.Module, loss: MultiAspectLoss) -> None:
        super().__init__()
        self.model = student
        self.loss = loss

    def losses(self, batch: Any) -> dict[str, Tensor]:
        hard, aspects = self.loss.terms(self.model(batch.inputs), batch.answers, batch.labels)
        return {"cross_entropy": hard, "aspects": aspects}

    @property
    def classifier(self) -> ClassColumns:
        """The student as it is used after training: class columns only."""
        return ClassColumns(self.model, self.loss.num_classes)


class ClassColumns(nn.Module):
    """A student without its aspect columns: what predicts after training.

    Args:
        student: maps inputs to (B, C + Q).
        num_classes: C.

    Raises:
        ValueError: in use, the student has no more than C outputs.

    Example:
        >>> ClassColumns(nn.Linear(4, 15), num_classes=10)(torch.zeros(2, 4)).shape
        torch.Size([2, 10])
    """

    def __init__(self, student: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.student = student
        self.num_classes = num_classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Class logits (B, C)."""
        return split_outputs(self.student(inputs), self.num_classes)[0]


def _matrix(answers: Tensor) -> tuple[int, int]:
    """Rows and columns of answers, for a check of the rest."""
    if answers.ndim != 2:
        raise ValueError(f"answers must have shape (N, Q), got {tuple(answers.shape)}.")
    return answers.shape[0], answers.shape[1]
