"""The detector of `geneval`: its sizes, its post-processing and its masks, computed apart."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_detector import SIDES, pictures, save_detector

from rewards.geneval.detection import Detector, instances, mask_box, prepare_pixels, resized_size
from rewards.geneval.request import OBJECT_NAMES


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((640, 480), (1067, 800)),
        ((480, 640), (800, 1067)),
        ((1024, 512), (1333, 667)),  # here the long side is what fits
        ((800, 1333), (800, 1333)),
        ((100, 1000), (133, 1333)),
    ],
)
def test_sizes_are_mmdets(size, expected):
    assert resized_size(*size, 800, 1333) == expected


def test_pixels_are_resized_normalised_and_padded():
    cv2 = pytest.importorskip("cv2", reason="the resize that the weights were evaluated with is opencv's")
    rng = np.random.default_rng(0)
    for size, target in (((40, 30), (67, 50)), ((90, 70), (64, 50))):
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        pixels_BCHW = prepare_pixels([image, image], target)
        assert pixels_BCHW.shape == (2, 3, 64, -(-target[0] // 32) * 32)
        expected = cv2.resize(np.asarray(image), target, interpolation=cv2.INTER_LINEAR).astype(np.float64)
        found = pixels_BCHW[0, :, : target[1], : target[0]].permute(1, 2, 0).double().numpy()
        found = found * [58.395, 57.12, 57.375] + [123.675, 116.28, 103.53]  # RGB
        assert np.abs(found - expected).max() < 1.01  # opencv weighs in 11 bits: now and then a level more or less
        assert np.abs(found - expected).mean() < 0.15
        assert pixels_BCHW[:, :, target[1] :].abs().sum() == 0
        assert pixels_BCHW[:, :, :, target[0] :].abs().sum() == 0


def bilinear(inputs, outputs):
    """(outputs, inputs) weights of a linear resize with half-pixel centres."""
    weights = np.zeros((outputs, inputs))
    for place in range(outputs):
        source = max((place + 0.5) * inputs / outputs - 0.5, 0)
        low = min(int(source), inputs - 1)
        weights[place, low] += 1 - (source - low)
        weights[place, min(low + 1, inputs - 1)] += source - low
    return weights


def plain_instances(class_logits, mask_logits, padded, resized, original):
    """mmdet's rules by loops over pairs: [(label, score, box, mask, logits)], the most probable pair first."""
    pairs = []
    for query, logits in enumerate(class_logits.astype(np.float64)):
        exponents = np.exp(logits - logits.max())
        for label, probability in enumerate((exponents / exponents.sum())[:-1]):
            pairs.append((probability, query, label))
    pairs.sort(key=lambda pair: -pair[0])
    found = []
    for probability, query, label in pairs[:100]:
        logits = mask_logits[query].astype(np.float64)
        logits = bilinear(logits.shape[0], padded[0]) @ logits @ bilinear(logits.shape[1], padded[1]).T
        logits = logits[: resized[0], : resized[1]]
        logits = bilinear(resized[0], original[0]) @ logits @ bilinear(resized[1], original[1]).T
        inside = [1 / (1 + math.exp(-value)) for value in logits.ravel() if value > 0]
        ys, xs = np.nonzero(logits > 0)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
        score = probability * sum(inside) / len(inside) if inside else 0.0
        found.append((label, score, tuple(int(side) for side in box), logits > 0, logits))
    return found


def same_instances(found, plain, min_score):
    expected = sorted((item for item in plain if item[1] > min_score), key=lambda item: -item[1])
    found = sorted(found, key=lambda instance: -instance.score)
    assert [instance.label for instance in found] == [label for label, *_ in expected]
    for instance, (_, score, box, mask, logits) in zip(found, expected, strict=True):
        assert instance.score == pytest.approx(score, rel=1e-4)
        differs = instance.mask != mask
        assert np.abs(logits[differs]).max(initial=0) < 1e-4  # on the very edge
        if not differs.any():
            assert instance.box == box
    return expected


def test_post_processing_is_mmdets():
    rng = np.random.default_rng(0)
    class_logits = rng.normal(0, 2.5, (12, 21))
    class_logits[4, -1] = 12  # a query that is sure of being nothing
    class_logits[5, [3, 7]] = 8, 8.1  # one that is two classes at once: both count
    mask_logits = rng.normal(0, 3, (12, 8, 12)).cumsum(axis=2)
    mask_logits[6] = -1  # an empty mask, whatever its class
    class_logits[6, 2] = 9
    sizes = ((32, 48), (30, 40), (45, 60))
    plain = plain_instances(class_logits, mask_logits, *sizes)
    for min_score in (0.0, 0.05, 0.3):
        found = instances(torch.tensor(class_logits), torch.tensor(mask_logits), *sizes, min_score)
        expected = same_instances(found, plain, min_score)
        assert len(expected) > 3
    assert len(instances(torch.tensor(class_logits), torch.tensor(mask_logits), *sizes, 0.0)) < 100  # the empty mask
    assert sum(instance.label in (3, 7) and instance.score > 0.3 for instance in found) >= 2
    assert instances(torch.tensor(class_logits), torch.tensor(mask_logits), *sizes, 1.0) == []


def test_only_the_most_probable_hundred_pairs_count():
    class_logits = torch.zeros(20, 11)  # 200 pairs, each as probable
    class_logits[:, :10] += torch.linspace(0, 0.1, 200).reshape(20, 10)
    masks = torch.ones(20, 4, 4)
    found = instances(class_logits, masks, (16, 16), (16, 16), (8, 8), 0.0)
    assert len(found) == 100
    assert sum(instance.score > 0.3 for instance in found) == 0
    assert {instance.box for instance in found} == {(0, 0, 8, 8)}


def test_mask_box():
    mask = np.zeros((6, 8), dtype=bool)
    assert mask_box(mask) == (0, 0, 0, 0)
    mask[2, 3] = mask[4, 5] = True
    assert mask_box(mask) == (3, 2, 6, 5)


@pytest.mark.parametrize(
    ("size", "resized", "padded"), [((72, 48), (96, 64), (96, 64)), ((50, 80), (60, 96), (64, 96))]
)
def test_the_detector_end_to_end(detector_folder, size, resized, padded):
    from transformers import Mask2FormerForUniversalSegmentation

    images = pictures(3, size)
    found = Detector(str(detector_folder), OBJECT_NAMES, **SIDES).eval()(images, 0.05)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(detector_folder).eval()
    compared = 0
    for image, of_image in zip(images, found, strict=True):
        with torch.no_grad():
            output = model(pixel_values=prepare_pixels([image], resized))
        class_logits, mask_logits = output.class_queries_logits[0].numpy(), output.masks_queries_logits[0].numpy()
        plain = plain_instances(class_logits, mask_logits, padded[::-1], resized[::-1], size[::-1])
        compared += len(same_instances(of_image, plain, 0.05))
    assert compared > 5
