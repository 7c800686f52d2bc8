"""Pages that show the reader an error of their source fail the build.

Docutils puts a red box into a page for what it cannot make sense of, and themes add
theirs; not all of them are warnings, which ``-W`` would turn into errors.
"""

from pathlib import Path

from sphinx.errors import ExtensionError

BOXES = ('class="system-message', 'class="admonition error"')


def faulty(folder, names):
    """The pages that hold an error box, of those of these names in a folder."""
    return [
        name
        for name in sorted(names)
        if any(
            box in (folder / f"{name}.html").read_text(encoding="utf-8")
            for box in BOXES
        )
    ]


def check(app, exception):
    """Look at all pages once they are written, but those that the theme adds."""
    if exception is None and app.builder.format == "html":
        pages = faulty(Path(app.outdir), app.env.found_docs)
        if pages:
            raise ExtensionError(f"error boxes in {', '.join(pages)}")


def setup(app):
    """Look when the build has finished."""
    app.connect("build-finished", check)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
