"""Sphinx extension: the toggles of the side bar, which the theme leaves without a name, say whose pages they show."""


def _name(app, page, template, context, tree):
    generate = context.get("generate_toctree_html")
    if generate is None:  # a builder without a side bar
        return

    def named(*arguments, **options):
        found = generate(*arguments, **options)
        for toggle in found.find_all("summary"):
            if not toggle.get_text(strip=True):
                above = toggle.find_parent("li").find("a").get_text(strip=True)
                toggle["aria-label"] = f"Pages below: {above}"
        return found

    context["generate_toctree_html"] = named


def setup(app):
    app.connect("html-page-context", _name, priority=900)  # after the theme, whose function is wrapped
    return {"parallel_read_safe": True}
