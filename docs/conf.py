"""Settings of the documentation."""

import doctest
import logging
import os
import sys
from pathlib import Path

# Arrays in the examples are small: threads would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fixedpoint

sys.path.insert(0, str(Path(__file__).parent))

# A dependency of the theme prints whatever is logged.
logging.getLogger("fixedpoint").propagate = False

project = "fixedpoint"
author = "The fixedpoint developers"
copyright = author
version = release = fixedpoint.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "numpydoc",
    "checked_html",
    "command_tables",
    "measured_tables",
    "drawn",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "notebooks"]
default_role = None
nitpicky = True

html_theme = "furo"
html_title = f"fixedpoint {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

# What is copied is what is typed: no prompts, no output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False

# The wording of exceptions is part of what the examples promise.
doctest_default_flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1

# The tutorials are scripts: each is run, and shown with what it prints and draws.
sphinx_gallery_conf = {
    "examples_dirs": "notebooks",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "min_reported_time": 1e9,
    "reset_modules": (),
    "write_computation_times": False,
}
