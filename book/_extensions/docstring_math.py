"""Sphinx extension: dollar mathematics in docstrings becomes what autodoc understands."""

import re


def convert(text: str) -> str:
    """Replace `$$…$$` by a math directive and `$…$` by a math role; code spans stay as they are."""

    def block(found: re.Match) -> str:
        lines = [line.strip() for line in found.group(1).strip().splitlines()]
        body = "\n".join(f"   {line}" for line in lines)
        return f"\n\n.. math::\n   :nowrap:\n\n   \\begin{{equation}}\n{body}\n   \\end{{equation}}\n\n"

    text = re.sub(r"\$\$(.*?)\$\$", block, text, flags=re.S)
    inline = re.compile(r"(?<![$\\`])\$([^$\n]+(?:\n[^$\n]+)?)\$")
    return inline.sub(lambda found: f":math:`{' '.join(found.group(1).split())}`", text)


def _process(app, what, name, item, options, lines):
    lines[:] = convert("\n".join(lines)).splitlines()


def setup(app):
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
