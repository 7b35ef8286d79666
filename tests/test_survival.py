"Killed, interrupted, out of numbers, memory or disk: training ends as it should, and goes on where it was."
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bgcs.objective.batches import Batches
from bgcs.training.checkpoints import _Checkpoints, read_checkpoint
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.refresh import RefreshClusters
from bgcs.masks.segment import Segmenter
from bgcs.objective.terms import Objective
from bgcs.training.learner import NotFinite, OutOfMemory

small = {"progress": False, "accelerator": "cpu", "batches": Batches(3, 10)}


@pytest.fixture(scope="module")
def data(): return digits_on_textures(n=90, image_size=24)


def fit(data, segmenter=None, **settings):
    segmenter = segmenter or Segmenter(base_width=4, depth=1, objective=Objective(n_projections=16, patch_places=4))
    return segmenter.fit(data, data.background_class, **small | {"steps": 24, "rounds": 4, "held_out": None} | settings)


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


KILLING = """
import json, os, random, signal, sys, time, warnings
import torch
warnings.simplefilter("ignore")
from bgcs.objective.batches import Batches
from bgcs.training.checkpoints import _Checkpoints
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.segment import Segmenter
from bgcs.objective.terms import Objective
torch.set_num_threads(1)
folder, kills = sys.argv[1], int(sys.argv[2])
data = digits_on_textures(n=150, image_size=24)

def train(folder):
    segmenter = Segmenter(base_width=24, depth=2, objective=Objective(n_projections=16, patch_places=4))
    return segmenter.fit(data, data.background_class, steps=90, rounds=9, batches=Batches(3, 10), held_out=0.4, save_every=2, folder=folder, progress=False, accelerator="cpu")

draw, parts, steps, status = random.Random(0), 0, [], None
while True:
    child = os.fork()  # what was imported need not be imported again; torch has run on one thread only
    if not child:
        done = train(folder)
        torch.save({"weights": done.state_dict(), "threshold": done.threshold_, "history": done.history_}, folder + "/result")
        os._exit(0)
    if len(steps) < kills:
        before, end, writing = set(_Checkpoints(folder).paths), time.monotonic() + 60, len(steps) % 2
        alive = lambda: time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0)
        while set(_Checkpoints(folder).paths) == before and alive(): time.sleep(0.001)  # it has got somewhere
        time.sleep(draw.uniform(0, 0.1))
        while writing and not any(name.endswith(".part") for name in os.listdir(folder)) and alive(): pass
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status): break
    parts += any(name.endswith(".part") for name in os.listdir(folder))
    steps.append(int(_Checkpoints(folder).paths[0].stem.split("-")[1]))
whole = train(None)
found = torch.load(folder + "/result", weights_only=True)
print(json.dumps({"kills": len(steps), "in the middle of writing": parts, "steps": steps, "status": status, "same": all(torch.equal(a, b) for a, b in zip(found["weights"].values(), whole.state_dict().values())),
                  "threshold": found["threshold"] == whole.threshold_, "history": found["history"] == whole.history_}))
"""


def test_killed_twenty_times_it_ends_with_the_same_weights(tmp_path):
    import json
    done = subprocess.run([sys.executable, "-c", KILLING, str(tmp_path), "22"], capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["kills"] >= 20 and found["in the middle of writing"] >= 1
    assert found["same"] and found["threshold"] and found["history"]


SLOW = """
import warnings; warnings.simplefilter("ignore")
import sys, time, torch, lightning as L
sys.path.insert(0, {tests!r})
from test_survival import fit
from bgcs.data.datasets import digits_on_textures
class Slow(L.Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == 5: print("ready", flush=True)
        time.sleep(0.1)
torch.set_num_threads(1)
done = fit(digits_on_textures(n=90, image_size=24), callbacks=[Slow()], folder={folder!r}, save_every=1000)
masks = done.predict(digits_on_textures(n=2, image_size=24).images)
print("usable", bool(masks.isfinite().all()), flush=True)
"""


def signalled(number, folder, **environment):
    "A training in a process of its own that gets a signal after its fifth step; exit code, output, errors."
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(tests=str(Path(__file__).parent), folder=str(folder))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    while (line := process.stdout.readline()) and line != "ready\n": pass
    process.send_signal(number)
    return process, *process.communicate(timeout=100)


def goes_on_to_the_same_end(data, folder):
    step, threads = read_checkpoint(_Checkpoints(folder).latest())["global_step"], torch.get_num_threads()
    torch.set_num_threads(1)
    try: return 5 <= step <= 8 and same(fit(data, folder=folder), fit(data))
    finally: torch.set_num_threads(threads)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_end_training_with_the_step_saved(number, code, data, tmp_path):
    process, out, err = signalled(number, tmp_path)
    assert process.returncode == code and ("usable True" in out) == (number == signal.SIGINT) and "Traceback" not in err, (process.returncode, out, err)
    assert goes_on_to_the_same_end(data, tmp_path)


def test_slurm_job_saves_and_queues_itself_again(data, tmp_path):
    "The cluster is played by its environment variables and a `scontrol` that notes what it was asked."
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path / 'asked'}\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    process, out, err = signalled(signal.SIGUSR1, tmp_path / "run", **slurm, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert process.returncode == 143 and "usable" not in out and "Traceback" not in err, (process.returncode, out, err)
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert goes_on_to_the_same_end(data, tmp_path / "run")


def test_other_settings_are_refused_by_name(data, tmp_path):
    fit(data, folder=tmp_path)
    other = digits_on_textures(n=90, image_size=24, random_state=1)
    for settings, text in (({"steps": 25}, "steps: 24 there, 25 now"), ({"segmenter": Segmenter(base_width=8, depth=1)}, "base_width: 4 there, 8 now"), ({"batches": Batches(4, 10)}, "per_cluster: 3 there, 4 now")):
        with pytest.raises(ValueError, match=text): fit(data, folder=tmp_path, **settings)
    with pytest.raises(ValueError, match="content of the images"): fit(other, folder=tmp_path)
    assert same(fit(data, folder=tmp_path), fit(data))  # finished: comes back as it was


def test_refreshed_clusters_survive(data, tmp_path):
    from bgcs.backgrounds.cluster import BackgroundClusterer
    import lightning as L
    clusterer = BackgroundClusterer(3, encoder="pixels", progress=False).fit(data)
    class Break(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest): trainer.global_step == 15 and module.model.stop()
    def run(callbacks=(), **settings):
        refresh = RefreshClusters(clusterer, start=0.2)
        return fit(data, callbacks=[refresh, *callbacks], **settings), refresh
    with pytest.warns(UserWarning, match="stopped after 15 of 24 steps"): run([Break()], folder=tmp_path)
    (resumed, a), (whole, b) = run(folder=tmp_path), run()
    assert same(resumed, whole) and a.changed == b.changed and len(a.changed) >= 2 and any(a.changed)


def test_newest_checkpoint_damaged_the_one_before_is_taken(data, tmp_path):
    import lightning as L
    class Break(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest): trainer.global_step == 9 and module.model.stop()
    with pytest.warns(UserWarning, match="stopped"): fit(data, folder=tmp_path, callbacks=[Break()], save_every=2)
    newest = _Checkpoints(tmp_path).paths[0]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="is damaged.*the one before is taken"): resumed = fit(data, folder=tmp_path)
    assert same(resumed, fit(data))


class Spoiled(Segmenter):
    def losses(self, batch, shared=None, own=None):
        found = super().losses(batch, shared, own)
        bad = torch.isin(batch["index_objects"], torch.tensor([17])).any()
        return found | {"background": found["background"] * torch.nan, "loss": found["loss"] * torch.nan} if bad else found


def test_a_loss_that_is_no_number_is_named(data, tmp_path):
    assert data.presence[17]
    make = lambda: Spoiled(base_width=4, depth=1, objective=Objective(n_projections=16, patch_places=4))
    with pytest.raises(NotFinite, match=r"batch \d+: background is nan.* Images of it: objects .*; backgrounds .*The last good checkpoint is .*step-"): fit(data, make(), folder=tmp_path, steps=200, save_every=1)
    segmenter = make()
    with pytest.warns(UserWarning, match="batches were skipped"): fit(data, segmenter, on_bad="skip", steps=100)
    assert 0 < segmenter.skipped < 50 and all(value.isfinite().all() for value in segmenter.state_dict().values())


class Large(Segmenter):
    def losses(self, batch, shared=None, own=None):
        if len(batch["images"]) > 5: raise torch.OutOfMemoryError("out of memory")
        return super().losses(batch, shared, own)


def test_out_of_memory_says_what_fits(data):
    "The error itself is simulated, as there may be no GPU; which part fits is found by running it."
    with pytest.raises(OutOfMemory, match=r"batch 0 \(9 images, 9 backgrounds, 30 real\) doesn't fit into the memory of cpu; 3 images, 3 backgrounds, 15 real do, 0.5 of each"):
        fit(data, Large(base_width=4, depth=1, objective=Objective(n_projections=16, patch_places=4)))


def test_a_full_disk_leaves_the_checkpoint_before(data, tmp_path):
    import shutil
    if os.geteuid() != 0 or not shutil.which("mount"): pytest.skip("a small disk can only be mounted by root")
    make = lambda: Segmenter(base_width=8, depth=1, objective=Objective(n_projections=16, patch_places=4))
    fit(data, make(), folder=tmp_path / "enough", save_every=2)
    size, disk = _Checkpoints(tmp_path / "enough").paths[0].stat().st_size, tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", disk], capture_output=True).returncode: pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OSError, match="the disk is full: step-.* needs .* MB and .* MB are free"): fit(data, make(), folder=disk, save_every=2)
        assert read_checkpoint(_Checkpoints(disk).latest())["global_step"] == 4 and len(list(disk.iterdir())) == 2
        _Checkpoints(disk).paths[1].unlink()  # room is made
        shutil.copy(_Checkpoints(disk).latest(), tmp_path)
    finally: subprocess.run(["umount", disk], check=True)
    assert same(fit(data, make(), folder=tmp_path), fit(data, make()))


def test_a_device_that_is_not_there(data):
    if torch.cuda.is_available(): pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="Lightning cannot train with .*accelerator='gpu'"): fit(data, accelerator="gpu")
