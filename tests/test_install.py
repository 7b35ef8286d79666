"""The archives build, and what they install works elsewhere: without the checkout, and with the core's requirements alone."""
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

WINDOWS = sys.platform == "win32"
SCRIPTS = "Scripts" if WINDOWS else "bin"
TINY = [
    "data.n=40", "clusters.encoder=pca", "network.base_width=4", "network.depth=1", "schedule.steps=12",
    "schedule.per_cluster=4", "schedule.n_real=20", "schedule.choose=false", "trainer.accelerator=cpu",
]


def run(*command, folder, **options):
    "What a command prints; it sees nothing of this checkout."
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=outside, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    "A source archive, and a wheel that was built from it; the checkout stays as it is."
    copy = tmp_path_factory.mktemp("copy")
    for name in ("bgcs", "tools"): shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file(): shutil.copy2(path, copy)
    run(sys.executable, "-m", "build", "--no-isolation", copy, folder=copy.parent)
    return next(copy.glob("dist/*.tar.gz")), next(copy.glob("dist/*.whl"))


def described(wheel):
    "The metadata of a wheel."
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def needed(lines, extras=("",), found=None):
    "Names of the distributions that requirements ask for, with what those ask for in turn."
    found = {} if found is None else found
    for requirement in map(Requirement, lines or []):
        marker, name = requirement.marker, requirement.name.lower()
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras): continue
        extras_of = found.setdefault(name, {""})
        if name in found and extras_of >= {"asked", *requirement.extras}: continue
        extras_of |= {"asked", *requirement.extras}
        needed(metadata.requires(name), extras_of, found)
    return found


def link_distribution(name, folder):
    "Make a distribution of this environment importable from a folder."
    for file in metadata.distribution(name).files or []:
        top = file.parts[0]
        if top in ("..", "__pycache__") or top.endswith(".pth") or (folder / top).exists(): continue
        (folder / top).symlink_to(Path(file.locate()).parents[len(file.parts) - 1] / top)


def environment(folder, wheel):
    "A fresh virtual environment with nothing but the wheel; its Python and its folder of packages."
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    python = folder / SCRIPTS / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    run(*install, folder=folder.parent)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder.parent)
    return python, Path(site.strip())


@pytest.fixture(scope="module")
def whole(archives, tmp_path_factory):
    "An environment with the wheel and all that is installed here, but not this checkout."
    python, site = environment(tmp_path_factory.mktemp("whole") / "env", archives[1])
    here = {str(Path(file.locate()).parents[len(file.parts) - 1]) for file in metadata.distribution("torch").files[:1]}
    (site / "here.pth").write_text("\n".join(here))  # Python doesn't read the .pth files of folders that are named so
    return python


@pytest.fixture(scope="module")
def core(archives, tmp_path_factory):
    "An environment with the wheel and what it requires without extras."
    if WINDOWS: pytest.skip("links to packages need rights on Windows")
    python, site = environment(tmp_path_factory.mktemp("core") / "env", archives[1])
    for name in needed(described(archives[1]).get_all("Requires-Dist")): link_distribution(name, site)
    return python


MODULES = sorted(
    ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    for file in (path.relative_to(ROOT) for path in (ROOT / "bgcs").rglob("*.py"))
    if file.stem not in ("__main__", "_modidx")
)
NOTEBOOKS_ONLY = [name for name in MODULES if name.startswith("bgcs.widgets")]

IMPORTS = """
import importlib, pathlib, sys
import bgcs
assert pathlib.Path(sys.prefix).resolve() in pathlib.Path(bgcs.__file__).resolve().parents, bgcs.__file__
for name in sys.argv[1:]: importlib.import_module(name)
"""


def test_archives_hold_what_they_should(archives):
    files = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / "bgcs").rglob("*")
             if path.suffix in (".py", ".js", ".css", ".j2")}
    source, wheel = archives
    with zipfile.ZipFile(wheel) as archive: inside = set(archive.namelist())
    assert files <= inside and not [name for name in inside if name.split("/")[0] in ("tests", "tools", "nbs")]
    with tarfile.open(source) as archive: named = {name.partition("/")[2] for name in archive.getnames()}
    assert files | {"LICENSE", "README.md", "settings.ini", "setup.py", "tools/readme.py"} <= named


def test_description_has_no_relative_links(archives):
    about = described(archives[1])
    said = about.get_payload(decode=True).decode()
    assert "](https://github.com/bgcs/bgcs/blob/main/nbs/" in said
    assert "](https://raw.githubusercontent.com/bgcs/bgcs/main/nbs/images/" in said
    assert "](nbs/" not in said
    assert {"notebook", "logging", "dicom", "nifti", "sweep", "all"} <= set(about.get_all("Provides-Extra"))


def test_every_module_imports_and_finds_its_files(whole, tmp_path):
    assets = "from bgcs.widgets.shared import asset; print(*(len(asset(name)) for name in sys.argv[1:]))"
    run(whole, "-c", IMPORTS, *MODULES, folder=tmp_path)
    names = [path.name for path in (ROOT / "bgcs" / "widgets").iterdir() if path.suffix in (".js", ".css")]
    assert len(names) > 3
    sizes = run(whole, "-c", f"import sys; {assets}", *names, folder=tmp_path).split()
    assert len(sizes) == len(names) and min(map(int, sizes)) > 100


def test_the_core_needs_no_notebook(core, tmp_path):
    run(core, "-c", IMPORTS, *[name for name in MODULES if name not in NOTEBOOKS_ONLY], folder=tmp_path)
    for name in NOTEBOOKS_ONLY:
        tried = f"try: import {name}\nexcept ModuleNotFoundError as error: print(error)"
        assert "pip install 'bgcs[notebook]'" in run(core, "-c", tried, folder=tmp_path)
    absent = "from importlib.util import find_spec; print(*map(find_spec, ('jupyterlab', 'umap', 'tensorboardX')))"
    assert run(core, "-c", absent, folder=tmp_path).split() == ["None"] * 3


def test_the_command_line_trains_with_the_core_alone(core, tmp_path):
    command = core.parent / "bgcs"
    version = next(line for line in (ROOT / "settings.ini").read_text().splitlines() if line.startswith("version"))
    assert version.split("=")[1].strip() in run(command, "--version", folder=tmp_path)
    said = run(command, "demo", *TINY, "--folder", "run", folder=tmp_path)
    assert "Finished" in said and (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "model").exists() and (tmp_path / "run" / "logs" / "metrics.csv").is_file()
    run(command, "predict", "run", tmp_path / "run" / "figures" / "training", "--out", "masks", folder=tmp_path)
