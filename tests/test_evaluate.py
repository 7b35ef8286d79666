"""Metrics against true masks: by hand, beside scikit-learn's, and what is refused."""
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from bgcs.data.images import ImageSet
from bgcs.masks.evaluate import evaluate, mask_metrics, plot_masks


def drawn(n=3, side=8):
    "Soft masks, and true ones that they tell something of."
    masks, chance = (torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    return masks, masks > chance


MASKS, TRUTH = drawn()


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 1])
def test_metrics_are_those_of_scikit_learn(threshold):
    found, hard, truth = mask_metrics(MASKS, TRUTH, threshold), (MASKS >= threshold).flatten(), TRUTH.flatten()
    assert found["iou"] == pytest.approx(jaccard_score(truth, hard), abs=1e-6)
    assert found["f1"] == pytest.approx(f1_score(truth, hard), abs=1e-6)
    assert found["ap"] == pytest.approx(average_precision_score(truth, MASKS.flatten()), abs=1e-5)


def test_the_floor_is_shown_beside():
    data = ImageSet(MASKS, torch.ones(3, dtype=torch.bool), masks=TRUTH)
    found = evaluate(TRUTH.float(), data)
    assert found["iou"] == found["f1"] == found["ap"] == 1 and found["otsu_ap"] == mask_metrics(MASKS, TRUTH)["ap"]
    assert list(found) == ["iou", "ap", "f1", "otsu_iou", "otsu_ap", "otsu_f1"] and 0 < found["otsu_iou"] < 1
    assert len(plot_masks(data, MASKS).axes) == 12 and len(plot_masks(data.weak(), MASKS, n=2).axes) == 6


@pytest.mark.parametrize("f, text", [
    (lambda: mask_metrics(MASKS, TRUTH[:2]), "masks have shape (3, 1, 8, 8) and true masks (2, 1, 8, 8); expected the same"),
    (lambda: mask_metrics(MASKS, TRUTH & False), "undefined"),
    (lambda: mask_metrics(MASKS, TRUTH, threshold=50), "threshold=50; expected 0 to 1"),
])
def test_bad_input_is_refused(f, text):
    with pytest.raises(ValueError) as error: f()
    assert text in str(error.value)
