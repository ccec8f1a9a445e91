"""Sphinx extension: pages do not load Thebe, which Jupyter Book always adds and which points at another host."""


def _remove(app):
    listeners = app.events.listeners["env-before-read-docs"]
    listeners[:] = [one for one in listeners if one.handler.__name__ != "init_thebe_core"]


def setup(app):
    app.connect("builder-inited", _remove)
    return {"parallel_read_safe": True}
