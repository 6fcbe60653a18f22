"""`clip_score` on tiny random open_clip models, against the formula computed apart from open_clip's own forward."""

import json
import logging

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.reference_towers import (
    TINY_OPEN_CLIP,
    cosine,
    open_clip_architecture,
    open_clip_image,
    open_clip_text,
    pixels_of,
)

from rewards import RewardBatch, RewardSuite
from rewards.models.clip_score import ClipScore
from rewards.models.open_clip_model import OpenClip
from uniar.errors import UserError

CONFIG = TINY_OPEN_CLIP
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PROMPTS = ["a red cat", "a blue dog", "a red cat", "a red cat and far more words than the context of it has room for"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as open_clip saves one, with random weights."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for parameter in model.parameters():  # far from the near-identity initialisation: all terms matter
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "open_clip_model.safetensors")


def make_batch():
    torch.manual_seed(1)
    images = []
    for size in ((16, 16), (16, 16), (16, 16), (16, 16)):
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy()
        images.append(Image.fromarray(pixels))
    return RewardBatch(PROMPTS, images)


def image_feature(image, w):
    pixels = (pixels_of(image) - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    return open_clip_image(pixels, w)


def cosines(batch, folder):
    w = {name: value.double() for name, value in weights_of(folder).items()}
    pairs = zip(batch.prompts, batch.images, strict=True)
    return [cosine(image_feature(image, w), open_clip_text(prompt, w)) for prompt, image in pairs]


def score(batch, **parameters):
    suite = RewardSuite.from_recipe([{"use": "clip_score", "device": "cpu", **parameters}])
    return suite.score(batch).values[:, 0].tolist()


def test_clip_score_is_the_cosine(folder):
    batch = make_batch()
    expected = cosines(batch, folder)
    assert max(expected) - min(expected) > 0.05  # the images and prompts are told apart
    found = score(batch, model=f"local-dir:{folder}", weights=None)
    assert found == pytest.approx(expected, abs=1e-5)
    scaled = score(batch, model=f"local-dir:{folder}", weights=None, scale=100)
    assert scaled == pytest.approx([100 * value for value in expected], abs=1e-3)


def test_preservation_compares_what_images_show(folder):
    w = {name: value.double() for name, value in weights_of(folder).items()}
    images, sources = make_batch().images[:2], make_batch().images[2:]
    entry = {"use": "preservation", "measure": "clip", "model": f"local-dir:{folder}", "weights": None, "device": "cpu"}
    metadata = [{}, {"mask": [[0, 0, 1, 1]]}]
    batch = RewardBatch(["a", "b"], images, metadata=metadata, source_images=[[source] for source in sources])
    plain, masked = RewardSuite.from_recipe([entry]).score(batch).values[:, 0].tolist()
    assert plain == pytest.approx(cosine(image_feature(images[0], w), image_feature(sources[0], w)), abs=1e-5)
    assert plain < 0.999
    assert masked == pytest.approx(1, abs=1e-5)


def test_batches_change_nothing(folder):
    batch = make_batch()
    whole = score(batch, model=f"local-dir:{folder}", weights=None)
    assert score(batch, model=f"local-dir:{folder}", weights=None, batch_size=1) == pytest.approx(whole, abs=1e-6)
    assert score(batch.select([2, 1]), model=f"local-dir:{folder}", weights=None) == pytest.approx(
        [whole[2], whole[1]], abs=1e-6
    )


def test_other_precisions_stay_near(folder):
    batch = make_batch()
    exact = score(batch, model=f"local-dir:{folder}", weights=None)
    half = score(batch, model=f"local-dir:{folder}", weights=None, dtype="bfloat16")
    assert half == pytest.approx(exact, abs=0.03)
    assert half != exact
    reward = ClipScore(f"local-dir:{folder}", weights=None, device="cpu", dtype="float16")
    reward.load()
    assert {parameter.dtype for parameter in reward._model.parameters()} == {torch.float16}


@pytest.fixture
def architecture(tmp_path):
    """The same model as an architecture that open_clip knows by name."""
    with open_clip_architecture(tmp_path) as name:
        yield name


def test_a_named_architecture_with_a_local_file_in_every_format(architecture, folder, tmp_path):
    batch, state = make_batch(), weights_of(folder)
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "train.pth")
    files = [folder / "open_clip_model.safetensors", tmp_path / "plain.pt", tmp_path / "train.pth"]
    results = [score(batch, model=architecture, weights=str(file)) for file in files]
    assert results[0] == results[1] == results[2]
    # By name the preprocessing is CLIP's, in the folder it is the folder's.
    assert results[0] != pytest.approx(score(batch, model=f"local-dir:{folder}", weights=None), abs=1e-4)


def test_loading_a_file_does_not_warn_of_random_weights(architecture, folder, caplog):
    with caplog.at_level(logging.WARNING):
        score(make_batch(), model=architecture, weights=str(folder / "open_clip_model.safetensors"))
    assert "randomly" not in caplog.text


def load_error(**parameters):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "clip_score", "device": "cpu", **parameters}]).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_weights_name_the_path(architecture, tmp_path):
    path = str(tmp_path / "nowhere.pt")
    assert load_error(model=architecture, weights=path) == f"reward 'clip_score': weight file {path} does not exist."
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    missing = tmp_path / "open_clip_model.safetensors"
    assert f"weight file {missing} does not exist" in load_error(model=f"local-dir:{tmp_path}", weights=None)


def test_a_wrong_file_names_the_first_wrong_weight(architecture, folder, tmp_path):
    state, path = weights_of(folder), tmp_path / "wrong.safetensors"

    def error(changed):
        save_file(changed, path)
        return load_error(model=architecture, weights=str(path))

    lacking = {name: value for name, value in state.items() if name != "visual.proj"}
    assert "it lacks 'visual.proj' (16, 12)" in error(lacking)
    # Also where open_clip itself would silently interpolate: positions of another image size.
    resized = {**state, "visual.positional_embedding": torch.zeros(10, 16)}
    assert "'visual.positional_embedding' is (10, 16), (5, 16) is needed" in error(resized)
    assert "open_clip's 'tiny-for-tests', which has no 'extra'" in error({**state, "extra": torch.zeros(1)})
    assert "it lacks 'positional_embedding' (12, 16)" in error({"something.else": torch.zeros(1)})


def test_a_file_that_is_no_weight_file(architecture, tmp_path):
    class Dangerous:
        def __reduce__(self):
            return (print, ("executed",))

    cases = {
        "text.pt": b"hello",
        "text.safetensors": b"hello, this is not a safetensors file",
        "empty.bin": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert f"weight file {tmp_path / name} cannot be read as weights" in load_error(
            model=architecture, weights=str(tmp_path / name)
        )
    torch.save({"a": Dangerous()}, tmp_path / "code.pt")
    assert "cannot be read as weights" in load_error(model=architecture, weights=str(tmp_path / "code.pt"))
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "holds a list, a mapping of names to tensors" in load_error(
        model=architecture, weights=str(tmp_path / "list.pt")
    )


def test_unknown_models_tags_and_devices_are_named():
    assert "'ViT-L14' is not an architecture that open_clip knows. Did you mean 'ViT-L-14'?" in load_error(
        model="ViT-L14"
    )
    message = load_error(weights="opneai")
    assert "'opneai' is neither a file nor a tag of 'ViT-L-14'; its tags: openai, " in message
    assert message.endswith("Did you mean 'openai'?")
    assert "'ViT-L-14' has no weights of its own" in load_error(weights=None)
    assert "it brings its own" in load_error(model="hf-hub:a/b").replace("but 'hf-hub:a/b'", "it")
    with pytest.raises(UserError, match="device is 'gpu'"):
        ClipScore(device="gpu")
    with pytest.raises(UserError, match="batch_size is 0"):
        ClipScore(batch_size=0)
    with pytest.raises(UserError, match=r"dtype is 'int8' .*, expected 'float32', 'bfloat16' or 'float16'"):
        RewardSuite.from_recipe([{"use": "clip_score", "dtype": "int8"}])


def test_weights_that_cannot_be_downloaded_stop_the_run(monkeypatch):
    import open_clip

    def offline(*arguments, **keywords):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", offline)
    monkeypatch.setattr(
        open_clip.factory, "_get_hf_config", lambda *a, **k: {"model_cfg": json.loads(json.dumps(CONFIG))}
    )
    message = load_error(model="ViT-B-32", weights="openai")
    assert "weights 'openai' of model 'ViT-B-32' cannot be had: " in message
    assert "no route to host. Without a network, name a local weight file." in message
    # open_clip itself goes on with random weights here.
    assert "cannot be had" in load_error(model="hf-hub:owner/name", weights=None)


def test_a_tag_comes_with_its_activation_and_preprocessing(monkeypatch):
    import open_clip

    asked = {}

    def create(name, **keywords):
        asked.update(keywords, name=name)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model", create)
    for tag, quick_gelu in (("openai", True), ("laion2b_s32b_b82k", False)):
        load_error(weights=tag)
        assert (asked["pretrained"], asked["force_quick_gelu"], asked["require_pretrained"]) == (tag, quick_gelu, True)


def test_a_local_file_takes_the_preprocessing_of_its_architecture(caplog):
    import open_clip

    siglip = OpenClip("ViT-B-16-SigLIP", "file.pt")
    assert siglip.look(open_clip, ["webli"])["mean"] == (0.5, 0.5, 0.5)  # open_clip would take CLIP's
    tags = open_clip.list_pretrained_tags_by_model("ViT-L-14")
    assert OpenClip("ViT-L-14", "file.pt").look(open_clip, tags) == {}
    assert "weights_like, one of: openai" in caplog.text
    like = OpenClip("ViT-L-14", "file.pt", "openai").look(open_clip, tags)
    assert like["quick_gelu"] is True
    assert like["mean"] == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    with pytest.raises(UserError, match=r"weights_like 'opnai' is not a tag of 'ViT-L-14'. Did you mean 'openai'"):
        OpenClip("ViT-L-14", "file.pt", "opnai").look(open_clip, tags)


def test_to_moves_the_weights_and_a_fixed_device_wins_over_any_gpu(folder):
    reward = ClipScore(f"local-dir:{folder}", weights=None, device="cpu")
    reward.load()
    reward.to("meta")  # stands for a GPU here
    assert {parameter.device.type for parameter in reward._model.parameters()} == {"cpu"}
    free = ClipScore(f"local-dir:{folder}", weights=None)
    free.to("cpu")
    free.load()
    assert {parameter.device.type for parameter in free._model.parameters()} == {"cpu"}
    free.to("meta")
    assert {parameter.device.type for parameter in free._model.parameters()} == {"meta"}
