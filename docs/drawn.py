"""The directive ``drawn``: a picture that the library computes and this build draws.

``.. drawn:: NAME`` shows what the function of that name in ``drawings.py`` draws, with
the directive's content as the caption. Each is drawn once, and written in the inks of
the light theme and of the dark one, with no background of its own.
"""

import io
from pathlib import Path
from typing import ClassVar

import drawings
import matplotlib as mpl
import matplotlib.pyplot as plt
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

FOLDER = "drawn"
INKS = {"light": "#24292f", "dark": "#cfd0d0"}


class Drawn(SphinxDirective):
    """A figure, in a file for each theme."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self):
        name = self.arguments[0]
        if name not in drawings.FIGURES:
            raise self.error(f"no drawing {name!r}: {', '.join(drawings.FIGURES)}")
        figure = nodes.figure(classes=["drawn"])
        for theme in INKS:
            uri = f"{FOLDER}/{name}-{theme}.svg"
            image = nodes.image(uri=uri, alt=self.options["alt"])
            image["classes"].append(f"only-{theme}")
            figure += image
        caption = nodes.caption()
        self.state.nested_parse(self.content, self.content_offset, caption)
        figure += nodes.caption("", "", *caption.children[0].children)
        return [figure]


def draw(app):
    """Write all figures; for builders without pictures only those that are missing."""
    folder = Path(app.srcdir, FOLDER)
    folder.mkdir(exist_ok=True)
    mpl.use("agg")
    for name, function in drawings.FIGURES.items():
        files = {theme: folder / f"{name}-{theme}.svg" for theme in INKS}
        drawn = all(file.exists() for file in files.values())
        if app.builder.format == "html" or not drawn:
            text = written(function)
            for theme, file in files.items():
                colored = text.replace(drawings.INK, INKS[theme])
                file.write_text(colored, encoding="utf-8")


def written(function):
    """The figure of a function as the text of an SVG file."""
    file = io.StringIO()
    with mpl.rc_context(drawings.STYLE):
        figure = function()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()


def setup(app):
    """Make the directive known, and draw before pages are read."""
    app.add_directive("drawn", Drawn)
    app.connect("builder-inited", draw)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
