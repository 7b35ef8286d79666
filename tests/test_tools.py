"""The tools of the workshop: what tools/counts.py counts may only fall, and links of the README hold wherever it is read."""
import json

import counts
import pytest
import readme
from conftest import ROOT

CALM = """
__all__ = ["a", "b"]
def f(x, names): return f"{x} {x.y[0]:.2f} {x!r} {len(names)} {x.z()}"
"""
WIDE = f"""
__all__ = ["a", "b", "c"]
text = "{'x' * 150}"
"""


@pytest.fixture
def project(tmp_path):
    "A small one, with what is counted in it kept."
    for folder in ("bgcs", "nbs", "tools"): (tmp_path / folder).mkdir()
    (tmp_path / "bgcs" / "calm.py").write_text(CALM)
    (tmp_path / "bgcs" / "view.js").write_text("let a = 1\n")
    write_notebook(tmp_path, lines=3)
    counts.write(tmp_path)
    return tmp_path


def write_notebook(project, lines):
    cells = [{"cell_type": "code", "source": ["#| export\n", *["a = 1\n"] * (lines - 1)]},
             {"cell_type": "code", "source": ["b = 1\n"] * 50}, {"cell_type": "markdown", "source": []}]
    (project / "nbs" / "a.ipynb").write_text(json.dumps({"cells": cells}))


def totals(project): return {name: counts.total(name, by_file) for name, by_file in counts.count(project).items()}


def test_what_is_counted(project):
    expected = {"lines over 120": 0, "lines over 140": 0, "longest line": 70, "logic in f-strings": 0,
                "longest exported cell": 3, "public names": 2}
    assert totals(project) == expected
    (project / "bgcs" / "view.js").write_text("a" * 130 + "\n")
    assert totals(project) == expected | {"lines over 120": 1, "longest line": 130}


@pytest.mark.parametrize("logic", [
    "x if x else 1", "', '.join(x)", "[a for a in x]", "x or 1", "'s' * x", "len([a for a in x])", "f(x, y=1)",
])
def test_logic_is_seen(project, logic):
    (project / "bgcs" / "new.py").write_text(f'f"{{{logic}}}"')
    assert totals(project)["logic in f-strings"] == 1
    first, place = counts.problems(project)
    assert "logic in f-strings: 1, and only 0 before" in first and "bgcs/new.py: 1, was 0" in place


def test_a_rise_is_named_with_its_place(project):
    assert counts.problems(project) == []
    (project / "bgcs" / "wide.py").write_text(WIDE)
    write_notebook(project, lines=7)
    found = "\n".join(counts.problems(project))
    for said in ("lines over 140: 1, and only 0 before", "longest line: 159, and only 70", "bgcs/wide.py: 159, was 0",
                 "longest exported cell: 7, and only 3", "nbs/a.ipynb: 7, was 3", "public names: 5, and only 2"):
        assert said in found, found
    assert "bgcs/calm.py" not in found


def test_numbers_may_move_between_files_and_fall(project):
    (project / "bgcs" / "calm.py").rename(project / "bgcs" / "moved.py")
    assert counts.problems(project) == []
    (project / "bgcs" / "moved.py").write_text("__all__ = ['a']\n")
    assert counts.problems(project) == []
    counts.write(project)
    (project / "bgcs" / "moved.py").write_text(CALM)
    assert any("public names: 2, and only 1" in line for line in counts.problems(project))


LINKS = "![a](images/a.png) [b](x/b.ipynb#c) [d](https://e.org) [f](#g) [h](mailto:i@j.org)"


def test_links_of_the_readme():
    here = readme.with_links_from_the_top(LINKS)
    assert here == "![a](nbs/images/a.png) [b](nbs/x/b.ipynb#c) [d](https://e.org) [f](#g) [h](mailto:i@j.org)"
    anywhere = readme.with_absolute_links(here, "https://github.com/o/r", "main")
    assert "![a](https://raw.githubusercontent.com/o/r/main/nbs/images/a.png)" in anywhere
    assert "[b](https://github.com/o/r/blob/main/nbs/x/b.ipynb#c) [d](https://e.org) [f](#g)" in anywhere


def test_the_version_is_the_same_everywhere():
    lines = [line.split("=") for line in (ROOT / "settings.ini").read_text().splitlines() if line.startswith("version")]
    version = lines[0][1].strip()
    assert f'__version__ = "{version}"' in (ROOT / "bgcs" / "__init__.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert version in (ROOT / "CHANGELOG.md").read_text()
