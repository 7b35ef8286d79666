"""Views of clusters, composites and trainings, for notebooks. They need what `pip install 'bgcs[notebook]'` brings."""
from importlib.util import find_spec

_needed = {"anywidget": "anywidget", "ipywidgets": "ipywidgets", "psutil": "psutil"}
_missing = [package for module, package in _needed.items() if find_spec(module) is None]
if _missing:
    _packages = ", ".join(_missing)
    raise ModuleNotFoundError(f"bgcs.widgets needs {_packages}: pip install 'bgcs[notebook]'", name=_missing[0])
