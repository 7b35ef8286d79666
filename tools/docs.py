"""Renders the documentation site with Quarto into _docs; without Quarto, or with --check, checks all that can be checked: `python tools/docs.py`."""
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS, PROCESSED = ROOT / "nbs", ROOT / "_proc"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")


def sidebar_pages(contents):
    for entry in contents:
        if isinstance(entry, str): yield entry
        else: yield from sidebar_pages(entry["contents"])


def dead_links(page):
    notebook = nbformat.read(page, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type != "markdown": continue
        for target in LINK.findall(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)):
            if re.match(r"[a-z]+:|#", target): continue
            if not (page.parent / unquote(target.split("#")[0])).exists(): yield f"{page.relative_to(ROOT)} links to {target}, which isn't there"


def check(pages):
    listed = set(sidebar_pages(yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]))
    there = {p.relative_to(NBS).as_posix() for p in pages}
    yield from (f"{page} is in no sidebar of _quarto.yml" for page in sorted(there - listed))
    yield from (f"_quarto.yml lists {page}, which isn't there" for page in sorted(listed - there))
    for page in pages: yield from dead_links(page)
    yield from (f"{page} was not processed" for page in sorted(there) if not (PROCESSED / page).is_file())


def main():
    shutil.copy2(ROOT / "_quarto.yml", NBS / "_quarto.yml")  # derived: the top level's file is the one to edit
    shutil.rmtree(PROCESSED, ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)"], cwd=ROOT, capture_output=True, text=True)
    pages = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    problems = ([f"notebooks could not be processed:\n{done.stdout}{done.stderr}"] if done.returncode else []) + list(check(pages))
    if problems: sys.exit("The documentation has problems:\n  " + "\n  ".join(problems))
    print(f"{len(pages)} notebooks processed; every internal link and image resolves; every page is in the sidebar.")
    if "--check" in sys.argv: return
    if not shutil.which("quarto"):
        print("Quarto is not installed, so no site was rendered: https://quarto.org/docs/get-started/")
        return
    for extra in [p.relative_to(NBS) for p in NBS.rglob("images") if p.is_dir()]:
        if (NBS / extra).is_dir(): shutil.copytree(NBS / extra, PROCESSED / extra, dirs_exist_ok=True)
    sys.exit(subprocess.run(["quarto", "render", str(PROCESSED), "--output-dir", str(ROOT / "_docs")], cwd=PROCESSED).returncode)


if __name__ == "__main__":
    main()
