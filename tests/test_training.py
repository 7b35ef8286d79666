"""Training of any length ends well, keeps the best it had, and begins each phase with it."""
import subprocess
import sys
import warnings
from types import SimpleNamespace

import lightning as L
import pandas as pd
import pytest
import torch

import bgcs.masks.method
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.criteria import _verdict, criteria, hold_out
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.objective.terms import Objective

SMALL = {"batches": Batches(per_cluster=2, n_real=4), "accelerator": "cpu", "progress": False}


def make(cls=Segmenter, base_width=4, **objective):
    return cls(base_width=base_width, depth=1, objective=Objective(**objective))


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 20])
def test_any_number_of_steps(steps):
    data = digits_on_textures(n=12)
    segmenter = make().fit(data, torch.arange(24) % 2, steps, rounds=2, held_out=None, **SMALL)
    assert torch.isfinite(segmenter.predict(data)).all()
    assert segmenter.threshold_ == 0.5 and not segmenter.history_


class Watch(L.Callback):
    "What the segmenter was after each round."
    def __init__(self): self.weights, self.terms = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx): self.terms.append(set(outputs) - {"loss"})

    def on_train_epoch_end(self, trainer, module):
        averaged = module.model.averaged.module.state_dict()
        self.weights.append({name: value.clone() for name, value in averaged.items()})


def same(a, b): return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def data(): return digits_on_textures(n=90)


def test_the_best_round_is_kept_and_judged_as_criteria_do(data):
    aside = digits_on_textures("val", n=60)
    watch, held_out = Watch(), hold_out(aside, aside.background_class, 60)
    settings = {"steps": 12, "rounds": 4, "held_out": held_out, "callbacks": [watch]} | SMALL
    segmenter = make().fit(data, data.background_class, **settings)
    assert [at["step"] for at in segmenter.history_] == [3, 6, 9, 12]
    scores = [at["score"] for at in segmenter.history_]
    best = max(i for i in range(4) if scores[i] >= 0.95 * max(scores))
    for net in (segmenter.averaged.module, segmenter.net): assert same(net.state_dict(), watch.weights[best])
    assert criteria(segmenter, held_out, names=("score",))["score"] == pytest.approx(scores[best])
    assert 0.2 <= segmenter.threshold_ <= 0.9


class Striped(Segmenter):
    "Its network gives the same stripes for every image, as one does that has collapsed."
    def forward(self, images):
        across = (torch.arange(images.shape[3]) // 4 % 2).float()
        return across.expand(len(images), 1, *images.shape[2:]) + 0 * super().forward(images)


class Told(L.Callback):
    "Is told of the verdict when all is learnt."
    def __init__(self): self.verdicts = []

    def on_judged(self, segmenter): self.verdicts.append(segmenter.verdict_)


def test_the_same_mask_in_every_image_has_failed(data, tmp_path):
    told, settings = Told(), {"steps": 4, "rounds": 2, "held_out": 0.3} | SMALL
    segmenter = make(Striped).fit(data, data.background_class, callbacks=[told, Watch()], **settings)
    assert segmenter.verdict_.word == "failed" and told.verdicts == [segmenter.verdict_]
    assert "same in every image" in segmenter.verdict_.reasons[0]
    second = str(segmenter).splitlines()[1]
    assert second.startswith("  verdict  failed: masks are the same in every image whatever it shows: ")
    loaded = Segmenter.load(segmenter.save(tmp_path))
    assert loaded.verdict_ == segmenter.verdict_ and str(loaded).splitlines()[1] == second


def test_what_was_not_held_out_is_not_judged(data, tmp_path):
    told = Told()
    segmenter = make().fit(data, data.background_class, 2, held_out=None, callbacks=[told], **SMALL)
    loaded = Segmenter.load(segmenter.save(tmp_path))
    assert segmenter.verdict_ is None and loaded.verdict_ is None and told.verdicts == [None]
    assert "  verdict  not judged: no images were held out\n" in str(loaded) and make().verdict_ is None
    loaded.card_ = {name: value for name, value in loaded.card_.items() if name != "verdict"}  # of an earlier version
    assert loaded.verdict_ is None and "verdict" not in str(loaded)


def test_the_verdict_is_on_the_model_that_is_kept(data):
    aside = digits_on_textures("val", n=60)
    held_out = hold_out(aside, aside.background_class, 60)
    segmenter = make().fit(data, data.background_class, 8, rounds=2, held_out=held_out, **SMALL)
    assert segmenter.verdict_ == _verdict(criteria(segmenter, held_out, segmenter.threshold_))


def as_bytes(images): return {image.numpy().tobytes() for image in images}


class Images(L.Callback):
    "All images that were trained on."
    def __init__(self): self.seen = set()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for name in ("images", "backgrounds", "real"): self.seen |= as_bytes(batch[name])


def test_images_held_out_are_not_trained_on(data):
    images = Images()
    settings = {"steps": 60, "rounds": 1, "held_out": 0.4, "callbacks": [images]} | SMALL
    segmenter = make().fit(data, data.background_class, **settings)
    aside = bgcs.masks.method.held_out_images(data, 0.4, 0)
    kept, away = as_bytes(data.images[~aside]), as_bytes(data.images[aside])
    assert segmenter.history_ and images.seen <= kept and not images.seen & away
    assert len(images.seen) > 0.9 * len(kept)


OPENING, COMPOSITES = {"mosaic", "anomaly"}, {"background", "divergence", "recomposition"}


@pytest.mark.parametrize("objective, expected", [
    ({}, [OPENING] * 3 + [COMPOSITES | OPENING] * 7),
    ({"opening": 0.0}, [COMPOSITES | OPENING] * 10),
    ({"opening_weight": 0.0}, [OPENING] * 3 + [COMPOSITES] * 7),
    ({"opening": 0.0, "opening_weight": 0.0}, [COMPOSITES] * 10),
    ({"opening": 1.0}, [OPENING] * 10),
    ({"anomaly_weight": 0.0}, [{"mosaic"}] * 3 + [COMPOSITES | {"mosaic"}] * 7),
    ({"recomposition_weight": 0.0, "opening": 0.1}, [OPENING] + [(COMPOSITES | OPENING) - {"recomposition"}] * 9),
])
def test_terms_by_phase(data, objective, expected):
    watch = Watch()
    settings = {"steps": 10, "rounds": 2, "held_out": None, "callbacks": [watch]} | SMALL
    make(**objective).fit(data, data.background_class, **settings)
    assert watch.terms == expected


def test_judging_has_no_part_in_training(data, monkeypatch):
    "Scores are dictated; the last round about as good as the best is kept, and training goes the same way whatever they are."
    def choosing(scores):
        left = iter(scores)

        def choose(*args, **kw):
            score = next(left)
            return SimpleNamespace(threshold=score, table=pd.DataFrame({"score": {score: score}}))

        return choose

    found = {}
    for scores in ((0.5, 0.4, 0.49, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)):
        monkeypatch.setattr(bgcs.masks.method, "choose_threshold", choosing(scores))
        watch = Watch()
        settings = {"steps": 12, "rounds": 6, "held_out": 0.3, "callbacks": [watch]} | SMALL
        segmenter = make(opening=0.5).fit(data, data.background_class, **settings)
        assert [at["phase"] for at in segmenter.history_] == ["opening"] * 3 + ["composites"] * 3
        found[scores] = watch.weights, segmenter.threshold_, segmenter.averaged.module.state_dict()
    (one, kept, weights), (other, last, _) = found.values()
    assert (kept, last) == (0.49, 0.6) and same(weights, one[2])
    for a, b in zip(one, other): assert same(a, b)


def test_too_few_to_hold_out_is_said_and_training_goes_on():
    data, clusters = digits_on_textures(n=12), torch.arange(24) % 2
    with pytest.warns(UserWarning, match="sets too little aside"): segmenter = make().fit(data, clusters, 2, **SMALL)
    title = segmenter.plot_history().axes[0].get_title()
    assert not segmenter.history_ and "no round was judged" in title
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make().fit(data, clusters, 2, held_out=None, **SMALL)


FEW = digits_on_textures("val", n=8)


@pytest.mark.parametrize("held_out, text", [
    (hold_out(FEW, torch.arange(16) % 2), "judging needs 5"),
    (1.5, "share=1.5"),
])
def test_bad_settings_are_refused_before_training(data, held_out, text):
    with pytest.raises(ValueError, match=text):
        make().fit(data, data.background_class, 2, held_out=held_out, **SMALL)


def test_lower_precision(data):
    "The network alone runs in bfloat16; the objective stays in float32, and masks come out much the same."
    kinds = []

    class Kinds(Segmenter):
        def _logits(self, images):
            kinds.append((images.dtype, self._precision))
            return super()._logits(images)

    few = {"steps": 20, "rounds": 2, "held_out": None} | SMALL
    plain, lower = (make(Kinds, 8).fit(data, data.background_class, **few, precision=precision)
                    for precision in ("32-true", "bf16-mixed"))
    assert set(kinds) == {(torch.float32, None), (torch.float32, torch.bfloat16)}
    assert all(p.dtype == torch.float32 for p in lower.parameters())
    difference = (plain.predict(data.objects) - lower.predict(data.objects)).abs()
    assert 0 < difference.mean() < 0.05


@pytest.mark.slow
def test_compiled(data):
    few = {"steps": 6, "rounds": 2, "held_out": None} | SMALL
    plain, compiled = (make(base_width=8).fit(data, data.background_class, **few, compile=choice)
                       for choice in (False, True))
    assert (plain.predict(data.objects) - compiled.predict(data.objects)).abs().max() < 0.01
    assert compiled._compiled is None


PAGES = """
import torch
from pathlib import Path
from bgcs.training.learner import kept_memory

def faults(): return int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[7])

def pages(n=6):
    torch.ones(2**24)
    before = faults()
    for _ in range(n): torch.ones(2**24)
    return faults() - before

def resident(): return int(Path("/proc/self/statm").read_text().split()[1])

usual = pages()
with kept_memory():
    with kept_memory(): pages()  # the heap grows to its size
    kept, held = pages(), resident()
print(usual, kept, held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted as Linux counts them")
def test_memory_stays_while_it_is_kept():
    "In a process of its own, whose heap nothing else has used."
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    usual, kept, given_back = map(int, done.stdout.split())
    if usual < 1000: pytest.skip("this C library keeps memory anyway")
    assert kept * 4 < usual and given_back > 8000, (usual, kept, given_back)  # pages; one tensor has 16,384
