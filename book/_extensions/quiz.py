"""Sphinx extension: the directive `quiz` shows a part's questions from `quizzes.yml`, beside the page.

Choices are radio buttons, CSS shows the explanation of the chosen one, and formulas are MathML, which browsers draw
themselves: no kernel and no JavaScript is needed.
"""

from difflib import get_close_matches
from html import escape
from pathlib import Path

import jsonschema
import yaml
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util.docutils import SphinxDirective

_TEXT = {"type": "string", "minLength": 1}
_CHOICE = {
    "type": "object",
    "properties": {"text": _TEXT, "right": {"const": True}, "why": {"type": "string", "minLength": 20}},
    "required": ["text", "why"],
    "additionalProperties": False,
}
_QUESTION = {
    "type": "object",
    "properties": {
        "question": _TEXT,
        "choices": {
            "type": "array", "items": _CHOICE, "minItems": 3, "maxItems": 5,
            "contains": {"required": ["right"]}, "minContains": 1, "maxContains": 1,
        },
    },
    "required": ["question", "choices"],
    "additionalProperties": False,
}  # fmt: skip
_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": {"type": "array", "items": _QUESTION, "minItems": 4, "maxItems": 20},
}


class Tag(nodes.General, nodes.Element):
    """An HTML element with the attributes `tag` and `attributes`, and what it holds."""


def read_quizzes(path):
    """The questions of every part; `ValueError` says which entry is wrong and how."""
    quizzes = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(_SCHEMA).iter_errors(quizzes))
    if error:
        place = " ".join(str(step) for step in error.absolute_path)
        raise ValueError(f"{Path(path).name}, {place or 'as a whole'}: {error.message}")
    return quizzes


class Quiz(SphinxDirective):
    """`quiz` with a part's name as its only argument."""

    required_arguments = 1

    def run(self):
        path = Path(self.env.doc2path(self.env.docname)).with_name("quizzes.yml")
        for source in (path, __file__):  # a page is read anew when either changes
            self.env.note_dependency(str(source))
        try:
            quizzes = read_quizzes(path)
        except ValueError as error:
            raise self.error(str(error)) from error
        part = self.arguments[0]
        if part not in quizzes:
            near = get_close_matches(part, quizzes, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise self.error(f"{path.name} has no quiz {part!r}; it has {', '.join(quizzes)}.{hint}")
        # A form so that one button clears it; the method is the one that never leaves the page.
        form = self._tag("form", {"method": "dialog", "class": "kdcore-quiz", "autocomplete": "off"})
        form += [self._question(f"{part}-{k}", k, entry) for k, entry in enumerate(quizzes[part], start=1)]
        form += nodes.raw("", '<button type="reset">Clear all answers</button>', format="html")
        return [form]

    def _question(self, name, number, entry):
        fieldset = self._tag("fieldset")
        fieldset += self._tag("legend", text=f"{number}. {entry['question']}")
        for letter, choice in zip("abcde", entry["choices"], strict=False):
            fieldset += self._choice(name, f"{name}{letter}", choice)
        return fieldset

    def _choice(self, name, identifier, choice):
        box = self._tag("div", {"class": "kdcore-choice"})
        # A label that is all formula has no words that a screen reader is sure to find.
        spoken = f' aria-label="{escape(choice["text"].strip("$"))}"' if choice["text"].startswith("$") else ""
        box += nodes.raw("", f'<input type="radio" name="{name}" id="{identifier}"{spoken}/>', format="html")
        box += self._tag("label", {"for": identifier}, choice["text"])
        word, kind = ("Right.", "right") if "right" in choice else ("Not so.", "wrong")
        box += self._tag("p", {"class": f"kdcore-why kdcore-{kind}", "role": "status"}, f"**{word}** {choice['why']}")
        return box

    def _tag(self, tag, attributes=None, text=""):
        """An element; its text is inline Markdown with dollar mathematics."""
        node = Tag("", tag=tag, attributes=attributes or {})
        if text:
            node += self.state.inline_text(text, self.lineno)[0]
        for formula in list(node.findall(nodes.math)):
            formula.replace_self(nodes.raw("", convert(formula.astext()), format="html"))
        return node


def _visit(translator, node):
    translator.body.append(translator.starttag(node, node["tag"], "", **node["attributes"]))


def _depart(translator, node):
    translator.body.append(f"</{node['tag']}>\n")


def setup(app):
    app.add_node(Tag, html=(_visit, _depart))
    app.add_directive("quiz", Quiz)
    return {"parallel_read_safe": True}
