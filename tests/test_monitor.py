"""TrainingMonitor on real training, without a browser."""
import json
import subprocess
import sys
import time
import warnings

import lightning as L
import pytest
import torch
from conftest import for_two_processes

from bgcs.training.checkpoints import _Checkpoints
from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import from_arrays
from bgcs.widgets.monitor import HISTORY, History, TrainingMonitor
from bgcs.masks.segment import Segmenter

DATA, WATCHED = digits_on_textures("train", n=150), digits_on_textures("test", n=4).objects
QUICK = {"steps": 30, "epochs": 3, "per_cluster": 2, "n_real": 8, "held_out": None}


def small(**settings): return Segmenter(base_width=4, depth=2, **settings)


def fit(segmenter, *callbacks, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return segmenter.fit(DATA, DATA.background_class, progress=False, callbacks=callbacks, **QUICK | changes)


def behind(monitor, segmenter=None, **changes):
    monitor.fit(segmenter or small(), DATA, DATA.background_class, **QUICK | changes)
    return monitor


def weights(segmenter): return {name: value.clone() for name, value in segmenter.state_dict().items()}


def alike(a, b): return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def until(true, seconds=60):
    for _ in range(seconds * 50):
        if true(): return
        time.sleep(0.02)
    raise AssertionError("in vain")


@pytest.fixture(scope="module")
def unwatched(): return weights(fit(small(), held_out=0.2))


def press(monitor, do, **more): monitor.view._handle_custom_msg({"do": do, "id": 1, **more}, [])


def test_weights_are_the_same_watched_or_not_in_a_thread_or_not_paused_or_not(unwatched):
    assert alike(unwatched, weights(fit(small(), TrainingMonitor(WATCHED, every=0.001, share=0.9), held_out=0.2)))
    monitor = behind(TrainingMonitor(every=0.001, share=0.9), held_out=0.2)
    until(lambda: monitor.phase == "running" and monitor.step >= 5)
    press(monitor, "pause")
    until(lambda: monitor.phase == "paused")
    press(monitor, "snapshot")
    until(lambda: any(frame.kind == "snapshot" for frame in monitor.frames))
    before, _ = monitor.step, torch.rand(5)  # what others draw meanwhile is nothing to training
    time.sleep(0.3)
    assert monitor.step == before < 30 and "Paused" in monitor.view.state["title"]
    press(monitor, "resume")
    assert alike(unwatched, weights(monitor.wait())) and monitor.phase == "finished"
    assert [frame.kind for frame in monitor.frames].count("epoch") == 3 and monitor.view.value == 30


def test_stop_ends_training_after_the_step_and_paused_training_too():
    for paused in (False, True):
        monitor = behind(TrainingMonitor(WATCHED), steps=100_000)
        until(lambda: monitor.step >= 3)
        if paused:
            monitor.pause()
            until(lambda: monitor.phase == "paused")
        step = monitor.step
        press(monitor, "stop")
        with pytest.warns(UserWarning, match="Training was stopped"): segmenter = monitor.wait(60)
        assert monitor.phase == "stopped" and monitor.step < step + 10 and monitor.frames[-1].kind == "stop"
        assert segmenter is monitor.result_ and segmenter.predict(DATA.images[:2]).shape == (2, 1, 32, 32)
        with pytest.raises(ValueError, match="no training is under way"): monitor.stop()


def test_a_stopped_training_goes_on_with_its_history(tmp_path, unwatched):
    class StopAt(L.Callback):
        def on_train_batch_end(self, trainer, segmenter, *args): trainer.global_step == 17 and segmenter.stop()
    first = TrainingMonitor(WATCHED, folder=tmp_path / "history")
    fit(small(), first, StopAt(), folder=tmp_path / "checkpoints", save_every=5, held_out=0.2)
    assert [frame.file for frame in first.frames] == ["masks_001.png", "stop_000017.png"] and first.history.ended == "stopped"
    second = TrainingMonitor(WATCHED, folder=tmp_path / "history")
    assert alike(unwatched, weights(fit(small(), second, folder=tmp_path / "checkpoints", save_every=5, held_out=0.2)))
    assert [frame.file for frame in second.frames] == ["masks_001.png", "stop_000017.png", "masks_002.png", "masks_003.png"]
    assert [row["step"] for row in second.history.curves.rows] == list(range(1, 31)) and second.history.seconds > first.history.seconds
    finished = TrainingMonitor(WATCHED, folder=tmp_path / "history")
    fit(small(), finished, folder=tmp_path / "checkpoints", save_every=5, held_out=0.2)  # nothing is left to do
    assert len(finished.frames) == 4 and "Nothing was left to train" in finished.view.state["said"] and _Checkpoints(tmp_path / "checkpoints").latest().stat().st_size < 2_000_000
    opened = TrainingMonitor.open(tmp_path / "history")
    assert opened.history == second.history and not list((tmp_path / "history").glob(".*"))


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path):
    "As after a kill: the folder is ahead of the checkpoint."
    monitor = TrainingMonitor(WATCHED, folder=tmp_path / "history")
    fit(small(), monitor, folder=tmp_path / "checkpoints", save_every=0)
    for path in sorted((tmp_path / "checkpoints").glob("step-*"))[1:]: path.unlink()  # the second epoch's is left
    again = TrainingMonitor(WATCHED, folder=tmp_path / "history")
    fit(small(), again, folder=tmp_path / "checkpoints", save_every=0)
    assert [frame.file for frame in again.frames] == ["masks_001.png", "masks_002.png", "masks_003.png"]
    assert [(f.step, f.picture, f.criteria) for f in again.frames] == [(f.step, f.picture, f.criteria) for f in monitor.frames]
    assert len(again.history.curves.rows) == 30


def test_the_folder_of_another_training_is_refused_and_kept(tmp_path):
    fit(small(), TrainingMonitor(WATCHED, folder=tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other, changes in ((small(random_state=1), {}), (small(), {"steps": 20}), (small(lr=0.1), {})):
        monitor = TrainingMonitor(WATCHED, folder=tmp_path)
        with pytest.raises(ValueError, match="holds the history of another training .*(random_state|steps|lr): .* there, .* now.*another folder"): fit(other, monitor, **changes)
        assert other.trainer.global_step == 0 and monitor.phase == "failed"
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fit(small(), TrainingMonitor(WATCHED, folder=tmp_path))  # the same training begins anew
    assert History.load(tmp_path).done == 30 and len(History.load(tmp_path).frames) == 3


def test_an_error_in_training_shows_and_is_raised_by_wait():
    class Trip(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4: raise RuntimeError("a wire came loose")
    monitor = behind(TrainingMonitor(WATCHED), callbacks=[Trip()])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a wire came loose"): monitor.wait()
    assert monitor.phase == "failed" and "a wire came loose" in monitor.view.state["said"] and monitor.history.done == 4
    assert behind(monitor).wait().threshold_ and monitor.phase == "finished"  # and it can be used again
    monitor = TrainingMonitor()
    monitor.fit(small(), DATA.objects, DATA.background_class[DATA.presence])
    with pytest.raises(ValueError): monitor.wait()
    assert monitor.phase == "failed" and monitor.view.state["said"].startswith("ValueError: ")


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_images_of_any_channels(channels):
    generator = torch.Generator().manual_seed(0)
    images, clusters = torch.rand(40, channels, 16, 16, generator=generator), torch.arange(40) % 2
    data = from_arrays(images[:20], images[20:])
    monitor = TrainingMonitor(n=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Segmenter(channels, base_width=4, depth=1).fit(data, clusters, steps=4, epochs=2, per_cluster=2, n_real=4, held_out=None, callbacks=[monitor], progress=False)
    assert len(monitor.frames) == 2 and monitor.frames[0].criteria == {}
    other = Segmenter(channels + 1, base_width=4, depth=1)
    for way in (lambda: TrainingMonitor(data.objects).fit(other, data, clusters), lambda: other.fit(from_arrays(torch.rand(20, channels + 1, 16, 16), torch.rand(20, channels + 1, 16, 16)), clusters, held_out=None, callbacks=[TrainingMonitor(data.objects)], progress=False)):
        with pytest.raises(ValueError, match=f"have {channels} channels; this segmenter takes {channels + 1}"): way()
    assert other._trainer is None or other.trainer.global_step == 0


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="n=0"): TrainingMonitor(n=0)
    with pytest.raises(ValueError, match="no images to watch"): TrainingMonitor(WATCHED[:0])
    with pytest.raises(ValueError, match="share=2"): TrainingMonitor(share=2)
    with pytest.raises(TypeError, match="training of a Segmenter; this is a str"): TrainingMonitor().fit("net", DATA, DATA.background_class)
    with pytest.raises(ValueError, match="trains in one process"): behind(TrainingMonitor(), devices=2)
    with pytest.raises(FileNotFoundError, match="holds no history of training"): TrainingMonitor.open(tmp_path)
    with pytest.raises(ValueError, match="no epoch has ended yet"): TrainingMonitor().plot_history()
    with pytest.raises(ValueError, match="first comes with the end of the first epoch"): TrainingMonitor().turn(0)
    busy = behind(TrainingMonitor(WATCHED), steps=100_000)
    with pytest.raises(ValueError, match="still under way"): behind(busy)
    with pytest.raises(TimeoutError, match="still under way after 0.01 s"): busy.wait(0.01)
    busy.stop()
    busy.wait(60)


def test_a_run_folder_opens_too(tmp_path):
    monitor = TrainingMonitor(folder=tmp_path / "figures" / "training")
    fit(small(), monitor)
    opened = TrainingMonitor.open(tmp_path)
    assert [mark["text"] for mark in opened.view.marks] == [mark["text"] for mark in monitor.view.marks] and opened.plot_history() and opened.plot_losses()
    assert "30 of 30 steps" in opened.view.state["title"]


def test_training_goes_on_where_the_folder_cannot_be_written(tmp_path):
    monitor = TrainingMonitor(WATCHED, folder=tmp_path / "there")
    (tmp_path / "there").write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="not written any more"): segmenter = behind(monitor).wait()
    assert segmenter.threshold_ and len(monitor.frames) == 3


def test_a_snapshot_keeps_the_model(tmp_path):
    monitor = TrainingMonitor(WATCHED, folder=tmp_path)
    class Ask(L.Callback):
        def on_train_batch_start(self, trainer, segmenter, batch, batch_idx): trainer.global_step == 6 and monitor.snapshot()
        def on_train_batch_end(self, trainer, segmenter, *args):
            if trainer.global_step == 7: self.masks = segmenter.predict(WATCHED); segmenter.train()
    ask = Ask()
    fit(small(), ask, monitor)
    assert torch.equal(Segmenter.load(tmp_path / "snapshot_000007").predict(WATCHED), ask.masks) and (tmp_path / "snapshot_000007.png").is_file()


def test_an_interrupt_of_wait_ends_training_with_a_usable_segmenter(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("""
from bgcs.data.datasets import digits_on_textures
from bgcs.widgets.monitor import TrainingMonitor
from bgcs.masks.segment import Segmenter
import os, signal, threading, time
data = digits_on_textures(n=60)
monitor = TrainingMonitor()
monitor.fit(Segmenter(base_width=4, depth=1), data, data.background_class, steps=100_000)
def later():
    while monitor.step < 3: time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=later).start()
print(monitor.phase, "masks", tuple(monitor.wait().predict(data.objects[:3]).shape), monitor.phase)
""")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "masks (3, 1, 32, 32) stopped" in run.stdout, run.stderr


def test_two_processes_leave_their_history_in_the_folder(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"""
from bgcs.data.datasets import digits_on_textures
from bgcs.widgets.monitor import TrainingMonitor
from bgcs.masks.segment import Segmenter
if __name__ == "__main__":
    data = digits_on_textures(n=60)
    monitor = TrainingMonitor(folder={str(tmp_path / 'history')!r})
    Segmenter(base_width=4, depth=1).fit(data, data.background_class, steps=6, epochs=2, per_cluster=2, n_real=8, callbacks=[monitor], progress=False, devices=2, accelerator="cpu", strategy="ddp_spawn")
    print("frames", len(monitor.frames), monitor.phase)
""")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=170, env=for_two_processes())
    assert run.returncode == 0 and "frames 2" in run.stdout, run.stderr[-3000:]
    assert json.loads((tmp_path / "history" / HISTORY).read_text())["done"] == 6


@pytest.mark.slow
def test_watching_costs_less_than_a_twentieth():
    "The same training with and without, in turn, on steps of 50 ms or more; the least of each."
    data, watched = digits_on_textures("train", n=400, image_size=48), digits_on_textures("test", n=10, image_size=48).objects
    seconds = {"with": [], "without": []}
    for _ in range(3):
        for way in seconds:
            began = time.process_time()  # of all threads: other work on the machine doesn't count
            Segmenter(base_width=8, depth=3).fit(data, data.background_class, steps=120, epochs=3, per_cluster=6, n_real=32, held_out=None, progress=False, callbacks=[TrainingMonitor(watched)] if way == "with" else [])
            seconds[way].append(time.process_time() - began)
    print(seconds)
    assert min(seconds["without"]) / 120 > 0.05 and min(seconds["with"]) < 1.05 * min(seconds["without"])
