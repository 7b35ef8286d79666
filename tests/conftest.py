"""Shared by the tests. Slow ones run only when asked for: `pytest -m slow`."""
import os
import random
import socket
import sys
from pathlib import Path

import hypothesis
import pytest
from lab import browser, lab  # noqa: F401 — fixtures

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "nbs" / "tutorials" / "quickstart.ipynb"
WINDOWS = sys.platform == "win32"
# the quickstart's parameters for a run of seconds
TINY = {"n_images": 80, "image_size": 32, "n_clusters": 3, "steps": 24}

HANG = 1200  # seconds after which a process is taken to hang; no test may come near it, however busy the machine is

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


def for_two_processes():
    """The environment of two that train together: a thread each, and a port to meet at.

    The port lies below those that the system gives to whoever asks for one, so nobody else has it before they do.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as s:
            try: s.bind(("127.0.0.1", port))
            except OSError: continue
        return os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
    raise RuntimeError("no port is free")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with -m slow")
    config.addinivalue_line("markers", "posix: needs signals and processes as Linux and macOS have them")
    config.addinivalue_line("markers", "linux: reads peak memory in /proc; getrusage's is handed down from the parent")


# Files that take longest, which two workers begin with, so that neither waits for the other at the end.
LONGEST = (
    "test_ranks", "test_monitor", "test_cli", "test_survival", "test_explorer", "test_training", "test_jupyterlab",
    "test_install", "test_survey", "test_predict", "test_extras", "test_divergence", "test_encoders", "test_clusters", "test_docs",
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    asked = "slow" in config.getoption("-m")
    for item in items:
        if "slow" in item.keywords and not asked: item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
        if "posix" in item.keywords and WINDOWS: item.add_marker(pytest.mark.skip(reason="not on Windows"))
        if "linux" in item.keywords and not Path("/proc/self/status").exists():
            item.add_marker(pytest.mark.skip(reason="not on Linux"))
