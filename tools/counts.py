"""How readable the code is, in numbers that may only fall: `python tools/counts.py`.

Compares what is counted with tools/counts.json, and names the places where more is counted than there.
`python tools/counts.py --write` keeps lower numbers; it never raises one.
"""
import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = Path("tools") / "counts.json"
LOGIC = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

# For each number, what it counts; all are sums over files but those named in LARGEST.
WHAT = {
    "lines over 120": "lines of more than 120 characters in bgcs/",
    "lines over 140": "lines of more than 140 characters in bgcs/",
    "longest line": "characters of the longest line in bgcs/",
    "logic in f-strings": "places of f-strings in bgcs/ that hold more than names",
    "longest exported cell": "lines of the longest exported cell in nbs/",
    "public names": "names in the __all__ of the modules of bgcs/",
}
LARGEST = ("longest line", "longest exported cell")


def is_logic(node: ast.AST) -> bool:
    "Whether a part of what stands between an f-string's braces belongs above it: all but names and `len`."
    if isinstance(node, LOGIC): return True
    if isinstance(node, ast.Call):
        of_length = isinstance(node.func, ast.Name) and node.func.id == "len"
        return bool(node.args or node.keywords) and not of_length
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult): return False
    return any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, node.right))


def logic_in_f_strings(tree: ast.Module) -> list[int]:
    "Lines of the braces that hold logic."
    braces = [node for node in ast.walk(tree) if isinstance(node, ast.FormattedValue)]
    return [node.lineno for node in braces if any(is_logic(part) for part in ast.walk(node.value))]


def public_names(tree: ast.Module) -> int:
    "How many names are in a module's `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return len(ast.literal_eval(node.value))
    return 0


def count_module(text: str) -> dict[str, int]:
    "The numbers of a module."
    tree = ast.parse(text)
    return count_lines(text) | {
        "logic in f-strings": len(logic_in_f_strings(tree)),
        "public names": public_names(tree),
    }


def count_lines(text: str) -> dict[str, int]:
    "How long lines are."
    lengths = [len(line) for line in text.splitlines()]
    return {
        "lines over 120": sum(length > 120 for length in lengths),
        "lines over 140": sum(length > 140 for length in lengths),
        "longest line": max(lengths, default=0),
    }


def count_notebook(text: str) -> dict[str, int]:
    "The length of the longest exported cell."
    sources = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    exported = [source for source in sources if source.lstrip().startswith("#| export")]
    return {"longest exported cell": max((len(source.splitlines()) for source in exported), default=0)}


def count_file(path: Path) -> dict[str, int]:
    "The numbers of a file, by its kind."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb": return count_notebook(text)
    if path.suffix == ".py": return count_module(text)
    return count_lines(text)


def files_of(root: Path) -> list[Path]:
    "Files that are counted: modules, scripts and style sheets of the package, and notebooks."
    package = [path for path in (root / "bgcs").rglob("*") if path.suffix in (".py", ".js", ".css")]
    notebooks = [path for path in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    return sorted(path for path in package + notebooks if path.name not in ("_modidx.py", "__init__.py"))


def count(root: Path) -> dict[str, dict[str, int]]:
    "By number and file; files that have none are left out."
    found = {name: {} for name in WHAT}
    for path in files_of(root):
        for name, value in count_file(path).items():
            if value: found[name][path.relative_to(root).as_posix()] = value
    return found


def total(name: str, by_file: dict[str, int]) -> int:
    "A number over all files: their sum, or the largest."
    return max(by_file.values(), default=0) if name in LARGEST else sum(by_file.values())


def risen(name: str, before: dict[str, int], after: dict[str, int]) -> list[str]:
    "What to say where a number has risen: how much, and the files that have more than before."
    was, now = total(name, before), total(name, after)
    if now <= was: return []
    if name in LARGEST: places = {file: value for file, value in after.items() if value > was}
    else: places = {file: value for file, value in after.items() if value > before.get(file, 0)}
    said = [f"{name}: {now}, and only {was} before ({WHAT[name]})"]
    for file, value in places.items():
        earlier = before.get(file, 0)
        said.append(f"  {file}: {value}, was {earlier}")
    return said


def problems(root: Path = ROOT) -> list[str]:
    "Numbers that have risen, in words; none where nothing has been kept yet."
    kept = root / KEPT
    if not kept.is_file(): return []
    before, after = json.loads(kept.read_text(encoding="utf-8")), count(root)
    return [line for name in WHAT for line in risen(name, before.get(name, {}), after[name])]


def write(root: Path = ROOT) -> None:
    "Keep what is counted now."
    (root / KEPT).write_text(json.dumps(count(root), indent=1) + "\n", encoding="utf-8")


def main():
    for name, by_file in count(ROOT).items(): print(f"{total(name, by_file):6} {name}")
    if found := problems(): sys.exit("These numbers may only fall:\n  " + "\n  ".join(found))
    if "--write" in sys.argv: write()


if __name__ == "__main__":
    main()
