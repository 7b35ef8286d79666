"""The packed cache with real second processes: two that build it at once, builders that are killed, a disk that is full."""
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from bgcs.data.images import from_folders
from bgcs.data.stores import PackedStore, clear_cache

HANGS = 1800  # seconds after which a process is not slow but waits for ever
BUILD = """
import sys
from bgcs.data.images import from_folders
objects, backgrounds, cache = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
data = from_folders(objects, backgrounds, lazy=True).packed(cache)
print(len(data), float(data.images[:].double().sum()), flush=True)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for kind in ("with", "without"):
        (root / kind).mkdir()
        for i in range(1500):
            image = Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8))
            image.save(root / kind / f"{i:05}.png", compress_level=1)
    return root / "with", root / "without"


def builder(folders, cache, **kw):
    command, pipe = [sys.executable, "-c", BUILD, *map(str, folders), str(cache)], subprocess.PIPE
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=one_thread, **kw)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def last_words(process): return process.communicate(timeout=HANGS)[0].strip().splitlines()[-1]


def truth(folders): return from_folders(*folders).images


def test_two_at_once(folders, tmp_path):
    processes = [builder(folders, tmp_path) for _ in range(2)]
    for process in processes: go(process)
    total = float(truth(folders).double().sum())
    assert [last_words(process) for process in processes] == [f"3000 {total}"] * 2
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1 and not list(tmp_path.glob("*.building"))


def wait_for_work(process, cache):
    "Until a builder has begun to write, however busy the machine is."
    while process.poll() is None and not list(cache.glob("*.building")): time.sleep(0.005)


@pytest.mark.posix
def test_killed_while_building(folders, tmp_path):
    "Half of the builders are killed at work for sure, the others at any time."
    chance, interrupted = random.Random(0), 0
    for kill in range(6):
        process = builder(folders, tmp_path)
        go(process)
        if kill % 2 == 0: wait_for_work(process, tmp_path)
        time.sleep(chance.uniform(0.05, 0.6) if kill % 2 else chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        interrupted += bool(list(tmp_path.glob("*.building")))
    assert interrupted, "no builder was killed at its work; make the set larger"
    images = from_folders(*folders, lazy=True).packed(tmp_path).images
    assert isinstance(images.store, PackedStore) and (images[:] == truth(folders)).all()
    assert not list(tmp_path.glob("*.building"))


@pytest.mark.posix
def test_killed_holder_of_the_lock_is_not_waited_for(folders, tmp_path):
    first = builder(folders, tmp_path)
    go(first)
    wait_for_work(first, tmp_path)
    second = builder(folders, tmp_path)
    go(second)
    first.send_signal(signal.SIGKILL)
    assert last_words(second).startswith("3000 ") and second.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files by POSIX means")
def test_full_disk(folders, tmp_path):
    import resource
    def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    process = builder(folders, tmp_path, preexec_fn=limit)
    go(process)
    _, complaint = process.communicate(timeout=HANGS)
    assert process.returncode and "The packed cache could not be written in" in complaint
    assert "set BGCS_CACHE to a folder on another disk" in complaint
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_changed_file(folders, tmp_path):
    before = from_folders(*folders, lazy=True).packed(tmp_path)
    changed = folders[0] / "00003.png"
    old = changed.read_bytes()
    try:
        Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).save(changed)
        after = from_folders(*folders, lazy=True).packed(tmp_path)
        assert not (after.images[3] == before.images[3]).all() and (after.images[4:] == before.images[4:]).all()
        assert len(list(tmp_path.glob("*/images.npy"))) == 1
    finally: changed.write_bytes(old)


def test_training_from_the_cache_is_training_from_memory(folders, tmp_path, monkeypatch):
    import torch

    from bgcs.backgrounds.cluster import BackgroundClusterer
    from bgcs.masks.segment import Segmenter
    from bgcs.objective.batches import Batches
    monkeypatch.setenv("BGCS_CACHE", str(tmp_path))
    some, few = torch.arange(0, 3000, 75), Batches(per_cluster=4, n_real=8)
    masks = []
    for lazy in (False, True):
        data = from_folders(*folders, lazy=lazy)[some]
        clusters = BackgroundClusterer(2, epochs=1, progress=False).fit(data).predict(data)
        segmenter = Segmenter(base_width=4, depth=1)
        segmenter.fit(data, clusters, steps=2, rounds=1, batches=few, held_out=None, accelerator="cpu", progress=False)
        masks.append(segmenter.predict(data.objects[:5]))
    assert len(list(tmp_path.glob("*/images.npy"))) == 1 and torch.equal(*masks)


def test_clearing_frees_all_that_was_kept_and_nothing_else(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("BGCS_CACHE", str(tmp_path))
    data = from_folders(*folders, lazy=True).packed()
    (tmp_path / "notes-of-mine.txt").write_text("not a cache")
    held = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert clear_cache() == held - len("not a cache")
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["notes-of-mine.txt"] and len(data) == 3000
