"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import raytrain  # noqa: E402

project = "raytrain"
copyright = "the raytrain authors, Apache-2.0"
version = release = raytrain.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "field_links"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the signatures have them
smartquotes = False  # -- is an option, not a dash
nitpicky = True

html_theme = "furo"
html_title = f"raytrain {version}"
html_static_path: list[str] = []
html_copy_source = False

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_workers = 4
