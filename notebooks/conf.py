"""Settings of the HTML book, built by book.py from the executed pages."""

project = "One Big Sequence Modeling Problem"
author = "The Trajectory Transformer companion authors"
html_title = project

extensions = [
    "myst_nb",
    "sphinx_exercise",
    "sphinx_togglebutton",
    "sphinxcontrib.bibtex",
    "sphinx-mathjax-offline",
]

# run.py executed the pages. The book shows them without their progress bars and warnings.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # lets the Markdown that a cell shows cite and refer
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

numfig = True
math_numfig = True
math_eqref_format = "Eq. {number}"

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# All files are in the book's folder, so it opens without a network.
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {
    "navbar_persistent": [],  # otherwise there are two search bars
    "navigation_with_keys": True,
    "pygments_light_style": "a11y-light",
    "pygments_dark_style": "a11y-dark",
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
}
html_show_search_summary = False  # it fetches pages, which browsers refuse for local files
html_use_index = False
html_show_sphinx = False
