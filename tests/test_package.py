"""What holds for the package as a whole."""
import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bgcs

PACKAGE = Path(bgcs.__file__).parent
NOTEBOOKS = PACKAGE.parent / "nbs"
PACKAGES = ("data", "training", "backgrounds", "objective", "masks", "widgets", "runs")  # each imports from those before it
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
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bgcs."): found.add(node.module[5:])
    return {name for name in found if name in MODULES or name.split(".")[0] in PACKAGES}


def modules_after(code):
    out = subprocess.run([sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in out.stdout.split()}


def test_every_module_has_a_notebook_and_every_notebook_a_module():
    there = {p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in PACKAGE.rglob("*.py") if not p.stem.startswith("_")}
    assert len(MODULES) > 30
    assert there == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_modules_above(module):
    above = set(MODULES[:MODULES.index(module)])
    if not module.startswith("runs."): above -= {name for name in above if name.startswith("widgets.") and not module.startswith("widgets.")}
    assert imported_by(module) <= above, f"{module} imports {imported_by(module) - above}"


def test_the_order_of_modules_is_really_read():
    assert "data.files" in imported_by("data.stores")
    assert {"objective.blend", "training.loop"} <= imported_by("masks.segment")
    assert "widgets.shared" in imported_by("widgets.monitor")


@pytest.mark.alone
def test_import_is_quick_and_light():
    start = time.perf_counter()
    loaded = modules_after("import bgcs")
    assert time.perf_counter() - start < 2
    assert not loaded & {"torch", "lightning", "umap", "ipywidgets", "matplotlib", "nbdev", "fastcore"}


def test_heavy_libraries_wait_until_used():
    loaded = modules_after("import " + ", ".join(f"bgcs.{module}" for module in MODULES if not module.startswith("widgets.")))
    assert not loaded & {"umap", "ipywidgets", "anywidget", "nbdev", "fastcore", "execnb"}
    assert "umap" not in modules_after("import " + ", ".join(f"bgcs.{module}" for module in MODULES if module.startswith("widgets.")))


def test_what_runs_in_the_browser_is_installed_too(tmp_path):
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "base", "build_py", "--build-lib", tmp_path / "lib"]
    subprocess.run(build, cwd=PACKAGE.parent, check=True, capture_output=True)
    there = {p.relative_to(tmp_path / "lib" / "bgcs") for p in (tmp_path / "lib" / "bgcs").rglob("*")}
    assert {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*") if p.suffix in (".js", ".css", ".py")} <= there


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    loaded = importlib.import_module(f"bgcs.{module}")
    assert loaded.__doc__, f"bgcs.{module} has no docstring"
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if callable(value): assert value.__doc__, f"bgcs.{module}.{name} has no docstring"
