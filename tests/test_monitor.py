"""TrainingMonitor on real training, without a browser."""
import copy
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
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.widgets.monitor import Frame, History, TrainingMonitor
from bgcs.widgets.shared import picture_png

DATA, WATCHED = digits_on_textures("train", n=150), digits_on_textures("test", n=4).objects
QUICK = {"steps": 30, "rounds": 3, "batches": Batches(per_cluster=2, n_real=8), "held_out": None}
ENDLESS = 10_000_000  # steps
PATIENCE = 900  # seconds, which only a hang takes


class At(L.Callback):
    "Does something when so many steps are done, before the next one; counts steps."
    def __init__(self, step, do): self.step, self.do, self.done = step, do, 0

    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step == self.step: self.do(module.model)

    def on_train_batch_end(self, trainer, *args): self.done = trainer.global_step


def nothing(segmenter): pass


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


def until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unwatched(): return weights(fit(small(), held_out=0.2))


def press(monitor, do, **more): monitor.view._handle_custom_msg({"do": do, "id": 1, **more}, [])


def test_weights_are_the_same_watched_or_not_in_a_thread_or_not_paused_or_not(unwatched):
    assert alike(unwatched, weights(fit(small(), TrainingMonitor(WATCHED, every=0.001, share=0.9), held_out=0.2)))
    monitor = TrainingMonitor(every=0.001, share=0.9)
    behind(monitor, held_out=0.2, callbacks=[At(5, lambda segmenter: press(monitor, "pause"))])
    until(lambda: monitor.phase == "paused")
    press(monitor, "snapshot")
    until(lambda: any(frame.kind == "snapshot" for frame in monitor.frames))
    torch.rand(5)  # what others draw meanwhile is nothing to training
    time.sleep(0.3)
    assert monitor.step == 6 and "Paused" in monitor.view.state["title"]
    press(monitor, "resume")
    assert alike(unwatched, weights(monitor.wait())) and monitor.phase == "finished"
    assert [frame.kind for frame in monitor.frames].count("round") == 3 and monitor.view.value == 30


@pytest.mark.parametrize("paused", [False, True])
def test_stop_ends_training_after_the_step_and_paused_training_too(paused):
    monitor = TrainingMonitor(WATCHED)
    behind(monitor, steps=ENDLESS, callbacks=[At(3, lambda segmenter: press(monitor, "pause" if paused else "stop"))])
    if paused:
        until(lambda: monitor.phase == "paused")
        press(monitor, "stop")
    with pytest.warns(UserWarning, match="Training was stopped"): segmenter = monitor.wait(PATIENCE)
    assert monitor.phase == "stopped" and monitor.step == 4 and monitor.frames[-1].kind == "stop"
    assert segmenter is monitor.result_ and segmenter.predict(DATA.images[:2]).shape == (2, 1, 32, 32)
    with pytest.raises(ValueError, match="no training is under way"): monitor.stop()


def test_a_stopped_training_goes_on_with_its_history(tmp_path, unwatched):
    def train(*callbacks):
        monitor = TrainingMonitor(WATCHED, folder=tmp_path / "history")
        return monitor, fit(small(), monitor, *callbacks, folder=tmp_path / "checkpoints", save_every=5, held_out=0.2)

    first, _ = train(At(16, lambda segmenter: segmenter.stop()))
    files = ["masks_001.png", "stop_000017.png"]
    assert [frame.file for frame in first.frames] == files and first.history.ended == "stopped"
    second, segmenter = train()
    assert alike(unwatched, weights(segmenter))
    assert [frame.file for frame in second.frames] == [*files, "masks_002.png", "masks_003.png"]
    assert [row["step"] for row in second.history.curves.rows] == list(range(1, 31))
    assert second.history.seconds > first.history.seconds
    finished, _ = train()  # nothing is left to do
    assert len(finished.frames) == 4 and "Nothing was left to train" in finished.view.state["said"]
    assert _Checkpoints(tmp_path / "checkpoints").latest().stat().st_size < 2_000_000
    opened = TrainingMonitor.open(tmp_path / "history")
    assert opened.history == second.history and not list((tmp_path / "history").glob(".*"))


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path):
    "As after a kill: the folder is ahead of the checkpoint."
    monitor = TrainingMonitor(WATCHED, folder=tmp_path / "history")
    fit(small(), monitor, folder=tmp_path / "checkpoints", save_every=0)
    for path in sorted((tmp_path / "checkpoints").glob("step-*"))[1:]: path.unlink()  # that of the second round is left
    again = TrainingMonitor(WATCHED, folder=tmp_path / "history")
    fit(small(), again, folder=tmp_path / "checkpoints", save_every=0)
    assert [frame.file for frame in again.frames] == ["masks_001.png", "masks_002.png", "masks_003.png"]
    for frame, other in zip(again.frames, monitor.frames):
        assert (frame.step, frame.picture, frame.criteria) == (other.step, other.picture, other.criteria)
    assert len(again.history.curves.rows) == 30


def test_the_folder_of_another_training_is_refused_and_kept(tmp_path):
    fit(small(), TrainingMonitor(WATCHED, folder=tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other, changes in ((small(random_state=1), {}), (small(), {"steps": 20}), (small(lr=0.1), {})):
        monitor, count = TrainingMonitor(WATCHED, folder=tmp_path), At(0, nothing)
        message = "holds the history of another training .*(random_state|steps|lr): .* there, .* now.*another folder"
        with pytest.raises(ValueError, match=message): fit(other, monitor, count, **changes)
        assert count.done == 0 and monitor.phase == "failed"
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
        changes = QUICK | {"steps": 4, "rounds": 2}
        Segmenter(channels, base_width=4, depth=1).fit(data, clusters, callbacks=[monitor], progress=False, **changes)
    assert len(monitor.frames) == 2 and monitor.frames[0].criteria == {}
    other, count = Segmenter(channels + 1, base_width=4, depth=1), At(0, nothing)
    more = from_arrays(*torch.rand(2, 20, channels + 1, 16, 16))
    message = f"have {channels} channels; this segmenter takes {channels + 1}"
    with pytest.raises(ValueError, match=message): TrainingMonitor(data.objects).fit(other, data, clusters)
    with pytest.raises(ValueError, match=message):
        other.fit(more, clusters, held_out=None, callbacks=[TrainingMonitor(data.objects), count], progress=False)
    assert count.done == 0


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="n=0"): TrainingMonitor(n=0)
    with pytest.raises(ValueError, match="no images to watch"): TrainingMonitor(WATCHED[:0])
    with pytest.raises(ValueError, match="share=2"): TrainingMonitor(share=2)
    with pytest.raises(TypeError, match="training of a Segmenter or another Method; this is a str"): TrainingMonitor().fit("net", DATA)
    with pytest.raises(ValueError, match="trains in one process"): behind(TrainingMonitor(), devices=2)
    with pytest.raises(FileNotFoundError, match="holds no history of training"): TrainingMonitor.open(tmp_path)
    with pytest.raises(ValueError, match="no round has ended yet"): TrainingMonitor().plot_history()
    with pytest.raises(ValueError, match="the first comes at the end of a round"): TrainingMonitor().turn(0)
    busy = behind(TrainingMonitor(WATCHED), steps=ENDLESS)
    with pytest.raises(ValueError, match="still under way"): behind(busy)
    with pytest.raises(TimeoutError, match="still under way after 0.01 s"): busy.wait(0.01)
    busy.stop()
    with pytest.warns(UserWarning, match="Training was stopped"): busy.wait(PATIENCE)


class Striped(Segmenter):
    "Its network gives the same stripes for every image, as one does that has collapsed."
    def forward(self, images):
        across = (torch.arange(images.shape[3]) // 4 % 2).float()
        return across.expand(len(images), 1, *images.shape[2:]) + 0 * super().forward(images)


def test_the_verdict_is_shown_when_training_is_over_and_another_day(tmp_path):
    monitor, during = TrainingMonitor(WATCHED, folder=tmp_path), []
    look = At(25, lambda segmenter: during.append(monitor.view.state.get("verdict")))
    segmenter = fit(Striped(base_width=4, depth=2), monitor, look, held_out=0.2)
    shown = monitor.view.state["verdict"]
    assert during == [None] and shown == segmenter.verdict_.to_dict()
    assert shown["word"] == "failed" and "same in every image" in shown["reasons"][0]
    assert TrainingMonitor.open(tmp_path).view.state["verdict"] == shown
    monitor = TrainingMonitor(WATCHED, folder=tmp_path / "another")
    fit(small(), monitor)  # nothing is held out
    unknown = {"word": "not judged", "reasons": ["no images were held out"]}
    assert monitor.view.state["verdict"] == unknown == TrainingMonitor.open(tmp_path / "another").view.state["verdict"]


def test_a_stop_ends_with_a_verdict_and_an_error_with_none():
    monitor = behind(TrainingMonitor(WATCHED), held_out=0.2, callbacks=[At(12, lambda segmenter: segmenter.stop())])
    with pytest.warns(UserWarning, match="Training was stopped"): segmenter = monitor.wait()
    assert monitor.phase == "stopped" and monitor.view.state["verdict"] == segmenter.verdict_.to_dict()

    def trip(segmenter): raise RuntimeError("a wire came loose")

    behind(monitor, held_out=0.2, callbacks=[At(3, trip)])
    with pytest.raises(RuntimeError): monitor.wait()
    assert monitor.view.state.get("verdict") is None


BLACK = picture_png([[torch.zeros(1, 3, 3)]])


def written(folder):
    "A history in a folder, and what its file says."
    frames = [Frame("round", 1, 50, BLACK, {"score": 0.4}, 0.31), Frame("snapshot", 2, 60, BLACK)]
    history = History({"images": 3}, frames)
    history.curves.add(1, {"loss": 0.5})
    history.curves.width = 2
    history.curves.add(2, {"loss": 0.3})
    for frame in frames: history.save(folder, frame)
    return history, (folder / "history.json").read_text()


@pytest.mark.parametrize("change", [
    lambda text: "",
    lambda text: text[:200],
    lambda text: "[]",
    lambda text: "{}",
    lambda text: text.replace("TrainingMonitor/2", "TrainingMonitor/3"),
    lambda text: text.replace('"kind": "round"', '"kind": "../../round"'),
    lambda text: text.replace('"step": 50', '"step": "x"'),
    lambda text: text.replace('"terms"', '"other"'),
    lambda text: text.replace('"verdict": null', '"verdict": {"word": "splendid", "reasons": []}'),
    lambda text: text.replace('"verdict": null', '"verdict": "failed"'),
])
def test_a_history_cut_off_or_forged_is_refused(tmp_path, change):
    _, text = written(tmp_path)
    assert change(text) != text
    (tmp_path / "history.json").write_text(change(text))
    with pytest.raises(ValueError, match="not a history of training .*another folder"): History.load(tmp_path)


def test_a_history_whose_pictures_are_gone_is_read_with_a_warning(tmp_path):
    written(tmp_path)
    (tmp_path / "snapshot_000060.png").unlink()
    with pytest.warns(UserWarning, match="1 of 2 pictures .* are gone, such as snapshot_000060.png"):
        assert len(History.load(tmp_path).frames) == 1


def test_a_history_of_the_first_format_in_which_rounds_were_called_epochs_is_read(tmp_path):
    history, text = written(tmp_path)
    for now, then in (("Monitor/2", "Monitor/1"), ('"kind": "round"', '"kind": "epoch"'), ('"round": ', '"epoch": ')):
        assert now in text
        text = text.replace(now, then)
    (tmp_path / "history.json").write_text(text)
    assert History.load(tmp_path) == history
    (tmp_path / "history.json").write_text(text.replace('"kind": "epoch"', '"kind": "../../epoch"'))
    with pytest.raises(ValueError, match="not a history of training"): History.load(tmp_path)


def test_in_another_process_there_is_no_view():
    monitor = TrainingMonitor(WATCHED)
    monitor.history, monitor.phase = History({}, [Frame("round", 1, 10, BLACK)]), "running"
    other = copy.deepcopy(monitor)
    other._tell(frames=True)
    other.stop()
    assert other.view is None and len(other.frames) == 1 and not monitor._flags.stopping.is_set()


def test_a_run_folder_opens_too(tmp_path):
    monitor = TrainingMonitor(folder=tmp_path / "figures" / "training")
    fit(small(), monitor)
    opened = TrainingMonitor.open(tmp_path)
    assert opened.view.marks == monitor.view.marks and opened.plot_history() and opened.plot_losses()
    assert "30 of 30 steps" in opened.view.state["title"]


def test_training_goes_on_where_the_folder_cannot_be_written(tmp_path):
    monitor = TrainingMonitor(WATCHED, folder=tmp_path / "there")
    (tmp_path / "there").write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="not written any more"): segmenter = behind(monitor).wait()
    assert segmenter.threshold_ and len(monitor.frames) == 3


def test_a_snapshot_keeps_the_model(tmp_path):
    monitor = TrainingMonitor(WATCHED, folder=tmp_path)
    masks = []

    def look(segmenter):
        masks.append(segmenter.predict(WATCHED))
        segmenter.train()

    fit(small(), At(6, lambda segmenter: monitor.snapshot()), At(7, look), monitor)
    assert torch.equal(Segmenter.load(tmp_path / "snapshot_000007").predict(WATCHED), masks[0])
    assert (tmp_path / "snapshot_000007.png").is_file()


@pytest.mark.posix
def test_an_interrupt_of_wait_ends_training_with_a_usable_segmenter(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"""
from bgcs.data.datasets import digits_on_textures
from bgcs.widgets.monitor import TrainingMonitor
from bgcs.masks.segment import Segmenter
import os, signal, threading, time
data = digits_on_textures(n=60)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
monitor = TrainingMonitor()
monitor.fit(Segmenter(base_width=4, depth=1), data, data.background_class, steps={ENDLESS})
def later():
    while monitor.step < 3: time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=later).start()
print(monitor.phase, "masks", tuple(monitor.wait().predict(data.objects[:3]).shape), monitor.phase)
""")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 0 and "masks (3, 1, 32, 32) stopped" in run.stdout, run.stderr


def test_two_processes_leave_their_history_in_the_folder(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"""
from bgcs.data.datasets import digits_on_textures
from bgcs.widgets.monitor import TrainingMonitor
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
if __name__ == "__main__":
    data = digits_on_textures(n=60)
    monitor = TrainingMonitor(folder={str(tmp_path / 'history')!r})
    two = dict(devices=2, accelerator="cpu", strategy="ddp_spawn")
    quick = dict(steps=6, rounds=2, batches=Batches(per_cluster=2, n_real=8))
    Segmenter(base_width=4, depth=1).fit(data, data.background_class, callbacks=[monitor], progress=False, **quick, **two)
    print("frames", len(monitor.frames), monitor.phase)
""")
    together = for_two_processes()
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE, env=together)
    assert run.returncode == 0 and "frames 2" in run.stdout, run.stderr[-3000:]
    assert json.loads((tmp_path / "history" / "history.json").read_text())["done"] == 6


@pytest.mark.slow
def test_watching_costs_less_than_a_twentieth():
    "The same training with and without, in turn; the least of each."
    data = digits_on_textures("train", n=400, image_size=48)
    watched = digits_on_textures("test", n=10, image_size=48).objects
    quick = QUICK | {"steps": 120, "batches": Batches(per_cluster=6, n_real=32)}
    seconds = {"with": [], "without": []}
    for _ in range(3):
        for way, found in seconds.items():
            callbacks = [TrainingMonitor(watched)] if way == "with" else []
            began = time.process_time()  # of all threads: other work on the machine doesn't count
            segmenter = Segmenter(base_width=8, depth=3)
            segmenter.fit(data, data.background_class, progress=False, callbacks=callbacks, **quick)
            found.append(time.process_time() - began)
    print(seconds)
    assert min(seconds["with"]) < 1.05 * min(seconds["without"])
