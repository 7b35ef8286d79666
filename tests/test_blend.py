"""Properties of composites, moved objects and mosaics."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgcs.objective.blend import (Placement, _feather, _match_contrast, _move_objects, _seam_bands, composite, harden, mosaic, random_blobs,
                                  random_flips)

some = settings(deadline=None, derandomize=True, max_examples=25)
sides, seeds = st.integers(5, 24), st.integers(0, 10_000)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def scene(n, c, h, w, seed):
    rng = generator(seed)
    return torch.rand(n, c, h, w, generator=rng), random_blobs(n, (h, w), 0.4, 3, rng), torch.rand(n, c, h, w, generator=rng)


@some
@given(st.integers(1, 4), st.sampled_from([1, 3]), sides, sides, seeds, st.integers(0, 4), st.floats(0, 1))
def test_composites_stay_between_0_and_1_and_change_only_at_the_seam(n, c, h, w, seed, width, matched):
    x, m, b = scene(n, c, h, w, seed)
    out = composite(x, m, b, width, matched)
    assert out.shape == x.shape and out.min() >= -1e-6 and out.max() <= 1 + 1e-6
    if width:
        plain = composite(_match_contrast(x, m, b, matched), m, b)
        away = (sum(_seam_bands(m, width)) == 0).expand_as(x)
        torch.testing.assert_close(out[away], plain[away], rtol=0, atol=1e-6)


@some
@given(sides, sides, seeds, st.integers(1, 5))
def test_feathering_keeps_order_and_complement(h, w, seed, width):
    m = scene(2, 1, h, w, seed)[1]
    soft = _feather(m, width)
    torch.testing.assert_close(_feather(1 - m, width), 1 - soft)
    assert (_feather((m + 0.1).clamp(max=1), width) >= soft - 1e-6).all()


def test_gradients_of_feathering_and_matching_are_right():
    x, m, b = (t.double() for t in scene(2, 2, 7, 8, 0))
    soft = (0.2 + 0.6 * m + 0.05 * torch.rand(m.shape, generator=generator()).double()).requires_grad_()
    x, b = 0.4 + 0.1 * x, 0.4 + 0.1 * b  # clear of the cut at 0 and 1
    assert torch.autograd.gradcheck(lambda masks: composite(x, masks, b, 2, 0.5), soft)


def test_gradients_are_finite_without_a_seam():
    x, m, b = scene(2, 1, 8, 8, 0)
    for flat in (torch.zeros_like(m), torch.ones_like(m)):
        flat.requires_grad_()
        composite(x, flat, b, 2, 1.0).sum().backward()
        assert flat.grad.isfinite().all()


@some
@given(st.integers(1, 3), sides, sides, seeds, st.integers(0, 6), st.sampled_from(["none", "horizontal", "vertical", "both"]), st.floats(1, 2), st.booleans())
def test_moved_masks_move_with_their_images(n, h, w, seed, shift, flip, scale, turn):
    m = scene(n, 1, h, w, seed)[1]
    placement = Placement(shift, flip, scale, turn)
    images, masks = _move_objects(m.expand(-1, 2, -1, -1), m, placement, generator(seed))
    torch.testing.assert_close(images, masks.expand(-1, 2, -1, -1))
    assert masks.min() >= 0 and masks.max() <= 1
    again = _move_objects(m, m, placement, generator(seed))[1]
    assert torch.equal(masks, again)


def test_oblong_images_turn_without_being_stretched():
    m = torch.zeros(1, 1, 21, 41)
    m[..., 8:13, 15:26] = 1  # 5 × 11
    seen = set()
    for seed in range(12):
        moved = _move_objects(m, m, Placement(turn=True), generator(seed))[1][0, 0] > 0.5
        seen.add((int(moved.any(1).sum()), int(moved.any(0).sum())))
    assert seen == {(5, 11), (11, 5)}


@some
@given(st.integers(1, 5), sides, sides, seeds, st.floats(0, 1), st.integers(1, 9))
def test_blobs_cover_their_share(n, h, w, seed, share, grain):
    blobs = random_blobs(n, (h, w), share, grain, generator(seed))
    assert blobs.shape == (n, 1, h, w) and set(blobs.unique().tolist()) <= {0.0, 1.0}
    if grain > 1: assert ((blobs.mean((1, 2, 3)) - share).abs() <= 1.5 / (h * w)).all()


def test_blobs_of_large_batches():
    assert random_blobs(70, (512, 512), 0.25).mean() == pytest.approx(0.25, abs=1e-4)  # more values than torch.quantile takes


@some
@given(st.integers(2, 6), sides, sides, seeds, st.integers(0, 3))
def test_mosaics_are_made_of_both_kinds_where_the_map_says(n, h, w, seed, layers):
    a, _, b = scene(n, 3, h, w, seed)
    pieces, where = mosaic(1 + a, -b, layers=layers, generator=generator(seed))
    assert torch.equal((pieces > 0.5).float(), where.expand_as(pieces))


def test_nothing_is_drawn_from_the_global_generator():
    x, m, b = scene(4, 1, 16, 16, 0)
    before = torch.get_rng_state()
    _move_objects(x, m, Placement(3, "both", 1.5, True), generator())
    mosaic(x, b, generator=generator())
    assert torch.equal(before, torch.get_rng_state())


def test_a_mosaic_of_seams_hides_the_one_between_the_kinds():
    "Steps along the rim of the map are no larger than those at decoys would make them: of two kinds that are alike, the map cannot be seen."
    a, _, b = scene(64, 1, 32, 32, 0)
    a, b = (t.mean((2, 3), keepdim=True).expand_as(t) + 0.3 * torch.randn(64, 1, 1, 1, generator=generator(k)) for k, t in enumerate((a, b)))
    pieces, where = mosaic(a, b, generator=generator())
    step = (pieces[..., 1:] - pieces[..., :-1]).abs() > 1e-6
    rim = where[..., 1:] != where[..., :-1]
    assert (step & ~rim).sum() > 1.5 * (step & rim).sum()


@pytest.mark.parametrize("f, text", [
    (lambda x, m, b: composite(x, m[:, 0], b), "expected (2, 1, 8, 8)"),
    (lambda x, m, b: composite(x, m, b, feathered=-1), "feathered=-1; expected a whole number of pixels, at least 0"),
    (lambda x, m, b: composite(x, m, b, feathered=1.5), "feathered=1.5; expected a whole number of pixels"),
    (lambda x, m, b: composite(x, m, b, matched=1.5), "0 to 1"),
    (lambda x, m, b: _seam_bands(m, 0), "at least 1"),
    (lambda x, m, b: harden(m, -0.1), "0 to 1"),
    (lambda x, m, b: _match_contrast(x, m, b, 2), "0 to 1"),
    (lambda x, m, b: _move_objects(x, m[:1]), "expected (2, 1, 8, 8)"),
    (lambda x, m, b: random_flips(x, "sideways"), "flip='sideways' is not known"),
    (lambda x, m, b: Placement(shift=-1), "shift=-1; expected a whole number of pixels, at least 0"),
    (lambda x, m, b: Placement(shift=1.5), "shift=1.5"),
    (lambda x, m, b: Placement(flip="left"), "flip='left' is not known; expected one of 'none', 'horizontal'"),
    (lambda x, m, b: Placement(scale=float("inf")), "at least 1"),
    (lambda x, m, b: random_blobs(2, (8, 8), grain=0), "at least 1"),
    (lambda x, m, b: mosaic(x, b, layers=-1), "0 or more"),
])
def test_bad_input_is_refused(f, text):
    with pytest.raises(ValueError) as error: f(*scene(2, 1, 8, 8, 0))
    assert text in str(error.value)
