"""Writes README.md from nbs/index.ipynb: `python tools/readme.py`. Links are made to work from the top of the repository."""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def main():
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    body = re.sub(r"(\]\()(?!https?:|#)([^)]+\))", r"\1nbs/\2", body)
    text = "<!-- Written by `make prepare` from nbs/index.ipynb: edit that. -->\n\n" + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
