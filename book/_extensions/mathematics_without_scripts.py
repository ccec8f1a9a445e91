"""Sphinx extension: beside each formula stands its MathML, shown where scripts are off and MathJax cannot run."""

import re
from functools import cache

from docutils import nodes
from latex2mathml.converter import convert

_STYLE = "<noscript><style>.math{display:none!important}math[display=block]{overflow-x:auto;margin:1em 0}</style></noscript>"


@cache
def to_mathml(tex: str, block: bool) -> str:
    """MathML of a formula; a tag becomes its number in parentheses."""
    number = re.search(r"\\tag\{([^}]*)\}", tex)
    plain = re.sub(r"\\tag\{[^}]*\}|\\(?:begin|end)\{equation\}", "", tex).replace("\\arg", "\\operatorname{arg}")
    plain = re.sub(r"\\cr\b", r"\\\\", plain).replace("{aligned}", "{split}")  # the converter's names for these
    if number:
        plain += rf"\qquad\text{{({number.group(1)})}}"
    return convert(plain.strip(), display="block" if block else "inline")


def _add_mathml(app, doctree, docname):
    if app.builder.format != "html":
        return
    for formula in list(doctree.findall(lambda node: isinstance(node, (nodes.math, nodes.math_block)))):
        shown = to_mathml(formula.astext(), isinstance(formula, nodes.math_block))
        formula.parent.insert(
            formula.parent.index(formula) + 1, nodes.raw("", f"<noscript>{shown}</noscript>", format="html")
        )


def _add_style(app, pagename, templatename, context, doctree):
    context["metatags"] = context.get("metatags", "") + _STYLE


def setup(app):
    app.connect("doctree-resolved", _add_mathml)
    app.connect("html-page-context", _add_style)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
