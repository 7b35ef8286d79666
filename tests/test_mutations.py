"""Files harmed at random, of each format: each is read or refused in words, in less than 2 s and 1 GB. `mutants.py` harms and reads them."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

MUTANTS, SECONDS = Path(__file__).with_name("mutants.py"), 2


def became(folder, seed, n):
    "For each of n mutants its number, name, what became of it, and seconds of work."
    report = folder / "report.txt"
    command = [sys.executable, MUTANTS, folder, seed, 0, n, report]
    done = subprocess.run(list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    lines = report.read_text().splitlines() if report.is_file() else []
    assert done.returncode == 0 and len(lines) == n, (done.returncode, lines[-1:], done.stderr[-2000:])
    return [line.split(" ", 2)[:2] + line.split(" ", 2)[2].rsplit(" ", 1) for line in lines]


def check(found):
    faults = [line for line in found if line[2] not in ("read", "refused") or float(line[3]) > SECONDS]
    assert not faults, f"{len(faults)} of {len(found)}: {faults[:10]}"
    for name in {name for _, name, *_ in found}:  # harm is done, and not all of it kills
        said = {what for _, other, what, _ in found if other == name}
        assert "refused" in said, name
    assert {what for *_, what, _ in found} == {"read", "refused"}


@pytest.mark.posix
def test_hundreds_of_mutants(tmp_path): check(became(tmp_path, seed=0, n=800))


@pytest.mark.posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_mutants(seed, tmp_path): check(became(tmp_path, seed, 10_000))
