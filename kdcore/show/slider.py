"""A slider that works in a live kernel and in a static page, from the same call."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Sequence
from itertools import count

from matplotlib.figure import Figure

from kdcore.show.output import encode

__all__ = ["slider", "slider_html"]

_numbers = count()

_PAGE = """<figure class="kdcore-slider" id="{id}" role="group" aria-label="{label}">
<img alt="{alt}" width="{width}" style="max-width:100%;height:auto;display:block" src="data:image/png;base64,{first}">
<label style="display:block;margin-top:.4rem">{label}: <output>{value}</output><br>
<input type="range" min="0" max="{last}" value="{start}" step="1" aria-label="{label}"
 style="width:min(100%,26rem);height:2rem;accent-color:#D55E00"></label>
<p class="kdcore-caption">{caption}</p>
<script type="application/json">{frames}</script>
<script>
(function () {{
  const box = document.getElementById("{id}");
  const frames = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const input = box.querySelector("input"), image = box.querySelector("img"), output = box.querySelector("output");
  input.addEventListener("input", function () {{
    const frame = frames[Number(input.value)];
    image.src = "data:image/png;base64," + frame.png;
    image.alt = frame.alt;
    output.textContent = frame.value;
    input.setAttribute("aria-valuetext", frame.value);
  }});
}})();
</script>
</figure>"""


def slider(
    draw: Callable[[float], Figure],
    values: Sequence[float],
    *,
    label: str,
    caption: str,
    start: int | None = None,
) -> None:
    """Let the reader move `values` and see `draw(value)`.

    Frames are drawn beforehand and work without a kernel, by mouse, touch and arrow keys. In a live kernel with
    ipywidgets the same call shows a widget that draws anew for each value.

    Args:
        draw: function of a value that returns a figure.
        values: what the slider passes through, 2 to 30.
        label: what the slider changes, with its unit.
        caption: what to look for, in words.
        start: position at first, counted from 0; the middle if left out.

    Raises:
        ValueError: fewer than 2 or more than 30 values.

    Example:
        >>> slider(lambda value: Figure(figsize=(1, 1)), [1, 2, 4], label="temperature τ", caption="Look at the tail.")
        <IPython.core.display.HTML object>
    """
    from IPython.display import HTML, display

    page = slider_html(draw, values, label=label, caption=caption, start=start)
    if os.environ.get("KDCORE_STATIC") or not _kernel_is_live():
        display(HTML(page))
        return
    widget = _live_widget(draw, values, label, len(values) // 2 if start is None else start)
    reference = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    # A front end with a live widget shows the widget; any other falls back on the page.
    display({"application/vnd.jupyter.widget-view+json": reference, "text/html": page}, raw=True)


def slider_html(
    draw: Callable[[float], Figure],
    values: Sequence[float],
    *,
    label: str,
    caption: str,
    start: int | None = None,
) -> str:
    """The static form of `slider`: HTML with all frames and a few lines of script.

    Example:
        >>> page = slider_html(lambda value: Figure(figsize=(1, 1)), [1, 2, 4], label="temperature τ", caption="Look.")
        >>> 'type="range"' in page
        True
    """
    if not 2 <= len(values) <= 30:
        raise ValueError(f"values must be 2 to 30, got {len(values)}.")
    start = len(values) // 2 if start is None else start
    drawn = [draw(value) for value in values]
    frames = [
        {"png": encode(one, dpi=96, colours=64), "value": f"{value:g}", "alt": f"{caption} Shown at {label} {value:g}."}
        for one, value in zip(drawn, values, strict=True)
    ]
    return _PAGE.format(
        id=f"kdcore-slider-{next(_numbers)}",
        label=html.escape(label),
        caption=html.escape(caption),
        alt=html.escape(frames[start]["alt"]),
        width=round(drawn[0].get_figwidth() * 96),
        first=frames[start]["png"],
        value=frames[start]["value"],
        last=len(values) - 1,
        start=start,
        frames=json.dumps(frames).replace("</", "<\\/"),
    )


def _kernel_is_live() -> bool:
    """Whether this runs in a notebook kernel that can talk to widgets."""
    from importlib.util import find_spec

    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel") and find_spec("ipywidgets") is not None


def _live_widget(draw: Callable[[float], Figure], values: Sequence[float], label: str, start: int):
    import base64

    import ipywidgets

    control = ipywidgets.SelectionSlider(
        options=[(f"{value:g}", value) for value in values], index=start, description=label,
        continuous_update=False, style={"description_width": "initial"}, layout={"width": "26rem"},
    )  # fmt: skip
    image = ipywidgets.Image(format="png")

    def update(change: dict) -> None:
        image.value = base64.b64decode(encode(draw(change["new"]), dpi=96))

    control.observe(update, names="value")
    update({"new": values[start]})
    return ipywidgets.VBox([image, control])
