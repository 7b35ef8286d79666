"Killed, interrupted, out of numbers, memory or disk: training ends as it should, and goes on where it was."
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import HANG

from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.refresh import RefreshClusters
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.objective.terms import Objective
from bgcs.training.checkpoints import _Checkpoints, read_checkpoint
from bgcs.training.learner import NotFinite, OutOfMemory

FEW = Batches(per_cluster=3, n_real=10)
QUICK = Objective(n_projections=16, patch_places=4)


@pytest.fixture(scope="module")
def data(): return digits_on_textures(n=90, image_size=24)


def make(cls=Segmenter, base_width=4): return cls(base_width=base_width, depth=1, objective=QUICK)


def fit(data, segmenter=None, steps=24, rounds=4, batches=FEW, **settings):
    options = {"held_out": None, "progress": False, "accelerator": "cpu"} | settings
    return (segmenter or make()).fit(data, data.background_class, steps, rounds, batches=batches, **options)


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


class Break(L.Callback):
    "Asks training to end after a step."
    def __init__(self, step): self.step = step

    def on_train_batch_end(self, trainer, module, *rest):
        if trainer.global_step == self.step: module.model.stop()


# killed

PLACES = ("a step after a checkpoint", "half a file written", "all of it written", "in its place", "older ones removed")

# Each life but the last ends at the next of these places, while it writes its second checkpoint or a step after that.
KILLING = """
import json, os, signal, sys, warnings
import lightning as L
import torch
warnings.simplefilter("ignore")
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.objective.terms import Objective
from bgcs.training.checkpoints import _Checkpoints

torch.set_num_threads(1)
folder, places, kills = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
data = digits_on_textures(n=100, image_size=24)

def train(folder, callbacks=()):
    segmenter = Segmenter(base_width=8, depth=2, objective=Objective(n_projections=16, patch_places=4))
    return segmenter.fit(
        data, data.background_class, 10 + 4 * kills, 3, batches=Batches(3, 10), held_out=0.4, save_every=2, folder=folder,
        callbacks=callbacks, progress=False, accelerator="cpu",
    )

def die(): os.kill(os.getpid(), signal.SIGKILL)

class Fate(L.Callback):
    "Ends this process at a place."
    written, steps = 0, 0

    def __init__(self, place):
        self.place, self.real = place, {name: getattr(os, name) for name in ("fsync", "replace")}
        self.rotate = _Checkpoints.rotate
        os.fsync, os.replace, _Checkpoints.rotate = self.fsync, self.replace, lambda *args: self.rotated(*args)

    def at(self, place): return self.written == 2 and self.place == place

    def fsync(self, descriptor):
        self.written += 1
        if self.at("half a file written"):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        self.real["fsync"](descriptor)
        if self.at("all of it written"): die()

    def replace(self, part, path):
        self.real["replace"](part, path)
        if self.at("in its place"): die()

    def rotated(self, *args):
        self.rotate(*args)
        if self.at("older ones removed"): die()

    def on_train_batch_end(self, *_):
        self.steps += self.written == 2
        if self.steps == 1 and self.at("a step after a checkpoint"): die()

parts, steps, status = 0, [], None
while True:
    child = os.fork()  # what was imported need not be imported again; torch has run on one thread only
    if not child:
        done = train(folder, [Fate(places[len(steps) % len(places)])] if len(steps) < kills else [])
        result = {"weights": done.state_dict(), "threshold": done.threshold_, "history": done.history_}
        torch.save(result, folder + "/result")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status): break
    parts += any(name.endswith(".part") for name in os.listdir(folder))
    steps.append(int(_Checkpoints(folder).paths[0].stem.split("-")[1]))
whole = train(None)
found = torch.load(folder + "/result", weights_only=True)
pairs = zip(found["weights"].values(), whole.state_dict().values())
print(json.dumps({
    "steps": steps, "in the middle of writing": parts, "status": status, "same": all(torch.equal(a, b) for a, b in pairs),
    "threshold": found["threshold"] == whole.threshold_, "history": found["history"] == whole.history_,
}))
"""


@pytest.mark.posix
@pytest.mark.parametrize("kills", [10, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_many_times_it_ends_with_the_same_weights(kills, tmp_path):
    command = [sys.executable, "-c", KILLING, str(tmp_path), json.dumps(PLACES), str(kills)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert len(found["steps"]) == kills and found["status"] == 0
    assert found["in the middle of writing"] == 2 * kills / len(PLACES)  # half a file, and a whole one not in its place
    assert found["same"] and found["threshold"] and found["history"]


# asked to end

SLOW = """
import sys, time, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
import lightning as L
import torch
from test_survival import fit
from bgcs.data.datasets import digits_on_textures

class Wait(L.Callback):
    "After the fifth step, until a signal has come."
    def on_train_batch_end(self, trainer, module, *rest):
        if trainer.global_step != 5: return
        print("ready", flush=True)
        while module.model.asked is None: time.sleep(0.01)

torch.set_num_threads(1)
done = fit(digits_on_textures(n=90, image_size=24), callbacks=[Wait()], folder={folder!r}, save_every=1000)
masks = done.predict(digits_on_textures(n=2, image_size=24).images)
print("usable", bool(masks.isfinite().all()), flush=True)
"""


def signalled(number, folder, **environment):
    "A training in a process of its own that gets a signal after its fifth step; exit code, output, errors."
    code = SLOW.format(tests=str(Path(__file__).parent), folder=str(folder))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | environment, **pipes)
    while (line := process.stdout.readline()) and line != "ready\n": pass
    process.send_signal(number)
    return process, *process.communicate(timeout=HANG)


def goes_on_to_the_same_end(data, folder):
    step, threads = read_checkpoint(_Checkpoints(folder).latest())["global_step"], torch.get_num_threads()
    torch.set_num_threads(1)
    try: return step == 5 and same(fit(data, folder=folder), fit(data))
    finally: torch.set_num_threads(threads)


@pytest.mark.posix
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_end_training_with_the_step_saved(number, code, data, tmp_path):
    process, out, err = signalled(number, tmp_path)
    assert process.returncode == code and "Traceback" not in err, (process.returncode, out, err)
    assert ("usable True" in out) == (number == signal.SIGINT), out
    assert goes_on_to_the_same_end(data, tmp_path)


@pytest.mark.posix
def test_slurm_job_saves_and_queues_itself_again(data, tmp_path):
    "The cluster is played by its environment variables and a `scontrol` that notes what it was asked."
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path / 'asked'}\n")
    (programs / "scontrol").chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    }
    search = os.pathsep.join([str(programs), os.environ["PATH"]])
    process, out, err = signalled(signal.SIGUSR1, tmp_path / "run", **slurm, PATH=search)
    assert process.returncode == 143 and "usable" not in out and "Traceback" not in err, (process.returncode, out, err)
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert goes_on_to_the_same_end(data, tmp_path / "run")


# gone on with

def test_a_finished_training_comes_back_as_it_was(data, tmp_path):
    fit(data, folder=tmp_path)
    assert same(fit(data, folder=tmp_path), fit(data))


@pytest.mark.parametrize("settings, text", [
    ({"steps": 25}, "steps: 24 there, 25 now"),
    ({"segmenter": make(base_width=8)}, "base_width: 4 there, 8 now"),
    ({"batches": Batches(4, 10)}, "per_cluster: 3 there, 4 now"),
    ({"data": digits_on_textures(n=90, image_size=24, random_state=1)}, "content of the images"),
])
def test_other_settings_are_refused_by_name(data, settings, text, tmp_path):
    fit(data, folder=tmp_path, steps=24)
    with pytest.raises(ValueError, match=text): fit(**{"data": data, "folder": tmp_path} | settings)


def test_refreshed_clusters_survive(data, tmp_path):
    clusterer = BackgroundClusterer(3, encoder="pixels", progress=False).fit(data)

    def run(*callbacks, **settings):
        refresh = RefreshClusters(clusterer, start=0.2)
        return fit(data, callbacks=[refresh, *callbacks], **settings), refresh

    with pytest.warns(UserWarning, match="stopped after 15 of 24 steps"): run(Break(15), folder=tmp_path)
    (resumed, a), (whole, b) = run(folder=tmp_path), run()
    assert same(resumed, whole) and a.changed == b.changed and len(a.changed) >= 2 and any(a.changed)


def test_newest_checkpoint_damaged_the_one_before_is_taken(data, tmp_path):
    with pytest.warns(UserWarning, match="stopped"): fit(data, folder=tmp_path, callbacks=[Break(9)], save_every=2)
    newest = _Checkpoints(tmp_path).paths[0]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="is damaged.*the one before is taken"): resumed = fit(data, folder=tmp_path)
    assert same(resumed, fit(data))


# out of numbers, memory, disk, devices

class Spoiled(Segmenter):
    "Its loss is no number where image 17 is in the batch."
    def losses(self, batch, shared=None, own=None):
        found = super().losses(batch, shared, own)
        if not (batch["index_objects"] == 17).any(): return found
        return {name: value * torch.nan for name, value in found.items()}


def test_a_loss_that_is_no_number_is_named(data, tmp_path):
    assert data.presence[17]
    said = (
        r"batch \d+: mosaic is nan.* Images of it: objects .*; backgrounds .*"
        r"The last good checkpoint is .*step-"
    )
    with pytest.raises(NotFinite, match=said): fit(data, make(Spoiled), folder=tmp_path, steps=200, save_every=1)


def test_batches_that_are_no_number_are_skipped(data):
    segmenter = make(Spoiled)
    with pytest.warns(UserWarning, match="batches were skipped"): fit(data, segmenter, on_bad="skip", steps=100)
    assert 0 < segmenter.skipped < 50 and all(value.isfinite().all() for value in segmenter.state_dict().values())


class Large(Segmenter):
    "More than five images don't fit."
    def losses(self, batch, shared=None, own=None):
        if len(batch["images"]) > 5: raise torch.OutOfMemoryError("out of memory")
        return super().losses(batch, shared, own)


def test_out_of_memory_says_what_fits(data):
    "The error itself is simulated, as there may be no GPU; which part fits is found by running it."
    said = (
        r"batch 0 \(9 images, 9 backgrounds, 30 real\) doesn't fit into the memory of cpu; "
        r"3 images, 3 backgrounds, 15 real do, 0.5 of each"
    )
    with pytest.raises(OutOfMemory, match=said): fit(data, make(Large))


@pytest.fixture
def small_disk(tmp_path):
    "A function that makes a disk of some bytes."
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        if subprocess.run(command, capture_output=True).returncode: pytest.skip("mounting is not allowed here")
        return disk

    if os.geteuid() or not shutil.which("mount"): pytest.skip("a small disk can only be mounted by root")
    yield mount
    subprocess.run(["umount", disk], check=True)


@pytest.mark.posix
def test_a_full_disk_leaves_the_checkpoint_before(data, tmp_path, small_disk):
    fit(data, make(base_width=8), folder=tmp_path / "enough", save_every=2)
    disk = small_disk(int(2.5 * _Checkpoints(tmp_path / "enough").paths[0].stat().st_size))
    full = "the disk is full: step-.* needs .* MB and .* MB are free"
    with pytest.raises(OSError, match=full): fit(data, make(base_width=8), folder=disk, save_every=2)
    assert read_checkpoint(_Checkpoints(disk).latest())["global_step"] == 4 and len(list(disk.iterdir())) == 2
    _Checkpoints(disk).paths[1].unlink()  # space is made
    shutil.copy(_Checkpoints(disk).latest(), tmp_path)
    assert same(fit(data, make(base_width=8), folder=tmp_path), fit(data, make(base_width=8)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(data):
    with pytest.raises(ValueError, match="Lightning cannot train with .*accelerator='gpu'"): fit(data, accelerator="gpu")
