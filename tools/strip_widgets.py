"""Takes the state and the live views of widgets out of notebooks: `python tools/strip_widgets.py`.

They need a kernel and are large. The still picture that is stored beside a view of bgcs stays.
"""
from pathlib import Path

import nbformat

VIEW = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/svg+xml", "image/jpeg", "text/html")
FALLBACK = "function showStill("  # in the output that shows the picture where the view above it is dead


def without_views(outputs):
    "Outputs with pictures in the place of views; those that had nothing but a view are gone."
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if FALLBACK in str(data.get("text/html", "")): continue
        if VIEW in data and not any(kind in data for kind in PICTURES): continue
        if VIEW in data: output = nbformat.from_dict(output | {"data": {k: v for k, v in data.items() if k != VIEW}})
        kept.append(output)
    return kept


def strip(path):
    "Rewrite a notebook, if there is something to take out."
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    changed = notebook.metadata.pop("widgets", None) is not None
    for cell in notebook.cells:
        if "outputs" not in cell or (kept := without_views(cell.outputs)) == cell.outputs: continue
        cell.outputs, changed = kept, True
    if changed: nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in (Path(__file__).resolve().parent.parent / "nbs").rglob("*.ipynb"): strip(path)
