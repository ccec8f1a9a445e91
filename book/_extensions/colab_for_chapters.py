"""Sphinx extension: the button to Colab stands on chapters alone, whose notebooks are in the repository."""


def _remove(app, pagename, templatename, context, doctree):
    if not pagename.startswith("chapters/"):
        buttons = context.get("header_buttons", [])
        buttons[:] = [button for button in buttons if button.get("label") != "launch-buttons"]


def setup(app):
    app.connect("html-page-context", _remove, priority=502)  # after the theme has made its buttons, at 501
    return {"parallel_read_safe": True}
