"""What holds for the package as a whole."""
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bgcs

PACKAGE = Path(bgcs.__file__).parent
ROOMS = sorted(p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("_"))
WIDGETS = [room for room in ROOMS if room in ("widgets", "explorer", "viewer", "monitor")]  # these need ipywidgets, the others do not
ORDER = [p.stem[3:] for p in sorted((PACKAGE.parent / "nbs").glob("[0-9][0-9]_*.ipynb"))]  # notebooks are numbered in the order of the rooms


def modules_after(code):
    out = subprocess.run([sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in out.stdout.split()}


@pytest.mark.alone
def test_import_is_quick_and_light():
    start = time.perf_counter()
    loaded = modules_after("import bgcs")
    assert time.perf_counter() - start < 2
    assert not loaded & {"torch", "lightning", "umap", "ipywidgets", "matplotlib", "nbdev", "fastcore"}


def test_heavy_libraries_wait_until_used():
    loaded = modules_after("import " + ", ".join(f"bgcs.{room}" for room in ROOMS if room not in WIDGETS))
    assert not loaded & {"umap", "ipywidgets", "anywidget", "nbdev", "fastcore", "execnb"}
    assert "umap" not in modules_after("import " + ", ".join(f"bgcs.{room}" for room in WIDGETS))


def test_what_runs_in_the_browser_is_installed_too(tmp_path):
    subprocess.run([sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "base", "build_py", "--build-lib", tmp_path / "lib"], cwd=PACKAGE.parent, check=True, capture_output=True)
    there = {p.name for p in (tmp_path / "lib" / "bgcs").iterdir()}
    assert {p.name for p in PACKAGE.iterdir() if p.suffix in (".js", ".css", ".py")} <= there


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_above(room):
    source = (PACKAGE / f"{room}.py").read_text()
    used = set(re.findall(r"from (?:bgcs)?\.(\w+) import", source))
    assert used <= set(ORDER[:ORDER.index(room)]), f"{room} imports {used}"
    assert not re.search(r"^\s*(from|import) (nbdev|fastcore)", source, re.MULTILINE)


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_documented(room):
    module = __import__(f"bgcs.{room}", fromlist=["*"])
    assert module.__doc__, f"bgcs.{room} has no docstring"
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value): assert value.__doc__, f"bgcs.{room}.{name} has no docstring"
