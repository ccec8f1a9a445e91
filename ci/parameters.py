"""The knobs of a chapter, read from its parameters cell, and the check of values that someone gives for them.

A knob is a line `name = default  # comment` of the cell tagged `parameters`. For a number, the comment says what it
means and, after a comma, which values it may have; for a text that is a choice, it lists the choices:

    temperature = 4.0  # of the distillation term, positive
    alpha = 0.9  # weight of the distillation term, in [0, 1]
    n_seeds = 5  # paired seeds, at least 2
    beta = 0.0  # temperature of the subclasses, at least 0; 0 takes the profile's
    rotation = 20.0  # of the target digits, in degrees, any number
    dataset = "auto"  # "auto" (by profile), "digits" or "mnist"

The standard library is enough here, so that a mistaken call is refused at once.
"""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

PROFILES = ("quick", "cpu", "gpu")
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_RANGE = re.compile(
    rf"positive|any number|at least (?P<least>{_NUMBER})"
    rf"|in (?P<left>[\[(])(?P<low>{_NUMBER}), (?P<high>{_NUMBER})(?P<right>[\])])"
)
_LAST_CLAUSE = re.compile(rf"(?:^|, )(?P<range>{_RANGE.pattern})(?=$|; )")
_CHOICE = r'"[^"]*"(?: \([^)]*\))?'
_CHOICES = re.compile(rf"(?:{_CHOICE}(?:, | or ))*{_CHOICE}(?:; .*)?")


@dataclass(frozen=True)
class Knob:
    """One parameter of a chapter.

    Attributes:
        name, default: as assigned in the cell.
        type: "integer", "number", "text" or "truth value".
        meaning: the comment, without the range.
        range: what a number may be, as the comment says it; empty if it does not say.
        minimum, maximum: ends of the range, infinite if there are none.
        without: ends that do not belong to the range themselves; infinity never does.
        choices: the texts that there are to choose from; empty if any text will do.
    """

    name: str
    default: Any
    type: str
    meaning: str = ""
    range: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    without: tuple[float, ...] = (-math.inf, math.inf)
    choices: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """What a value must be, as a phrase."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.range == "positive":
            kind = f"a positive {self.type}"
        else:
            kind = {"integer": "an integer", "number": "a number", "text": "text"}.get(self.type, "True or False")
            kind += {"": "", "any number": ""}.get(self.range, f" {self.range}").replace(" at", " of at")
        return kind + (" or None" if self.default is None else "")

    def accepts(self, value: Any) -> bool:
        """Whether a value has the type and lies in the range, or is one of the choices."""
        if value is None:
            return self.default is None
        if self.type in ("integer", "number"):
            kinds = int if self.type == "integer" else (int, float)
            right = isinstance(value, kinds) and not isinstance(value, bool)
            return right and self.minimum <= value <= self.maximum and value not in self.without
        if not isinstance(value, bool if self.type == "truth value" else str):
            return False
        return not self.choices or value in self.choices or _numbered(value) in self.choices


def knobs(markdown: str) -> dict[str, Knob]:
    """The parameters of a chapter, in order, from its Markdown source; none if it has no cell of parameters.

    Raises:
        ValueError: a default is no literal.
    """
    options = re.compile(r"\A(?:---\n.*?^---\n|(?::[^\n]*\n)+)", flags=re.M | re.S)
    found: dict[str, Knob] = {}
    for cell in re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", markdown, flags=re.M | re.S):
        header = options.match(cell)
        if header and re.search(r"\bparameters\b", header[0]):
            found |= knobs_of_cell(options.sub("", cell))
    return found


def knobs_of_cell(code: str) -> dict[str, Knob]:
    """The parameters that a cell assigns, in order; errors as in `knobs`."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            try:
                default = ast.literal_eval(node.value)
            except ValueError:
                raise ValueError(f"the default of parameter {name!r} must be a number or a text.") from None
            found[name] = _knob(name, default, comments.get(node.lineno, "").strip("# "))
    return found


def check(knobs: Mapping[str, Knob], given: Mapping[str, Any]) -> None:
    """Refuse what a chapter cannot run with.

    Raises:
        ValueError: a parameter that the chapter does not have (names the nearest), or a value of the wrong type,
            out of range or not among the choices.
    """
    for name, value in given.items():
        if name not in knobs:
            near = get_close_matches(name, knobs, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown parameter {name!r}; there are {', '.join(knobs) or 'none'}.{hint}")
        knob = knobs[name]
        if not knob.accepts(value):
            near = get_close_matches(str(value), knob.choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} must be {knob.wanted}, got {value!r}.{hint}")


def parse(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs; values are Python literals where they parse as such, else text.

    Raises:
        ValueError: a pair has no equals sign.
    """
    given = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"parameters are given as name=value, got {pair!r}.")
        try:
            given[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[name] = text
    return given


def problems(found: Mapping[str, Knob]) -> list[str]:
    """What the comments of a parameters cell leave unsaid or say wrongly, one line each; empty if nothing."""
    lines = []
    for knob in found.values():
        if not knob.meaning:
            lines.append(f"parameter {knob.name} has no comment that says what it means")
        elif knob.type in ("integer", "number") and not knob.range:
            lines.append(
                f"parameter {knob.name}: the comment must end with a range: positive, at least 0, in [0, 1], any number"
            )
        elif knob.meaning.startswith('"') and not knob.choices:
            lines.append(f'parameter {knob.name}: choices are written "a" (note), "b" or "c"')
        elif not knob.accepts(knob.default):
            lines.append(f"parameter {knob.name} must be {knob.wanted}; its default is {knob.default!r}")
    return lines


def _knob(name: str, default: Any, comment: str) -> Knob:
    """A knob from its line."""
    limits = _LAST_CLAUSE.search(comment)
    kinds = {bool: "truth value", int: "integer", float: "number", str: "text"}
    kind = kinds.get(type(default), "number" if limits else "text")
    if kind in ("integer", "number") and limits:
        low, high, without = _ends(limits)
        meaning = (comment[: limits.start()] + comment[limits.end() :]).lstrip("; ")
        return Knob(name, default, kind, meaning, limits["range"], low, high, without)
    choices = re.findall(r'"([^"]*)"', comment) if kind == "text" and _CHOICES.fullmatch(comment) else ()
    if name == "profile":
        choices = choices or PROFILES
    return Knob(name, default, kind, comment, choices=tuple(choices))


def _ends(limits: re.Match[str]) -> tuple[float, float, tuple[float, ...]]:
    """Minimum, maximum, and which ends are left out."""
    infinite = (-math.inf, math.inf)
    if limits["range"] == "positive":
        return 0.0, math.inf, (0.0, *infinite)
    low = float(limits["least"] or limits["low"] or -math.inf)
    high = float(limits["high"] or math.inf)
    without = [low] * (limits["left"] == "(") + [high] * (limits["right"] == ")")
    return low, high, (*without, *infinite)


def _numbered(device: str) -> str:
    """One GPU of several, "cuda:1", counts as "cuda"."""
    return re.sub(r"^cuda:\d+$", "cuda", device)
