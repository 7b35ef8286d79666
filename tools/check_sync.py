"""Fails unless notebooks and package are in sync and clean, and as readable as before: `python tools/check_sync.py`.

After nbdev_clean, nbdev_export and the README's renewal nothing may have changed; the numbers of tools/counts.py may
only fall. Works on a copy, so that a failing check changes nothing in the checkout.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import counts

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 1_500_000  # bytes of a notebook
COMMANDS = (["nbdev_clean"], ["nbdev_export"], [sys.executable, "tools/readme.py"])


def tracked():
    "Files that git knows, or would know if they were added."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if listed.returncode: sys.exit("check_sync needs a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def made_anew(files, copy):
    "Copy files, and do there what `make prepare` does."
    for file in files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, copy / file)
    for command in COMMANDS:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, encoding="utf-8")
        if not done.returncode: continue
        said = " ".join(command)
        sys.exit(f"{said} failed:\n{done.stdout}{done.stderr}")


def stale(files, copy):
    "What differs from the copy."
    for file in sorted({path.relative_to(copy) for path in (copy / "bgcs").rglob("*.py")} | set(files)):
        same = (ROOT / file).is_file() and (copy / file).read_bytes() == (ROOT / file).read_bytes()
        if not same: yield f"{file} is not what the notebooks give; run `make prepare` and commit"


def heavy(files):
    "Notebooks that hold too much."
    for file in files:
        if file.suffix != ".ipynb": continue
        megabytes = (ROOT / file).stat().st_size / 1e6
        if megabytes > LARGEST / 1e6:
            yield f"{file} has {megabytes:.1f} MB; keep outputs small, at most {LARGEST / 1e6} MB"
        if "widgets" in json.loads((ROOT / file).read_text(encoding="utf-8"))["metadata"]:
            yield f"{file} stores the state of its widgets; run `make prepare`"


def main():
    files = tracked()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / ROOT.name
        made_anew(files, copy)
        problems = [*stale(files, copy), *heavy(files)]
    if problems: sys.exit("Notebooks and package are out of sync:\n  " + "\n  ".join(problems))
    risen = counts.problems()
    if risen: sys.exit("The code has become harder to read; these numbers may only fall:\n  " + "\n  ".join(risen))
    print(f"Notebooks, package and README are in sync ({len(files)} files).")


if __name__ == "__main__":
    main()
