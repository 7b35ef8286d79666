"""Properties of composites, flips and mosaics."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgcs.objective.blend import composite, harden, mosaic, random_blobs, random_flips

some = settings(deadline=None, derandomize=True, max_examples=25)
sides, seeds = st.integers(5, 24), st.integers(0, 10_000)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def scene(n, c, h, w, seed):
    rng = generator(seed)
    return torch.rand(n, c, h, w, generator=rng), random_blobs(n, (h, w), 0.4, 3, rng), torch.rand(n, c, h, w, generator=rng)


@some
@given(st.integers(1, 4), st.sampled_from([1, 3]), sides, sides, seeds)
def test_composites_show_the_object_where_the_mask_is_and_the_background_elsewhere(n, c, h, w, seed):
    x, m, b = scene(n, c, h, w, seed)
    torch.testing.assert_close(composite(x, m, b), torch.where(m > 0, x, b))
    soft = composite(x, 0.5 * m, b)
    assert ((soft >= torch.minimum(x, b) - 1e-6) & (soft <= torch.maximum(x, b) + 1e-6)).all()


def test_gradients_of_composites_are_right():
    x, m, b = (t.double() for t in scene(2, 2, 7, 8, 0))
    soft = (0.2 + 0.6 * m).requires_grad_()
    assert torch.autograd.gradcheck(lambda masks: composite(x, masks, b), soft)


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
    random_flips(x, "both", generator())
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
    (lambda x, m, b: harden(m, -0.1), "0 to 1"),
    (lambda x, m, b: random_flips(x, "sideways"), "flip='sideways' is not known; expected one of 'none', 'horizontal'"),
    (lambda x, m, b: random_blobs(2, (8, 8), grain=0), "at least 1"),
    (lambda x, m, b: mosaic(x, b, layers=-1), "0 or more"),
])
def test_bad_input_is_refused(f, text):
    with pytest.raises(ValueError) as error: f(*scene(2, 1, 8, 8, 0))
    assert text in str(error.value)
