"""Sphinx configuration; ``make docs`` builds with warnings as errors."""

from celery_claims._version import __version__

project = "celery-claims"
author = "The celery-claims contributors"
copyright = author  # noqa: A001 - Sphinx's name
release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"celery-claims {release}"
