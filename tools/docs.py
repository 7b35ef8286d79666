"""Renders the documentation with Quarto into _docs: `python tools/docs.py`.

Without Quarto, or with --check, it checks what can be: notebooks are processed, links resolve, the sidebar is whole.
"""
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
    "Pages that are listed."
    for entry in contents:
        if isinstance(entry, str): yield entry
        else: yield from sidebar_pages(entry["contents"])


def links_of(page):
    "Where a notebook's markdown points to, within the documentation."
    for cell in nbformat.read(page, as_version=4).cells:
        if cell.cell_type != "markdown": continue
        text = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
        yield from (target for target in LINK.findall(text) if not re.match(r"[a-z]+:|#", target))


def dead_links(page):
    "What links of a page lead nowhere."
    for target in links_of(page):
        file = unquote(target.split("#")[0])
        if not (page.parent / file).exists(): yield f"{page.relative_to(ROOT)} links to {target}, which isn't there"


def check(pages):
    "What is wrong with the pages, in words."
    sidebar = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
    listed = set(sidebar_pages(sidebar["contents"]))
    there = {page.relative_to(NBS).as_posix() for page in pages}
    yield from (f"{page} is in no sidebar of _quarto.yml" for page in sorted(there - listed))
    yield from (f"_quarto.yml lists {page}, which isn't there" for page in sorted(listed - there))
    for page in pages: yield from dead_links(page)
    yield from (f"{page} was not processed" for page in sorted(there) if not (PROCESSED / page).is_file())


def process():
    "What nbdev makes of the notebooks for Quarto; what went wrong, in words."
    shutil.copy2(ROOT / "_quarto.yml", NBS / "_quarto.yml")  # derived: the top level's file is the one to edit
    shutil.rmtree(PROCESSED, ignore_errors=True)
    command = [sys.executable, "-c", "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [f"notebooks could not be processed:\n{done.stdout}{done.stderr}"] if done.returncode else []


def render():
    "Quarto's exit code."
    for images in NBS.rglob("images"):
        if images.is_dir(): shutil.copytree(images, PROCESSED / images.relative_to(NBS), dirs_exist_ok=True)
    command = ["quarto", "render", str(PROCESSED), "--output-dir", str(ROOT / "_docs")]
    return subprocess.run(command, cwd=PROCESSED).returncode


def main():
    problems = process()
    pages = sorted(page for page in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in page.parts)
    problems += check(pages)
    if problems: sys.exit("The documentation has problems:\n  " + "\n  ".join(problems))
    print(f"{len(pages)} notebooks processed; every internal link and image resolves; every page is in the sidebar.")
    if "--check" in sys.argv: return
    if shutil.which("quarto"): sys.exit(render())
    print("Quarto is not installed, so no site was rendered: https://quarto.org/docs/get-started/")


if __name__ == "__main__":
    main()
