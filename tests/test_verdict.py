"""The verdict in words: each fault of its table, models that are known, and what it is written as."""
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgcs.data.images import ImageSet
from bgcs.masks.criteria import (_FAULTS, _NO_GOOD_SIDE, Verdict, _judge, _sameness, _verdict, _verdict_in_words,
                                 choose_threshold, compare, criteria, hold_out, plot_comparison)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def squares(n=36, side=16):
    "Bright squares on backgrounds with stripes across (cluster 0) or down (cluster 1)."
    rng, clusters = generator(), torch.arange(2 * n) % 2
    stripes = 0.25 + 0.15 * torch.sin(torch.arange(side) * 1.5).expand(2 * n, side, side)
    images = torch.where((clusters == 0)[:, None, None], stripes, stripes.mT)[:, None]
    images = images + 0.05 * torch.rand(2 * n, 1, side, side, generator=rng)
    for image, (top, left) in zip(images[:n], torch.randint(side - 6, (n, 2), generator=rng).tolist()):
        image[0, top:top + 6, left:left + 6] = 0.9
    return ImageSet(images, torch.arange(2 * n) < n), clusters


HELD_OUT = hold_out(*squares())


def bright(images): return (images > 0.8).float()
def nothing(images): return torch.zeros_like(images)
def whole(images): return bright(images).amax((1, 2, 3), keepdim=True).expand(images.shape)
def everywhere(images): return (torch.arange(images.shape[3]) // 4 % 2).float().expand(images.shape)


KNOWN = {
    "right": (bright, "usable", ()),
    "stripes": (everywhere, "failed", ("same in every image", "doesn't tell object images", "mark 100% as much where")),
    "nothing": (nothing, "failed", ("same in every image", "doesn't tell object images", "mark nothing")),
    "all of object images": (whole, "failed", ("same in every image", "mark 100% of object images")),
}


@pytest.mark.parametrize("case", KNOWN)
def test_models_that_are_known(case):
    model, word, said = KNOWN[case]
    verdict = _judge(model, HELD_OUT)
    assert verdict.word == word and bool(verdict.reasons) == bool(said), verdict
    for words in said: assert any(words in reason for reason in verdict.reasons), verdict
    assert all(": " in reason for reason in verdict.reasons)  # what to do, too


SOUND = {"sameness": 0.1, "separation": 0.9, "object_area": 0.1, "false_share": 0.1, "evidence": 0.7}


@pytest.mark.parametrize("changes, word, reasons", [
    ({}, "usable", 0),
    ({"sameness": 0.51}, "failed", 1),
    ({"sameness": 0.5}, "usable", 0),
    ({"separation": 0.76}, "usable", 0),
    ({"separation": 0.7}, "doubtful", 1),
    ({"separation": 0.59}, "failed", 1),
    ({"separation": float("nan")}, "usable", 0),
    ({"object_area": 0.51}, "doubtful", 1),
    ({"object_area": 0.0}, "failed", 1),
    ({"false_share": 0.5}, "doubtful", 1),
    ({"false_share": 0.9}, "failed", 1),
    ({"evidence": 0.3}, "doubtful", 1),
    ({"evidence": 0.1}, "failed", 1),
    ({"false_share": 0.5, "sameness": 0.9, "separation": 0.7}, "failed", 3),
])
def test_each_fault_of_the_table(changes, word, reasons):
    verdict = _verdict(SOUND | changes)
    assert (verdict.word, len(verdict.reasons)) == (word, reasons), verdict
    assert not any("{" in reason for reason in verdict.reasons)
    if len(changes) == 3: assert "same in every image" in verdict.reasons[0]  # the worst first


def test_the_table_is_about_criteria_that_there_are():
    found = criteria(bright, HELD_OUT)
    assert {name for name, *_ in _FAULTS} <= set(found)
    assert found["object_area"] == pytest.approx(36 / 256) and 0 < found["sameness"] < 0.5
    for *_, word, reason in _FAULTS: Verdict(word, (reason.format(value=0.5),))


def test_criteria_that_are_missing_are_passed_over():
    assert str(_verdict({})) == "usable" and _verdict({"iou": 0.1, "separation": 0.5}).word == "failed"


def test_what_has_no_good_side_ranks_nothing():
    table = compare({"right": bright, "whole": whole}, *squares(), n=36, progress=False)
    assert table.object_area.notna().all() and plot_comparison(table).axes
    for name in _NO_GOOD_SIDE:
        with pytest.raises(ValueError, match="is not known"): choose_threshold(bright, HELD_OUT, (0.5,), by=name)


def test_in_words_and_in_plain_values():
    verdict = Verdict("doubtful", ("one: do this", "two: do that"))
    assert str(verdict) == "doubtful: one: do this; two: do that" and str(Verdict("usable")) == "usable"
    assert _verdict_in_words(None) == "not judged: no images were held out"
    assert _verdict_in_words(verdict) == str(verdict)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


@pytest.mark.parametrize("word, reasons", [("fine", []), ("failed", "x"), ("failed", [1]), ([], [])])
def test_what_is_no_verdict_is_refused(word, reasons):
    with pytest.raises(ValueError): Verdict.from_dict({"word": word, "reasons": reasons})


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_sameness_of_masks_and_of_none(n, seed):
    masks = torch.rand(n, 1, 9, 7, generator=generator(seed))
    expected = float(masks.mean(0).var(correction=0) / masks.var(correction=0))
    assert _sameness(masks) == pytest.approx(expected, abs=1e-5)
    assert _sameness(masks[:1].expand(n, -1, -1, -1)) == pytest.approx(1)
    assert _sameness(torch.full((n, 1, 9, 7), 0.3)) == 1
    even = masks.mean((1, 2, 3), keepdim=True).expand(-1, -1, 9, 7)  # only how much is marked differs
    assert _sameness(even) == pytest.approx(0, abs=1e-9)
