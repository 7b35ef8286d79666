"""What a newcomer meets first: the README's example, the tutorials' imports, what an import costs."""
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

import bgcs
from bgcs.data.datasets import digits_on_textures

ROOT = Path(__file__).resolve().parent.parent
SHORT = {
    ".fit(images)": ".fit(images, steps=4, rounds=2, progress=False)",
    'folder="runs/mine")': 'folder="runs/mine", settings=SETTINGS, progress=False)',
    'run.predict("surveys/")': 'found = run.predict("surveys/", progress=False)',
}
SETTINGS = {"schedule.steps": 4, "schedule.rounds": 2, "network.base_width": 4, "clusters.epochs": 1}


def write_folders(folder):
    data = digits_on_textures(n=60)
    for name, images in (("with", data.objects.images), ("without", data.backgrounds.images), ("surveys", data.objects.images[:3])):
        (folder / name).mkdir()
        for i, image in enumerate(images): Image.fromarray((image[0] * 255).byte().numpy()).save(folder / name / f"{i:03}.png")


def test_the_example_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(import bgcs\n.*?)```", readme, re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line.strip()]) == 6
    for whole, short in SHORT.items():
        assert whole in example
        example = example.replace(whole, short)  # the same calls, with a training of a few steps
    write_folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"SETTINGS": SETTINGS}
    exec(example, names)
    assert names["masks"].shape == (60, 1, 32, 32) and names["model"].clusterer_ is not None
    assert names["run"].status["state"] == "finished" and Path("runs/mine/report.html").is_file()
    assert len(names["found"].table) == 3 if hasattr(names["found"], "table") else names["found"]


@pytest.mark.parametrize("page", ["quickstart", "own_images"])
def test_tutorials_need_three_imports_at_most(page):
    cells = nbformat.read(ROOT / "nbs" / "tutorials" / f"{page}.ipynb", as_version=4).cells
    found = []
    for cell in cells:
        if cell.cell_type != "code": continue
        found += [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert 1 <= len(found) <= 3


def test_every_name_of_the_front_door_can_be_had_and_is_listed():
    assert len(bgcs.__all__) < 20
    for name in bgcs.__all__: assert name in dir(bgcs) and getattr(bgcs, name).__doc__
    assert not hasattr(bgcs, "segmenter")


def test_a_bare_import_reads_no_library():
    code = "import sys; before = set(sys.modules); import bgcs; dir(bgcs); print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert set(done.stdout.split()) <= {"bgcs", "importlib"} | set(sys.stdlib_module_names)
