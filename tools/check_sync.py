"""Fails unless notebooks and package are in sync and clean: after nbdev_clean, nbdev_export and the README's renewal nothing may have changed.

Works on a copy, so that a failing check changes nothing in the checkout.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 1_500_000  # bytes of a notebook


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: sys.exit("check_sync needs a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def stale(files, copy):
    now = {p.relative_to(copy) for p in (copy / "bgcs").rglob("*.py")} | set(files)
    return sorted(str(f) for f in now if not (ROOT / f).is_file() or (copy / f).read_bytes() != (ROOT / f).read_bytes())


def heavy(files):
    for file in files:
        if file.suffix != ".ipynb": continue
        size = (ROOT / file).stat().st_size
        if size > LARGEST: yield f"{file} has {size / 1e6:.1f} MB; keep outputs small, at most {LARGEST / 1e6} MB"
        if "widgets" in json.loads((ROOT / file).read_text(encoding="utf-8"))["metadata"]: yield f"{file} stores the state of its widgets; run `make prepare`"


def main():
    files = tracked()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / ROOT.name
        for file in files:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, copy / file)
        for command in (["nbdev_clean"], ["nbdev_export"], [sys.executable, "tools/readme.py"]):
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
            if done.returncode: sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        problems = [f"{name} is not what the notebooks give; run `make prepare` and commit" for name in stale(files, copy)] + list(heavy(files))
    if problems: sys.exit("Notebooks and package are out of sync:\n  " + "\n  ".join(problems))
    print(f"Notebooks, package and README are in sync ({len(files)} files).")


if __name__ == "__main__":
    main()
