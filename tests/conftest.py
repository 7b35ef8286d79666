"""Shared by the tests. Slow ones run only when asked for: `pytest -m slow`."""
from pathlib import Path

import hypothesis
import pytest
from lab import browser, lab  # noqa: F401 — fixtures

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "nbs" / "tutorials" / "quickstart.ipynb"
TINY = {"n_images": 80, "image_size": 32, "n_clusters": 3, "steps": 24}  # the quickstart's parameters for a run of seconds


hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with -m slow")
    config.addinivalue_line("markers", "alone: measures time, so nothing may run beside it; run with -m alone")


def pytest_collection_modifyitems(config, items):
    if "slow" in config.getoption("-m"): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
