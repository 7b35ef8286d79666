"""What holds for the package as a whole."""
import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bgcs

PACKAGE = Path(bgcs.__file__).parent
NOTEBOOKS = PACKAGE.parent / "nbs"
# each imports from those before it
PACKAGES = ("data", "training", "backgrounds", "objective", "masks", "methods", "outputs", "widgets", "runs")
MODULES = [
    f"{package}.{notebook.stem[3:]}"  # numbered in the order of the modules of a package
    for package in PACKAGES
    for notebook in sorted((NOTEBOOKS / package).glob("[0-9][0-9]_*.ipynb"))
]


def source_of(module): return PACKAGE / (module.replace(".", "/") + ".py")


def imported_by(module):
    "Modules of bgcs that a module imports, anywhere in it."
    here, found = module.split("."), set()
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[:-node.level] + ((node.module or "").split(".") if node.module else [])
            name = ".".join(base)
            found |= {name} if name in MODULES else {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bgcs."):
            found.add(node.module.removeprefix("bgcs."))
    return {name for name in found if name in MODULES or name.split(".")[0] in PACKAGES}


def modules_after(code):
    command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in out.stdout.split()}


def test_every_module_has_a_notebook_and_every_notebook_a_module():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.stem.startswith("_")]
    there = {".".join(path.with_suffix("").parts) for path in files}
    assert len(MODULES) > 30
    assert there == set(MODULES)


def may_import(module):
    "Modules that one may import from: those before it, but views only in views and runs."
    above = set(MODULES[:MODULES.index(module)])
    if module.startswith(("widgets.", "runs.")): return above
    return {name for name in above if not name.startswith("widgets.")}


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_modules_above(module):
    below = imported_by(module) - may_import(module)
    assert not below, f"{module} imports {below}"


def test_the_order_of_modules_is_really_read():
    assert "data.files" in imported_by("data.stores")
    assert {"objective.blend", "masks.method"} <= imported_by("masks.segment")
    assert "training.loop" in imported_by("masks.method")
    assert "widgets.shared" in imported_by("widgets.monitor")


# what takes long to import, and the modules that cannot do without it from the beginning

HEAVY = {
    "lightning", "pandas", "matplotlib", "skimage", "sklearn", "scipy", "torchmetrics", "torchvision", "umap", "h5py",
    "tifffile", "imagecodecs", "pooch", "requests", "optuna", "ipywidgets", "anywidget", "nbclient",
}
ALLOWED = {
    "training.loop": {"lightning"}, "masks.refresh": {"lightning"}, "widgets.monitor": {"lightning"},
    "backgrounds": {"sklearn"}, "runs": {"pandas"}, "runs.notebooks": {"nbclient"},
    "widgets": {"pandas", "matplotlib", "sklearn", "tifffile", "ipywidgets", "anywidget"},
}


def imported_at_once(module):
    "Libraries that a module imports when it is itself imported."
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    blocks = [tree, *(node for node in tree.body if isinstance(node, ast.Try))]
    for node in [node for block in blocks for node in block.body]:
        if isinstance(node, ast.Import): yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_wait_until_used(module):
    allowed = ALLOWED.get(module, set()) | ALLOWED.get(module.split(".")[0], set())
    heavy = set(imported_at_once(module)) & HEAVY - allowed
    assert not heavy, f"{module} imports {heavy} at its top; import them in the functions that use them"


def test_the_front_door_loads_nothing():
    heavy = HEAVY | {"torch", "numpy", "PIL", "nbdev", "fastcore", "IPython"}
    assert not modules_after("import bgcs; dir(bgcs)") & heavy


def test_nothing_needs_the_tools_of_developers():
    core = [module for module in MODULES if not module.startswith("widgets.") and module != "runs.notebooks"]
    loaded = modules_after("import " + ", ".join(f"bgcs.{module}" for module in core))
    assert not loaded & {"umap", "ipywidgets", "anywidget", "nbclient", "nbdev", "fastcore", "execnb"}
    views = [f"bgcs.{module}" for module in MODULES if module.startswith("widgets.")]
    assert not modules_after("import " + ", ".join(views)) & {"umap", "nbdev", "fastcore"}


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    loaded = importlib.import_module(f"bgcs.{module}")
    assert loaded.__doc__, f"bgcs.{module} has no docstring"
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if callable(value): assert value.__doc__, f"bgcs.{module}.{name} has no docstring"
