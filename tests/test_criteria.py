"""Criteria without masks: properties, degenerate models, bad input."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgcs.data.images import ImageSet
from bgcs.masks.criteria import (FOLDS, _agreement, _false_positive_area, _held_out_divergence, _last_best, _paste_consistency, _removal_residual,
                                 _seam_features, _separation, _two_sample_auc, choose_threshold, compare, criteria, hold_out, judged_clusters,
                                 mask_iou, plot_comparison, predict_masks, rank_agreement)
from bgcs.masks.witness import Witness
from bgcs.objective.blend import harden, random_blobs

some = settings(deadline=None, derandomize=True, max_examples=25)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def striped(n=36, c=1, side=16, seed=0):
    "Bright squares on backgrounds with stripes across (cluster 0) or down (cluster 1)."
    rng, k = generator(seed), torch.arange(2 * n) % 2
    stripes = 0.25 + 0.15 * torch.sin(torch.arange(side) * 1.5).expand(2 * n, side, side)
    images = torch.where((k == 0)[:, None, None], stripes, stripes.mT)[:, None] + 0.05 * torch.rand(2 * n, 1, side, side, generator=rng)
    masks = torch.zeros(2 * n, 1, side, side, dtype=torch.bool)
    for mask, (top, left) in zip(masks[:n], torch.randint(side - 6, (n, 2), generator=rng).tolist()): mask[0, top:top + 6, left:left + 6] = True
    images[masks] = 0.9
    return ImageSet(images.expand(-1, c, -1, -1), torch.arange(2 * n) < n, masks=masks), k


def bright(images): return (images.mean(1, keepdim=True) > 0.8).float()
def nothing(images): return torch.zeros_like(images[:, :1])
def whole(images): return bright(images).amax((1, 2, 3), keepdim=True).expand(-1, 1, *images.shape[2:])


class Segmenter:
    def predict(self, images): return bright(images)


@pytest.mark.parametrize("c", [1, 2, 3])
def test_the_right_mask_wins(c):
    table = compare({"whole": whole, "right": Segmenter(), "nothing": nothing}, *striped(c=c), n=36, progress=False)
    assert table.index[0] == "right" and table.score["nothing"] == 0 and table.score["whole"] < table.score["right"] - 0.2
    assert table.loc["right", ["paste_iou", "swap_iou", "shift_iou", "flip_iou", "separation"]].min() > 0.95 and table.loc["right", ["false_positive_area", "removal_residual"]].max() == 0
    assert table["two_sample_auc"].between(0, 1).all() and plot_comparison(table).axes


def test_masks_are_never_looked_at():
    data, clusters = striped()
    nonsense = ImageSet(data.images, data.presence, masks=~data.masks, background_class=1 - clusters)
    first, second = (compare({"right": bright}, d, clusters, n=20, progress=False) for d in (data, nonsense))
    pd.testing.assert_frame_equal(first, second)


def test_results_depend_on_the_seed_alone():
    data, clusters = striped()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.manual_seed(1)
    first = criteria(bright, hold_out(data, clusters, 20))
    torch.manual_seed(2)
    assert criteria(bright, hold_out(data, clusters, 20)) == first
    assert criteria(bright, hold_out(data, clusters, 20, random_state=1)) != first
    torch.set_rng_state(before[0])
    compare({"right": bright}, data, clusters, n=20, threshold="auto", progress=False)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@some
@given(st.integers(1, 5), st.integers(3, 12), st.integers(3, 12), st.integers(0, 10_000))
def test_iou_of_hard_masks_counts_pixels(n, h, w, seed):
    a, b = (random_blobs(n, (h, w), share, 3, generator(seed + i)) for i, share in enumerate((0.4, 0.6)))
    iou = mask_iou(a, b)
    for one, first, second in zip(iou, a.bool(), b.bool()):
        assert one == pytest.approx(float((first & second).sum() / (first | second).sum()), abs=1e-5) if (first | second).any() else one == 0
    assert torch.equal(iou, mask_iou(b, a)) and (mask_iou(a, a)[a.sum((1, 2, 3)) > 0] == 1).all()


@some
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_false_positives_at_a_threshold(seed, threshold):
    masks = torch.rand(4, 1, 9, 7, generator=generator(seed))
    found = _false_positive_area(masks, threshold)
    assert found["false_positive_area"] == pytest.approx(float((masks >= threshold).float().mean())) and found["false_positive_mean"] == pytest.approx(float(masks.mean()))


def test_divergence_grows_with_a_difference():
    data, clusters = striped()
    real, k = data.objects.images, clusters[:36]
    values = [_held_out_divergence((real + shift).clamp(0, 1), k, real) for shift in (0, 0.05, 0.1)]
    assert values[0] < values[1] < values[2]  # not 0 on itself: patches of the two sides lie at different places


def test_probes_of_degenerate_models():
    data, clusters = striped()
    h = hold_out(data, clusters)
    for model, pasted, residual in ((bright, (0.99, 1), (0, 0)), (whole, (0.4, 0.75), (0, 0)), (nothing, (0, 0), (1, 1))):
        masks = harden(predict_masks(model, h.objects))
        assert pasted[0] <= _paste_consistency(model, h.objects, masks, h.same) <= pasted[1]
        assert residual[0] <= _removal_residual(model, h.objects, masks, h.same) <= residual[1]
    assert _agreement(nothing, h.objects, nothing(h.objects), h.onto) == {"shift_iou": 0, "flip_iou": 0, "swap_iou": 0}


def test_separation_is_the_auc_of_the_top():
    objects, backgrounds = torch.zeros(3, 1, 10, 10), torch.full((4, 1, 10, 10), 0.04)
    objects[..., 0, :5] = torch.tensor([0.9, 0.5, 0.01])[:, None, None]  # the mean would rank all below the backgrounds'
    assert _separation(objects, backgrounds) == pytest.approx(2 / 3)


class SeesBright(Witness):
    "A witness that is sure of the object where anything is bright."
    def forward(self, images): return 20 * (images.amax((1, 2, 3)) - 0.8)


def test_evidence_is_what_goes_with_the_mask_alone():
    h = hold_out(*striped(), witness=SeesBright(1))
    def evidence(model): return criteria(model, h, names=["evidence"])["evidence"]
    stripes = torch.zeros(16, 16)
    stripes[:, :2] = 1
    assert evidence(bright) > 0.5
    assert abs(evidence(lambda images: stripes.expand(len(images), 1, -1, -1))) < 0.05  # the same in every image
    assert evidence(lambda images: torch.ones_like(images)) == 0 == evidence(nothing)
    assert evidence(lambda images: bright(images).roll(8, 3)) < 0.2  # beside the object
    found = criteria(bright, h, names=["score"])
    sound = (1 - found["false_share"]) * found["paste_iou"]
    assert found["score"] == pytest.approx(evidence(bright) * (2 * found["separation"] - 1) * sound ** 0.25)


def test_a_witness_never_judges_what_it_was_trained_on():
    h = hold_out(*striped())
    witnesses, which = h._witnesses
    assert len(witnesses) == 2 and sorted(which.unique().tolist()) == [0, 1]
    for index in h.moved_index.unique(): assert len(which[h.moved_index == index].unique()) == 1


@pytest.mark.parametrize("shape", [(3, 1, 5, 6), (2, 3, 16, 9), (1, 2, 40, 40)])
def test_features_of_any_size(shape):
    features = _seam_features(torch.rand(shape))
    assert len(features) == len(torch.rand(shape)) and features.isfinite().all()


def test_threshold_between_two_levels():
    data, clusters = striped()
    blob = random_blobs(1, (16, 16), 0.2, 3, generator())
    model = lambda images: (0.9 * bright(images)).maximum(0.7 * blob)
    h = hold_out(data, clusters)
    for by in ("score", "paste_iou", "false_positive_area", "two_sample_excess"):
        choice = choose_threshold(model, h, (0.5, 0.8, 0.95), by=by, progress=False)
        assert choice.threshold == 0.8, by
    assert choice.plot().axes and choice.table.index.tolist() == [0.5, 0.8, 0.95]
    assert compare({"a": model}, data, clusters, threshold="auto", progress=False).threshold["a"] in (0.8, 0.9)


@pytest.mark.parametrize("scores, expected", [
    ([1.0, 0.96, 0.9], 1),
    ([0.9, 0.96, 0.2, 1.0], 3),
    ([-0.1, -0.2], 0),  # below 0, too
    ([float("nan"), 0.5], 1),
])
def test_the_last_about_as_good_as_the_best(scores, expected): assert _last_best(scores) == expected


def test_of_thresholds_as_good_as_each_other_the_likeliest():
    data, clusters = striped()
    choice = choose_threshold(bright, hold_out(data, clusters), (0.95, 0.9, 0.45, 0.2), progress=False)
    assert choice.threshold == 0.45  # its masks are of 0 and 1, so all are equal


def test_order_of_models_changes_nothing():
    data, clusters = striped()
    models = {"right": bright, "whole": whole}
    one, other = (compare(dict(items), data, clusters, n=20, progress=False) for items in (models.items(), reversed(models.items())))
    pd.testing.assert_frame_equal(one, other)


def test_rank_agreement_knows_which_side_is_good():
    rng = np.random.default_rng(0)
    truth = pd.Series(rng.random(12), index=[f"m{i}" for i in range(12)])
    table = pd.DataFrame({"score": truth ** 3, "divergence": -truth, "separation": rng.random(12), "threshold": 0.5})
    found = rank_agreement(table, truth.sample(frac=1, random_state=0))
    assert found.spearman["score"] == pytest.approx(1) and found.spearman["divergence"] == pytest.approx(1) and "threshold" not in found.index
    assert abs(found.spearman["separation"]) < 0.7 and found.p_value["score"] < 1e-6


DATA, CLUSTERS = striped(12)

@pytest.mark.parametrize("f, text", [
    (lambda: hold_out(DATA.objects, CLUSTERS[:12]), "no held-out background-only images"),
    (lambda: hold_out(DATA.backgrounds, CLUSTERS[12:]), "no held-out object images"),
    (lambda: hold_out(DATA, CLUSTERS[:5]), "expected (24,)"),
    (lambda: hold_out(DATA, torch.zeros(24).long()), "Use at least 2 clusters"),
    (lambda: hold_out(DATA, -torch.ones(24).long()), "Use at least 2 clusters"),
    (lambda: hold_out(DATA, torch.where(DATA.presence, 0, CLUSTERS)), "only cluster 0 holds both object and background-only images"),
    (lambda: hold_out(DATA, CLUSTERS, 0), "n=0; expected a whole number of object images, at least 1"),
    (lambda: hold_out(DATA, CLUSTERS, 2.5), "n=2.5; expected a whole number"),
    (lambda: compare({"a": lambda images: images[..., :3]}, DATA, CLUSTERS, progress=False), "model 'a': the model gave masks of shape"),
    (lambda: predict_masks(lambda images: images[:, 0], DATA.images[:8]), "shape (8, 16, 16) for images of shape (8, 1, 16, 16); expected (8, 1, 16, 16)"),
    (lambda: compare({"a": lambda images: images / 0 * 0}, DATA, CLUSTERS, progress=False), "NaN"),
    (lambda: predict_masks(lambda images: images * torch.nan, DATA.images[:8]), "NaN in the masks of 8 of 8 images"),
    (lambda: compare({"a": lambda images: images - 1}, DATA, CLUSTERS, progress=False), "take their sigmoid"),
    (lambda: compare({"a": 3}, DATA, CLUSTERS, progress=False), "a model is int; expected a function from images to masks, or an object with .predict"),
    (lambda: compare({"a": torch.nn.Conv2d(1, 1, 1)}, DATA, CLUSTERS, progress=False), "call .eval() on it first"),
    (lambda: compare({"a": bright}, DATA, CLUSTERS, threshold=80, progress=False), "threshold=80"),
    (lambda: compare({}, DATA, CLUSTERS), "no models"),
    (lambda: compare({"a": bright}, *striped(6), progress=False), "5 folds need at least 5"),
    (lambda: criteria(bright, hold_out(DATA, CLUSTERS), names=["scores"]), "names='scores' is not known (did you mean 'score'?); expected one of 'score', 'evidence'"),
    (lambda: choose_threshold(bright, hold_out(DATA, CLUSTERS), (0.5,), by="beauty"), "by='beauty' is not known"),
    (lambda: choose_threshold(bright, hold_out(DATA, CLUSTERS), ()), "thresholds is empty"),
    (lambda: mask_iou(DATA.masks, DATA.masks[0]), "masks have shapes (24, 1, 16, 16) and (1, 16, 16); expected the same"),
    (lambda: _agreement(bright, DATA.images, DATA.masks, DATA.images, shift=0), "shift=0; expected at least 1 pixel, and less than the sides of the images, (16, 16)"),
    (lambda: _false_positive_area(DATA.masks[:0].float()), "no masks of background-only images"),
    (lambda: _separation(DATA.masks, DATA.masks[:0]), "24 masks of object images and 0 of background-only ones; expected some of each"),
    (lambda: rank_agreement(pd.DataFrame({"score": [1.0, 2, 3]}, index=list("abc")), {"a": 1, "c": 2}), "the truth lacks b"),
    (lambda: rank_agreement(pd.DataFrame({"score": [1.0, 2]}, index=list("ab")), {"a": 1, "b": 2}), "at least 3"),
])
def test_bad_input_is_refused(f, text):
    with pytest.raises(ValueError) as error: f()
    assert text in str(error.value)


def test_images_that_are_alike_on_both_sides_cannot_be_told_apart():
    h = hold_out(*striped())
    auc = _two_sample_auc(h.real, h.targets, h.real, h.real_index, h.real_index)
    assert auc == pytest.approx(0.5, abs=1e-9)


def test_clusters_that_can_be_judged():
    presence = torch.tensor([True] * 12 + [False] * 12)
    clusters = torch.tensor([0, 1, 2] * 4 + [0, 1, -1] * 4)
    assert judged_clusters(presence, clusters) is None  # four of each kind
    presence, clusters = torch.cat([presence] * 2), torch.cat([clusters] * 2)
    assert torch.equal(judged_clusters(presence, clusters), torch.where(clusters == 2, -1, clusters))  # 2 has no backgrounds
    assert judged_clusters(presence, clusters.clamp(max=0)) is None  # one cluster
    assert judged_clusters(presence[:0], clusters[:0]) is None and FOLDS == 5
    assert judged_clusters(presence, torch.where(clusters == 1, 70, clusters)).unique().tolist() == [-1, 0, 70]
