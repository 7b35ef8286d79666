"""The documentation: notebooks process, links resolve, pages are listed; and the checks see what is wrong."""
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT


@pytest.fixture
def copy(tmp_path):
    "A copy of what the documentation is made from."
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_quarto.yml")
    for name in ("nbs", "bgcs", "tools"): shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("settings.ini", "_quarto.yml", "README.md"): shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def check(folder):
    command = [sys.executable, "tools/docs.py", "--check"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_documentation_is_whole_and_faults_are_seen(copy):
    code, said = check(copy)
    assert code == 0 and "every page is in the sidebar" in said, said
    index = nbformat.read(copy / "nbs" / "index.ipynb", as_version=4)
    index.cells[0].source += "\n[nowhere](no_such_page.ipynb) ![none](images/none.png)"
    nbformat.write(index, copy / "nbs" / "index.ipynb")
    shutil.copy2(copy / "nbs" / "index.ipynb", copy / "nbs" / "unlisted.ipynb")
    for page in copy.glob("nbs/*/[0-9]*.ipynb"): page.unlink()
    code, said = check(copy)
    assert code != 0
    faults = (
        "links to no_such_page.ipynb", "links to images/none.png", "unlisted.ipynb is in no sidebar",
        "lists data/00_checks.ipynb, which isn't there",
    )
    for fault in faults: assert fault in said, said
