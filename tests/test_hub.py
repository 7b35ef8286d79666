"""A model goes to a page and comes back: by a folder, and by a server that speaks to the real client as the hub does."""
import ast
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

import bgcs
from bgcs.data.datasets import digits_on_textures
from bgcs.data.intensity import Normalization
from bgcs.masks.masknet import UNet
from bgcs.masks.method import load_method
from bgcs.masks.segment import Segmenter
from bgcs.methods.presence import PresenceMap
from bgcs.methods.sam import Refinement
from bgcs.outputs.hub import from_hub, push
from hub_server import TOKEN, serving
from test_methods import fitted
from test_predict import model as drawn

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def digits(): return digits_on_textures("train", n=240)


@pytest.fixture(scope="module")
def trained(digits): return fitted("divergence", digits)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # what stores large files cannot be served here
    with serving() as server: yield server


@pytest.fixture
def there(server, tmp_path): return dict(endpoint=server.address, token=TOKEN, cache=tmp_path / "cache")


def up(model, server, name="me/digits", **given): return push(model, name, endpoint=server.address, token=TOKEN, **given)


def same(one, other, images): return torch.equal(one.predict(images), other.predict(images))


def downloaded(cache): return sorted(path.name for path in cache.rglob("snapshots/*/*"))


# ---- the page

def page_of(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_folder_holds_what_would_be_uploaded(trained, digits, tmp_path):
    pushed = push(trained, "me/digits", images=digits, folder=tmp_path / "page", license="mit", tags=("digits",))
    assert pushed.files == ("README.md", "example.png", "segmenter.safetensors") and pushed.revision is None
    assert "nothing was uploaded" in str(pushed)
    head, body = page_of(tmp_path / "page")
    assert head == {"library_name": "bgcs", "license": "mit", "pipeline_tag": "image-segmentation", "tags": ["bgcs", "weakly-supervised", "segmentation", "divergence", "digits"]}
    card = trained.card_
    for told in (trained.verdict_.word, f"| object images | {card['images']['object images']} |", f"| steps | {card['training']['steps']} |", format(trained.threshold_, ".3g"), card["bgcs"], "`unit`", "example.png"): assert told in body
    assert same(from_hub(tmp_path / "page"), trained, digits) and from_hub(str(tmp_path / "page")).card_ == card
    assert (tmp_path / "page" / "example.png").read_bytes()[:4] == b"\x89PNG"


def test_what_the_page_says_of_loading_runs(trained, tmp_path, monkeypatch):
    push(trained, "me/digits", folder=tmp_path / "me" / "digits")
    code = page_of(tmp_path / "me" / "digits")[1].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)  # where a folder of that name is, so that the page's own words find it
    names = {}
    statement = next(line for line in code.splitlines() if line.startswith("model = "))
    exec(f"import bgcs\n{statement}", names)
    assert repr(names["model"]) == repr(trained)
    ast.parse(code)


def test_a_model_without_card_or_example(tmp_path):
    model = drawn(3, normalization=Normalization("zscore", clip=2))
    assert push(model, "digits", folder=tmp_path / "page").files == ("README.md", "segmenter.safetensors")
    head, body = page_of(tmp_path / "page")
    assert "license" not in head and "not judged" in body and "3 channels" in body and "zscore(2)" in body and "example.png" not in body


def halved(images): return images / 2


def test_a_function_is_asked_for_again(tmp_path):
    model = drawn(normalization=Normalization("function", function=halved))
    push(model, "me/digits", folder=tmp_path / "page")
    assert "normalizing=normalizing" in page_of(tmp_path / "page")[1]
    with pytest.raises(ValueError, match="give that function"): from_hub(tmp_path / "page")
    assert from_hub(tmp_path / "page", normalizing=halved).normalization_.function is halved


def test_no_folder_of_this_machine_is_published(tmp_path):
    model = Refinement(1, sam=str(tmp_path / "sam-base"), base_width=4, depth=1)
    push(model, "me/refined", folder=tmp_path / "page")
    assert model.settings["sam"] == str(tmp_path / "sam-base")
    for path in (tmp_path / "page").iterdir(): assert str(tmp_path).encode() not in path.read_bytes()
    assert from_hub(tmp_path / "page").settings["sam"] == "sam-base"


# ---- up and down

def test_up_and_down_again(trained, digits, server, there, tmp_path):
    pushed = up(trained, server, images=digits)
    assert pushed.files == ("README.md", "example.png", "segmenter.safetensors")
    repository = server.hub.repositories["me/digits"]
    assert set(repository.commits[pushed.revision]) == set(pushed.files) and len(repository.commits) == 2  # one, after the empty one
    assert repository.private and pushed.place == f"{server.address}/me/digits" and pushed.revision in str(pushed)
    back = from_hub("me/digits", **there)
    assert type(back) is Segmenter and same(back, trained, digits)
    assert back.card_ == trained.card_ | {"hub": f"me/digits@{pushed.revision}"} and str(back)
    assert downloaded(there["cache"]) == ["segmenter.safetensors"]
    assert not [ask for ask in server.hub.asked if "resolve" in ask and "safetensors" not in ask]


def test_a_commit_gives_the_same_weights_always(trained, digits, server, there):
    first = up(trained, server)
    other = drawn(seed=3)
    second = up(other, server, message="Other weights")
    assert first.revision != second.revision and same(from_hub("me/digits", **there), other, digits)
    assert same(from_hub("me/digits", first.revision, **there), trained, digits)
    branch = up(drawn(seed=5), server, revision="trial")
    assert same(from_hub("me/digits", "trial", **there), drawn(seed=5), digits) and same(from_hub("me/digits", "main", **there), other, digits)
    assert up(drawn(seed=5), server, revision="trial").revision == branch.revision  # the same files make no commit


def test_a_model_of_another_method_replaces_the_first(trained, digits, server, there):
    up(trained, server, images=digits)
    other = PresenceMap(1, base_width=4, depth=1).eval()
    pushed = up(other, server)
    assert sorted(server.hub.repositories["me/digits"].commits[pushed.revision]) == ["README.md", "method.safetensors"]
    assert type(from_hub("me/digits", **there)) is PresenceMap


def test_only_weights_are_taken_of_a_repository_of_others(trained, server, there):
    up(trained, server)
    repository = server.hub.repositories["me/digits"]
    files = repository.commits[repository.branches["main"]] | {"model.pkl": b"cos\nsystem\n", "load.py": b"raise SystemExit"}
    repository.commit("main", files, "more")
    from_hub("me/digits", **there)
    assert downloaded(there["cache"]) == ["segmenter.safetensors"]
    del files["segmenter.safetensors"]
    repository.commit("main", files, "less")
    with pytest.raises(ValueError, match="me/digits holds no model of bgcs: neither segmenter.safetensors nor"): from_hub("me/digits", **there)


def test_damaged_weights_are_refused(trained, server, there):
    up(trained, server)
    repository = server.hub.repositories["me/digits"]
    files = dict(repository.commits[repository.branches["main"]])
    content = bytearray(files["segmenter.safetensors"])
    content[-5] ^= 1
    repository.commit("main", files | {"segmenter.safetensors": bytes(content)}, "damaged")
    with pytest.raises(ValueError, match="is damaged"): from_hub("me/digits", **there)


def test_what_was_downloaded_is_there_without_a_network(trained, digits, there, server):
    revision = up(trained, server).revision
    from_hub("me/digits", **there)
    gone = there | {"endpoint": "http://127.0.0.1:9"}
    assert same(from_hub("me/digits", revision, **gone), trained, digits) and same(from_hub("me/digits", **gone), trained, digits)


def test_a_public_page_needs_no_account_to_be_read(trained, digits, server, there):
    up(trained, server, private=False)
    assert same(from_hub("me/digits", **there | {"token": False}), trained, digits)
    up(trained, server, "me/secret")
    with pytest.raises(ConnectionError, match="me/secret could not be downloaded: .*Log in"): from_hub("me/secret", **there | {"token": False})


def test_the_address_may_stand_in_the_environment(trained, server, tmp_path):
    "As people of a company with a hub of its own have it."
    up(trained, server)
    code = "import sys, json, bgcs; print(json.dumps(bgcs.from_hub('me/digits').card_))"
    env = os.environ | {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hub"].startswith("me/digits@")


# ---- what goes wrong

def test_refusals_of_the_hub_are_said_in_words(trained, server, there):
    with pytest.raises(ConnectionError, match=r"me/digits could not be uploaded: .*Log in \(hf auth login\)"): push(trained, "me/digits", endpoint=server.address, token="wrong")
    assert not server.hub.repositories
    up(trained, server)
    with pytest.raises(ConnectionError, match="me/digits at revision 'v9' could not be downloaded"): from_hub("me/digits", "v9", **there)
    with pytest.raises(ConnectionError, match="me/nothing could not be downloaded"): from_hub("me/nothing", **there)


def test_nobody_there(trained, tmp_path):
    nowhere = dict(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(ConnectionError, match="With folder= it is written to a folder"): push(trained, "me/digits", **nowhere)
    with pytest.raises(ConnectionError, match="the hub in reach"): from_hub("me/digits", cache=tmp_path, **nowhere)


@pytest.mark.parametrize("model, name, error, text", [
    (Segmenter(), "me/digits", Exception, "has not been fitted"), (UNet(), "me/digits", TypeError, "model is of type UNet"),
    (PresenceMap(1), "../here", ValueError, "expected a name such as 'owner/name', or folder="), (PresenceMap(1), "a/b/c", ValueError, "owner/name"),
    (PresenceMap(1), None, ValueError, "repo_id=None"),
])
def test_bad_input_is_refused_before_anything_is_sent(model, name, error, text):
    with pytest.raises(error, match=text): push(model, name, endpoint="http://127.0.0.1:9")


def test_nothing_in_a_folder_is_replaced(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="choose a new one"): push(trained, "me/digits", folder=folder)
    with pytest.raises(ValueError, match="has no revisions"): from_hub(tmp_path, "main")
    with pytest.raises(FileNotFoundError, match="holds no saved model"): from_hub(tmp_path)
    with pytest.raises(ValueError, match="or a folder that is there"): from_hub(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_client_is_named(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: push(trained, "me/digits"), lambda: bgcs.from_hub("me/digits")):
        with pytest.raises(ImportError, match=r"pip install 'bgcs\[hub\]'"): call()


def test_a_saved_model_is_a_folder_too(trained, digits, tmp_path):
    assert same(from_hub(trained.save(tmp_path / "saved")), load_method(tmp_path / "saved"), digits)
