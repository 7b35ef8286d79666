"""Writes README.md from nbs/index.ipynb: `python tools/readme.py`.

Links are made to work from the top of the repository; setup.py makes them absolute for PyPI.
"""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# To a file of the repository: '!' if it is an image, text, address.
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?![a-z]+:|#)([^)]+\))")


def with_absolute_links(text: str, repository: str, branch: str) -> str:
    "The README as it must read where its links cannot be relative, on PyPI: pages on GitHub, images as they are."
    raw = repository.replace("github.com", "raw.githubusercontent.com")

    def absolute(link):
        image, label, target = link.groups()
        base = f"{raw}/{branch}" if image else f"{repository}/blob/{branch}"
        return f"{image}{label}{base}/{target}"

    return LINK.sub(absolute, text)


def with_links_from_the_top(text: str) -> str:
    "What stands in a notebook of nbs/, with links that work in the folder above."
    return LINK.sub(r"\1\2nbs/\3", text)


def main():
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    body = re.sub(r"\n{3,}", "\n\n", with_links_from_the_top(body)).strip()
    text = "<!-- Written by `make prepare` from nbs/index.ipynb: edit that. -->\n\n" + body + "\n"
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
