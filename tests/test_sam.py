"Refinement by promptable segmenters: known answers, a real SAM of random weights, and folders that are none."
import json
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import ImageSet
from bgcs.masks.masknet import MaskNet, UNet
from bgcs.methods.sam import (VIEWS, Prompt, RandomWalkerPredictor, Refined, Refinement, SamPredictor, refine,
                              sureness, weighted_loss)
from bgcs.objective.labels import Labels

WALKER = RandomWalkerPredictor()
NO_POINTS = torch.empty(0, 2, dtype=torch.long), torch.empty(0, dtype=torch.long)


@pytest.fixture(scope="module")
def test(): return digits_on_textures("test", n=8).objects


def knowing(image, box, points, point_labels): return image[-1]


def with_truth(test): return torch.cat([test.images, test.masks.float()], 1)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(1, 1), (7, 4), (33, 47)])
def test_copies_go_back_exactly_and_prompts_go_with_them(view, size):
    image = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.stack([view.back(channel, size) for channel in view.image(image)]), image)
    for row, column in ((0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 3)):
        spot = torch.zeros(1, *size)
        spot[0, row, column] = 1
        moved, there = view.prompt(Prompt((row, column, 1, 1), ((row, column),), (1,)), size), view.image(spot)[0]
        assert there[moved.points[0]] == 1
        top, left, height, width = moved.box
        assert height == width == view.scale and there[top:top + height, left:left + width].all()


def test_all_copies_differ(): assert len({*VIEWS}) == len(VIEWS) == 12


def test_who_knows_the_truth_keeps_it(test):
    rough = F.max_pool2d(test.masks.float(), 3, 1, 1)
    found = refine(rough, with_truth(test), knowing, agreement=0.3, progress=False)
    assert torch.equal(found.masks, test.masks.float()) and (found.weights == 1).all() and found.kept.all()
    assert (found.agreement < 1).all() and not found.left_out


def test_what_is_contradictory_has_no_weight(test):
    said = iter(range(10_000))
    def contradictory(image, *prompt): return torch.full(image.shape[1:], next(said) % 2.0)
    with pytest.warns(UserWarning, match=r"3 of 3 object images .* each other in 3 \(a, b, c\)"):
        found = refine(test.masks[:3].float(), test.images[:3], contradictory, names=["a", "b", "c"], progress=False)
    assert (found.weights == 0).all() and not found.kept.any() and found.labels() == {}
    assert sureness(torch.tensor([0.0, 0.25, 1.0])).tolist() == pytest.approx([1, 1 - 0.8112781, 1])


def test_what_is_left_out_is_told_apart(test):
    masks = test.masks[:3].float()
    masks[0], masks[1] = 0, masks[1].roll(12, 2)
    with pytest.warns(UserWarning, match=r"nothing points .* in 1 \(0\); the answer contradicts the mask in 1 \(1\)"):
        found = refine(masks, with_truth(test)[:3], knowing, progress=False)
    assert found.left_out == {0: "nowhere", 1: "contradicted"} and found.kept.tolist() == [False, False, True]
    assert found.agreement[0].isnan() and (found.masks[0] == 0).all()
    assert "2 left out; nowhere: 0; contradicted: 1" in repr(found)


def test_labels_hold_what_is_sure_and_fit_where_labels_are_taken():
    masks = torch.tensor([0.0, 0.4, 0.9, 0.6]).view(1, 1, 2, 2).repeat(3, 1, 1, 1)
    found = Refined(masks, sureness(masks), torch.ones(3), {1: "uncertain"}, torch.tensor([True, True, False]))
    labels = found.labels([10, 11, 12])
    assert list(labels) == [10] and labels[10].tolist() == [[0, 2], [1, 2]]
    assert Labels(masks=labels).known(10, (2, 2)).tolist() == [[0, -1], [1, -1]]
    assert found[torch.tensor([1, 0])].left_out == {0: "uncertain"}
    with pytest.raises(ValueError, match="2 numbers of 3 images"): found.labels([1, 2])


def test_drawn_boxes_and_scribbles_go_before_masks(test):
    asked = []
    def recording(image, box, points, point_labels):
        asked.append((box, points.tolist(), point_labels.tolist()))
        return image[-1]
    scribble = torch.full((32, 32), 255)
    scribble[3, 4], scribble[20, 21] = 1, 0
    boxes = {0: [(1, 2, 10, 12)], 1: [(0, 0, 9, 9)]}
    elsewhere = test.masks[:3].float().roll(12, 2)
    with pytest.warns(UserWarning, match=r"contradicts the mask in 1 \(2\)"):
        settings = dict(boxes=boxes, scribbles={1: scribble}, copies=1, progress=False)
        found = refine(elsewhere, with_truth(test)[:3], recording, **settings)
    assert asked[0] == ((1, 2, 10, 12), [], []) and asked[1] == ((0, 0, 9, 9), [[3, 4], [20, 21]], [1, 0])
    assert found.kept.tolist() == [True, True, False]
    alone = refine(None, with_truth(test)[:2], knowing, boxes=boxes, progress=False)
    assert alone.kept.all() and alone.agreement.isnan().all()


def test_backgrounds_are_never_asked_about_and_the_same_seed_finds_the_same():
    data = digits_on_textures("train", n=6)
    masks = data.masks.float()
    def walker(image, *prompt):
        assert image.mean() < 2
        return WALKER(image, *prompt)
    marked = ImageSet(torch.where(data.presence.view(-1, 1, 1, 1), data.images[:], 9 + data.images[:]), data.presence)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, again, other = (refine(masks, marked, walker, copies=3, random_state=seed, progress=False)
                               for seed in (0, 0, 1))
    assert torch.equal(found.masks, again.masks) and found.digest() == again.digest() != other.digest()
    assert (found.masks[~data.presence] == 0).all() and (found.weights[~data.presence] == 1).all()
    assert found.kept[~data.presence].all() and torch.equal(found.asked, data.presence)


@pytest.mark.parametrize("change, message", [
    (dict(masks=torch.zeros(2, 1, 8, 8)), r"masks have shape \(2, 1, 8, 8\); expected \(2, 1, 9, 8\)"),
    (dict(masks=torch.full((2, 1, 9, 8), torch.nan)), r"masks hold values that are not in \[0, 1\]"),
    (dict(masks=None), "nothing points at an object"),
    (dict(images=torch.zeros(2, 9, 8)), r"images have shape \(2, 9, 8\)"),
    (dict(boxes={0: [(0, 0, 20, 3)]}), "leaves its 9×8 pixels"),
    (dict(scribbles={5: torch.zeros(9, 8)}), "labels are of image 5; there are 2"),
    (dict(copies=13), "copies=13; there are 12"),
    (dict(points=0), "points=0; expected a whole number"),
    (dict(predictor=lambda image, *_: image), r"answer has shape \(1, 9, 8\); expected \(9, 8\)"),
    (dict(predictor=lambda image, *_: 2 * torch.ones(image.shape[1:])), "the predictor's answers hold values"),
])
def test_what_cannot_be_refined_is_refused(change, message):
    given = dict(masks=torch.ones(2, 1, 9, 8), images=torch.zeros(2, 1, 9, 8), predictor=WALKER, progress=False)
    with pytest.raises(ValueError, match=message): refine(**given | change)


@pytest.mark.filterwarnings("error")
def test_a_random_walker_finds_edges_and_bears_any_image():
    generator = torch.Generator().manual_seed(0)
    disc = ((torch.arange(40)[:, None] - 18) ** 2 + (torch.arange(50) - 25) ** 2 < 90).float()
    for channels in (1, 3, 5):
        image = (0.3 + 0.4 * disc + 0.05 * torch.randn(channels, 40, 50, generator=generator)).clamp(0, 1)
        found = WALKER(image, (9, 16, 19, 19), torch.tensor([[18, 25]]), torch.tensor([1])) > 0.5
        assert (found & (disc > 0)).sum() / (found | (disc > 0)).sum() > 0.9
    for image in (torch.zeros(1, 9, 9), torch.ones(2, 9, 9), torch.rand(1, 9, 9, generator=generator)):
        for box in (None, (0, 0, 9, 9), (4, 4, 1, 1)):
            answer = WALKER(image, box, *NO_POINTS)
            assert answer.shape == (9, 9) and answer.min() >= 0 and answer.max() <= 1 and answer[4, 4] == 1


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    "The folder of a SAM of random weights."
    import transformers as hf

    torch.manual_seed(0)
    size = dict(image_size=64, patch_size=8)
    vision = hf.SamVisionConfig(hidden_size=32, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, window_size=4,
                                output_channels=16, num_pos_feats=8, global_attn_indexes=[1], **size)
    prompts = hf.SamPromptEncoderConfig(hidden_size=16, mask_input_channels=4, **size)
    masks = hf.SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    images = hf.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
                                  mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16})
    model = hf.SamModel(hf.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks))
    for name, weight in model.named_parameters():  # as they are drawn, prompts would hardly change an answer
        if "layer_norm" not in name: weight.data = 0.3 * torch.randn(weight.shape)
    folder = tmp_path_factory.mktemp("sam")
    for part in (model, hf.SamProcessor(images)): part.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(sam, tmp_path):
    for path in sam.iterdir(): (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_sam_answers_as_the_library_does(sam):
    import transformers as hf

    image = torch.randint(0, 256, (3, 33, 47), generator=torch.Generator().manual_seed(0)) / 255
    predictor = SamPredictor(sam)
    box, points, labels = (3, 4, 20, 30), torch.tensor([[10, 12], [2, 40]]), torch.tensor([1, 0])
    answer = predictor(image, box, points, labels)
    model, processor = hf.SamModel.from_pretrained(sam), hf.SamProcessor.from_pretrained(sam)
    shown = (image * 255).round().byte().permute(1, 2, 0).numpy()
    given = dict(input_points=[[[[12.5, 10.5], [40.5, 2.5]]]], input_labels=[[[1, 0]]], input_boxes=[[[4., 3., 34., 23.]]])
    inputs = processor(shown, **given, return_tensors="pt")
    inputs = {name: x.float() if x.dtype == torch.float64 else x for name, x in inputs.items()}
    with torch.no_grad(): found = model(**inputs, multimask_output=False)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    expected = processor.post_process_masks(found.pred_masks, *sizes, binarize=False)[0][0, 0].sigmoid()
    assert answer.shape == (33, 47) and torch.allclose(answer, expected, atol=1e-5) and answer.std() > 0.005
    for other in ((None, points[:1], labels[:1]), (box, *NO_POINTS), ((3, 4, 9, 9), points, labels)):
        assert not torch.allclose(predictor(image, *other), answer, atol=1e-3)


def test_sam_encodes_an_image_once_takes_any_channels_and_refines(sam, test, monkeypatch):
    predictor, encoded = SamPredictor(sam), []
    encode = predictor.model.get_image_embeddings
    monkeypatch.setattr(predictor.model, "get_image_embeddings", lambda pixels: encoded.append(1) or encode(pixels))
    grey = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    prompts = [((1, 1, 9, 9), *NO_POINTS), ((5, 5, 9, 9), *NO_POINTS)]
    answers = [predictor(grey, *prompt) for prompt in prompts]
    assert len(encoded) == 1
    assert torch.equal(predictor(grey.repeat(3, 1, 1), *prompts[1]), answers[1]) and len(encoded) == 1
    assert torch.equal(predictor(grey.repeat(4, 1, 1), *prompts[1]), answers[1])
    predictor(1 - grey, *prompts[0])
    assert len(encoded) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (refine(test.masks[:2].float(), test.images[:2], SamPredictor(sam), copies=12, progress=False)
                    for _ in range(2))
    assert torch.equal(one.masks, two.masks) and one.masks.std() > 0


def damage(name):
    def change(folder): (folder / name).write_bytes(b"damaged")
    return change


def remove(name):
    def change(folder): (folder / name).unlink()
    return change


def of_another_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "sam2"}))


def pickled(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def with_weights(change):
    def changed(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return changed


NAME = "mask_decoder.iou_prediction_head.proj_in.weight"


@pytest.mark.parametrize("change, message", [
    (remove("config.json"), "holds no model that can be read"),
    (damage("config.json"), "holds no model that can be read"),
    (of_another_kind, "of the kind 'sam2', not 'sam'"),
    (remove("model.safetensors"), "holds no weights"),
    (pickled, "weights as pickle .*pytorch_model.bin.*never loaded"),
    (damage("model.safetensors"), "no SAM that can be loaded"),
    (remove("processor_config.json"), "no SAM that can be loaded"),
    (with_weights(lambda weights: weights.pop(NAME)), f"lacks weights, such as {NAME}"),
    (with_weights(lambda weights: weights.update({NAME: torch.zeros(3)})), "no SAM that can be loaded"),
    (with_weights(lambda weights: weights[NAME].fill_(torch.nan)), f"NaN or infinity in {NAME}"),
])
def test_folders_that_are_no_sam_are_refused(copy, change, message, capfd):
    change(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message): SamPredictor(copy)
    assert capfd.readouterr() == ("", "")  # what is wrong is said once, in the error


def test_sam_is_never_downloaded_and_says_what_it_needs(sam, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is no folder.*never downloaded"): SamPredictor("facebook/sam-vit-base")
    data = digits_on_textures("train", n=20)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Refinement(sam=tmp_path / "none").fit(data, data.background_class, 2, progress=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bgcs\[sam\]'"): SamPredictor(sam)


def test_pixels_without_weight_do_not_count():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 1, 32, 32, generator=generator), torch.zeros(2, 1, 32, 32)
    target[..., 8:20, 10:22] = 1
    weights = torch.rand(target.shape, generator=generator)
    weights[..., 16:] = 0
    logits.requires_grad_()
    gradient, = torch.autograd.grad(weighted_loss(logits, target, weights), logits)
    assert ((gradient != 0) == (weights > 0)).all()
    assert weighted_loss(logits, target, weights) != weighted_loss(logits, target, weights ** 2)
    assert weighted_loss(40 * (target - 0.5), target, weights) < 1e-3


def test_training_takes_what_was_refined_and_nothing_that_was_left_out():
    data = digits_on_textures("train", n=30)
    truth, clusters = data.masks.float(), data.background_class
    numbers = data.presence.nonzero().flatten().tolist()
    def fitted(masks, left_out, **settings):
        refined = Refined(masks, torch.ones_like(masks), torch.ones(len(data)), left_out, data.presence)
        method = Refinement(base_width=4, depth=1, **settings)
        return method.fit(data, clusters, 4, refined=refined, held_out=None, progress=False)
    some = dict.fromkeys(numbers[::2], "uncertain")
    spoilt = truth.clone()
    spoilt[numbers[::2]] = 1 - spoilt[numbers[::2]]
    one, other, all_of_them = fitted(truth, some), fitted(spoilt, some), fitted(spoilt, {})
    assert torch.equal(one.predict(data), other.predict(data))
    assert not torch.equal(one.predict(data), all_of_them.predict(data))
    assert fitted(truth, {}, groups=(4, 2)).predict(data).isfinite().all()
    with pytest.raises(ValueError, match="none of 30 object images is left"): fitted(truth, dict.fromkeys(numbers, "nowhere"))
    with pytest.raises(ValueError, match="refined holds masks of shape"): fitted(truth[:5], {})
    with pytest.raises(ValueError, match="teacher='refined' is not known"): Refinement(teacher="refined")


@pytest.mark.parametrize("kind", [UNet, MaskNet])
def test_groups_change_nothing_where_there_are_none_and_learn_where_there_are(kind):
    torch.manual_seed(0)
    plain, after = kind(2, 4, 2).eval(), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(kind(2, 4, 2, groups=()).norm.weight, plain.norm.weight) and torch.equal(torch.rand(1), after)
    torch.manual_seed(0)
    grouped = kind(2, 4, 2, groups=(4, 2)).eval()
    shared = grouped.state_dict()
    assert not any("slots" in name for name in plain.state_dict())
    assert all(torch.equal(shared[name], value) for name, value in plain.state_dict().items())
    image = torch.rand(2, 2, 33, 47)
    assert torch.equal(grouped(image), plain(image)) and plain(image).shape == (2, 1, 33, 47)
    optimiser = torch.optim.SGD(grouped.parameters(), 0.1)
    for _ in range(2):  # what tells places of their slots begins at 0, so others follow a step later
        optimiser.zero_grad()
        grouped(image).square().mean().backward()
        optimiser.step()
    assert all(weight.grad.abs().sum() > 0 for name, weight in grouped.named_parameters() if "slots" in name)
    with torch.no_grad(): same = grouped(torch.full((1, 2, 40, 37), 0.7))
    assert same.max() - same.min() < 1e-5
