"""`geneval` on tiny random models: the colours computed apart, then the reward end to end."""

import inspect
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_detector import SIDES, pictures, save_detector, tiny_config

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.geneval.clauses import Detection, partial_credit, strict_credit
from rewards.geneval.colors import ColorClassifier, cropped
from rewards.geneval.detection import Detector
from rewards.geneval.request import COLORS, OBJECT_NAMES, read_request
from rewards.geneval.reward import GenEval
from rewards.models.open_clip_model import OpenClip
from uniar.errors import UserError

CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    torch.manual_seed(2)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.6)
        # What is the same for all pictures is kept small in the image tower, so that the picture decides.
        if ".ln_" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
        elif name.startswith("visual") and (parameter.ndim == 1 or name.endswith("positional_embedding")):
            torch.nn.init.constant_(parameter, 0.01)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def test_a_crop_is_grey_outside_the_mask():
    image = pictures(1)[0]
    mask = np.zeros((48, 72), dtype=bool)
    mask[10:20, 30:50] = True
    mask[15, 40] = False
    crop = np.asarray(cropped(image, (30, 10, 50, 20), mask))
    assert crop.shape == (10, 20, 3)
    assert crop[5, 10].tolist() == [0x99, 0x99, 0x99]
    inside = mask[10:20, 30:50]
    assert (crop[inside] == np.asarray(image)[10:20, 30:50][inside]).all()


def test_colours_are_clips_zero_shot_classes(clip_folder):
    import open_clip

    classifier = ColorClassifier(OpenClip(f"local-dir:{clip_folder}", None)).eval()
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    crops, names = pictures(12, size=(30, 26), seed=3), ["dog", "tv remote"] * 6
    expected = []
    for crop, name in zip(crops, names, strict=True):
        features = classifier._color_features(name)
        with torch.no_grad():
            image = model.encode_image(preprocess(crop)[None])[0]
            cosines = []
            for color in COLORS:
                prompts = [
                    f"a photo of a {color} {name}",
                    f"a photo of a {color}-colored {name}",
                    f"a photo of a {color} object",
                ]
                texts = [model.encode_text(tokenize([prompt]))[0] for prompt in prompts]
                mean = sum(text / text.norm() for text in texts) / 3
                assert torch.allclose(features[len(cosines)], mean / mean.norm(), atol=1e-5)
                cosines.append(float(image @ mean / (image.norm() * mean.norm())))
        expected.append(COLORS[cosines.index(max(cosines))])
    assert classifier(crops, names) == expected
    assert len(set(expected)) > 2
    assert [classifier([crop], [name])[0] for crop, name in zip(crops, names, strict=True)] == expected


LOADED = {}


def build(detector_folder, clip_folder, **parameters):
    """A suite of the one reward, its models loaded once for all tests that want the same."""
    entry = {
        "use": "geneval",
        "detector": str(detector_folder),
        "clip_model": f"local-dir:{clip_folder}",
        "clip_weights": None,
        "threshold": 0.1,
        "counting_threshold": 0.3,
        "device": "cpu",
        **SIDES,
        **parameters,
    }
    suite = RewardSuite.from_recipe([entry])
    [reward] = suite.rewards
    key = (reward.detector, reward.clip, reward.short_side, reward.dtype)
    if key not in LOADED:
        suite.load()
        LOADED[key] = reward._model
    reward._model = LOADED[key]
    return suite


def requests():
    a, b, c = OBJECT_NAMES[:3]
    asked = [{"tag": "single_object", "include": [{"class": name, "count": 1}]} for name in (a, b, c)]
    for count in (1, 2, 3):
        clauses = {"include": [{"class": a, "count": count}], "exclude": [{"class": a, "count": count + 1}]}
        asked += [{"tag": "counting", **clauses}, {"tag": "two_object", "include": [{"class": b, "count": count}]}]
    asked += [
        {"tag": "colors", "include": [{"class": name, "count": 1, "color": color}]}
        for color in COLORS
        for name in (a, b)
    ]
    asked += [
        {"tag": "position", "include": [{"class": first}, {"class": second, "position": [relation, 0]}]}
        for relation in ("above", "left of", "right of", "below")
        for first, second in ((a, b), (a, c), (b, c))
    ]
    asked += [{"tag": "color_attr", "include": [{"class": a, "color": "red"}, {"class": c, "color": "blue"}]}]
    return asked


@pytest.mark.parametrize("credit", ["strict", "partial"])
def test_the_reward_end_to_end(detector_folder, clip_folder, credit):
    """Each score against clauses judged on detections that are found and coloured one by one here."""
    asked = requests()
    images = pictures(9, size=(50, 80), seed=7) + pictures(len(asked) - 9, seed=8)
    # Random masks spread over the whole picture: without a threshold their centres still differ.
    suite = build(detector_folder, clip_folder, credit=credit, position_threshold=0.0)
    table = suite.score(RewardBatch(["x"] * len(asked), images, metadata=asked))
    detector = Detector(str(detector_folder), OBJECT_NAMES, **SIDES).eval()
    classifier = ColorClassifier(OpenClip(f"local-dir:{clip_folder}", None)).eval()
    for row, metadata in enumerate(asked):
        request, found = read_request(metadata), {}
        least = 0.3 if metadata["tag"] == "counting" else 0.1
        for instance in sorted(detector([images[row]], 0.0)[0], key=lambda each: -each.score):
            members = found.setdefault(OBJECT_NAMES[instance.label], [])
            if instance.score > least and len(members) < 16:
                crop = cropped(images[row], instance.box, instance.mask)
                members.append(Detection(instance.box, classifier([crop], [OBJECT_NAMES[instance.label]])[0]))
        verdict = (strict_credit if credit == "strict" else partial_credit)(request, found, 0.0)
        assert table.values[row, 0] == pytest.approx(verdict.score), (row, metadata)
        assert table.details["geneval"][row] == {"why": "; ".join(verdict.why) or "all there"}
    values = table.values[:, 0]
    assert (values < 1).sum() > 10
    if credit == "strict":
        right = {metadata["tag"] for metadata, value in zip(asked, values, strict=True) if value == 1}
        assert {"single_object", "colors", "position"} <= right
    else:
        assert len(set(values.tolist())) > 4


def test_samples_without_a_request_have_no_score_and_a_bad_one_spoils_no_other(detector_folder, clip_folder):
    metadata = [{}, {"tag": "counting"}, {"include": [{"class": "dgo"}]}, {"include": [{"class": "dog"}]}]
    batch = RewardBatch(["x"] * 4, pictures(4), metadata=metadata)
    table = build(detector_folder, clip_folder, on_error="skip").score(batch)
    assert [math.isnan(value) for value in table.values[:, 0]] == [True, True, True, False]
    assert table.failures == {"geneval": 1}
    with pytest.raises(RewardError, match=r"include\[0\] class is 'dgo'.*Did you mean 'dog'") as caught:
        build(detector_folder, clip_folder).score(batch)
    assert caught.value.index == 2


def test_batches_change_nothing(detector_folder, clip_folder):
    asked = requests()
    batch = RewardBatch(["x"] * len(asked), pictures(len(asked)), metadata=asked)
    values = [build(detector_folder, clip_folder, batch_size=size).score(batch).values for size in (1, 3, 64)]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_settings_reach_the_score(detector_folder, clip_folder):
    metadata = [{"tag": "two_object", "include": [{"class": OBJECT_NAMES[0], "count": 1}]}] * 12
    batch = RewardBatch(["x"] * 12, pictures(12, seed=2), metadata=metadata)

    def mean(**parameters):
        return build(detector_folder, clip_folder, **parameters).score(batch).values.mean().item()

    partial = mean(credit="partial")
    assert mean(threshold=0.99) == 0
    assert partial < 0 <= mean(credit="partial", floor=0)
    assert mean(credit="partial", max_objects=1) == mean(max_objects=1) == mean()
    assert mean(credit="partial", short_side=32, long_side=48) != partial


def test_settings_out_of_range_are_refused():
    cases = {
        "threshold is 1": {"threshold": 1.0},
        "counting_threshold is -0.1": {"counting_threshold": -0.1},
        "position_threshold is -1": {"position_threshold": -1.0},
        "floor is 0.0; only 'credit: partial' has one": {"floor": 0.0},
        "floor is 2.0; at most 1": {"credit": "partial", "floor": 2.0},
        "max_objects is 0": {"max_objects": 0},
        "short_side is 800 and long_side 500": {"long_side": 500},
        "batch_size is 0": {"batch_size": 0},
        "device is 'gpu'": {"device": "gpu"},
    }
    for message, parameters in cases.items():
        with pytest.raises(UserError, match=message):
            GenEval(**parameters)
    with pytest.raises(UserError, match=r"credit is 'soft' .*, expected 'strict' or 'partial'"):
        RewardSuite.from_recipe([{"use": "geneval", "credit": "soft"}])


def load_error(detector, clip_folder, **parameters):
    with pytest.raises(UserError) as caught:
        build(detector, clip_folder, **parameters).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_detector_is_named(detector_folder, clip_folder, tmp_path):
    from transformers import ViTConfig

    assert "is neither a folder nor a hub id" in load_error(tmp_path / "nowhere", clip_folder)
    assert "'owner/name' cannot be loaded: " in load_error("owner/name", clip_folder)
    assert "Without a network, name a local folder." in load_error("owner/name", clip_folder)
    (tmp_path / "empty").mkdir()
    assert f"'{tmp_path / 'empty'}' cannot be loaded: " in load_error(tmp_path / "empty", clip_folder)
    ViTConfig().save_pretrained(tmp_path / "vit")
    assert "is a 'vit' model, a 'mask2former' is needed" in load_error(tmp_path / "vit", clip_folder)
    tiny_config(id2label={0: "person"}, label2id={"person": 0}).save_pretrained(tmp_path / "one")
    assert "has 1 classes; the 80 of COCO's instances are needed" in load_error(tmp_path / "one", clip_folder)
    swapped = dict(enumerate(["bicycle", "person", *OBJECT_NAMES[2:]]))
    tiny_config(id2label=swapped, label2id={v: k for k, v in swapped.items()}).save_pretrained(tmp_path / "swapped")
    assert "'bicycle' is number 0, 1 is needed" in load_error(tmp_path / "swapped", clip_folder)


def test_a_wrong_weight_file_names_the_first_wrong_weight(detector_folder, clip_folder, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree(detector_folder, folder)
    state = load_file(folder / "model.safetensors")

    def error(changed):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        return load_error(folder, clip_folder)

    name = next(name for name in state if name.endswith("queries_embedder.weight"))
    lacking = {key: value for key, value in state.items() if key != name}
    shape = tuple(state[name].shape)
    assert f"tensor {name} is missing from the weights; the config makes it {shape}" in error(lacking)
    wrong = {**state, name: torch.zeros(3, 32)}
    assert f"tensor {name} has shape (3, 32); the config makes it {shape}" in error(wrong)
    (folder / "model.safetensors").write_bytes(b"hello, this is not a safetensors file")
    assert "cannot be loaded: " in load_error(folder, clip_folder)
    (folder / "model.safetensors").unlink()

    class Dangerous:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"a": Dangerous()}, folder / "pytorch_model.bin")
    assert "cannot be loaded: " in load_error(folder, clip_folder)


def test_buffers_that_other_versions_save_or_leave_out_do_not_matter(detector_folder, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree(detector_folder, folder)
    state = load_file(folder / "model.safetensors")
    attention = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    assert f"{attention}.query.weight" in state  # the names of the published file
    del state["criterion.empty_weight"]
    state[f"{attention}.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    image = pictures(1)
    found, expected = (
        Detector(str(each), OBJECT_NAMES, **SIDES).eval()(image, 0.1) for each in (folder, detector_folder)
    )
    assert [each.score for each in found[0]] == [each.score for each in expected[0]]
    assert len(found[0]) > 0


def test_a_wrong_clip_is_named(detector_folder, clip_folder, tmp_path):
    path = str(tmp_path / "nowhere.pt")
    message = load_error(detector_folder, clip_folder, clip_model="ViT-L-14", clip_weights=path)
    assert message == f"reward 'geneval': weight file {path} does not exist."


def test_to_moves_both_models(detector_folder, clip_folder):
    reward = GenEval(detector=str(detector_folder), clip_model=f"local-dir:{clip_folder}", clip_weights=None)
    reward.to("cpu")
    reward.load()
    assert {parameter.device.type for parameter in reward._model.parameters()} == {"cpu"}
    reward.to("meta")  # stands for a GPU here
    assert {parameter.device.type for parameter in reward._model.parameters()} == {"meta"}


def test_other_precisions_stay_near(detector_folder, clip_folder):
    asked = requests()
    batch = RewardBatch(["x"] * len(asked), pictures(len(asked)), metadata=asked)
    exact = build(detector_folder, clip_folder).score(batch).values
    half = build(detector_folder, clip_folder, dtype="bfloat16").score(batch).values
    assert (exact == half).double().mean() > 0.7


def test_the_page_lists_every_setting_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| `geneval` \|.*$", page, re.MULTILINE)
    listed = re.findall(r"`(\w+)` \(([^)]*)\)", row)
    defaults = {name: p.default for name, p in inspect.signature(GenEval).parameters.items()}
    assert dict(listed) == {name: "null" if value is None else str(value) for name, value in defaults.items()}


def test_records_of_a_published_layout_are_read():
    """The keys as GenEval's own metadata and UniAR's training files have them."""
    for line in (
        '{"tag": "color_attr", "include": [{"class": "wine glass", "count": 1, "color": "blue"}], "exclude": []}',
        '{"tag": "position", "include": [{"class": "scissors", "count": 1},'
        ' {"class": "skateboard", "count": 1, "position": ["below", 0]}], "exclude": []}',
        '{"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}], "prompt": "a computer mouse"}',
    ):
        assert read_request(json.loads(line)) is not None
