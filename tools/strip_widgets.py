"""Takes the state and the live views of widgets out of notebooks: `python tools/strip_widgets.py`.

They need a kernel and are large, and a static picture stands beside each.
"""
from pathlib import Path

import nbformat

VIEW = "application/vnd.jupyter.widget-view+json"


def strip(path):
    "Rewrite a notebook, if there is something to take out."
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    changed = notebook.metadata.pop("widgets", None) is not None
    for cell in notebook.cells:
        kept = [o for o in cell.get("outputs", []) if VIEW not in o.get("data", {})]
        if len(kept) == len(cell.get("outputs", [])): continue
        cell.outputs, changed = kept, True
    if changed: nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in (Path(__file__).resolve().parent.parent / "nbs").rglob("*.ipynb"): strip(path)
