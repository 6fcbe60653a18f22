"""The snippets of UniAR's model card and of its README's scripts, as text, in processes of their own.

They are as published (understanding, generation; editing as its evaluation does it), each of them once in a fresh
process, where its own order of imports is what counts.
What a test changes is in `on`: model path, device and attention, and sizes and counts where time asks for it.
"""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support.fresh_process import ROOT, run_fresh
from support.warm_process import run_warm
from transformers import AutoModelForImageTextToText

from inference.visual_inputs import prepare_visual_inputs
from uniar.modeling_uniar import UniARForConditionalGeneration

UNDERSTANDING = """\
import torch
from transformers import AutoProcessor
from uniar import UniARForConditionalGeneration

model_path = "ShareLab-SII/UniAR-SFT"
model = UniARForConditionalGeneration.from_pretrained(
    model_path,
    torch_dtype=torch.bfloat16,
    attn_implementation="flash_attention_2",
).cuda().eval()
processor = AutoProcessor.from_pretrained(model_path)

messages = [{"role": "user", "content": [
    {"type": "image", "image": "IMAGE"},
    {"type": "text", "text": "Describe this image in detail."},
]}]
inputs = processor.apply_chat_template(
    messages,
    tokenize=True,
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
inputs.pop("mm_token_type_ids", None)

with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
    generated_ids = model.generate(**inputs, max_new_tokens=1024, do_sample=False)
generated_ids_trimmed = [out[len(ids) :] for ids, out in zip(inputs.input_ids, generated_ids)]
output_text = processor.batch_decode(
    generated_ids_trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
)
print(output_text[0])
"""

GENERATION = """\
import torch
from transformers import AutoProcessor
from uniar import UniARForConditionalGeneration, UniARVisualDecoder
from inference.visual_inputs import prepare_visual_inputs

device = torch.device("cuda")
model_path = "ShareLab-SII/UniAR-SFT"
ar_model = UniARForConditionalGeneration.from_pretrained(
    model_path,
    torch_dtype=torch.bfloat16,
    attn_implementation="flash_attention_2",
).to(device)
ar_model.eval()
ar_processor = AutoProcessor.from_pretrained(model_path, padding_side="left")
visual_decoder = UniARVisualDecoder.from_pretrained(model_path, device=device)

visual_inputs = prepare_visual_inputs(["A cute anime girl."], ar_model, ar_processor, 512, 512)
generated_visual_ids = ar_model.generate_visual(
    prefix_input_ids=visual_inputs["prefix_input_ids"],
    attention_mask=visual_inputs["attention_mask"],
    pos_ids_image=visual_inputs["pos_ids_image"],
    pos_ids_all=visual_inputs["pos_ids_all"],
    image_token_num=visual_inputs["image_token_num"],
    temperature=1.0,
    cfg=1.5,
    show_progress=True,
)
images = visual_decoder.decode(
    generated_visual_ids,
    ar_height=512,
    ar_width=512,
    num_inference_steps=28,
    guidance_scale=1.5,
)
images[0].save("output.png")
"""

EDITING = """\
from transformers import AutoProcessor
from uniar import UniARForConditionalGeneration, UniARVisualDecoder, UniARConfig
from inference.visual_inputs import prepare_visual_inputs
import torch
from PIL import Image

device = torch.device("cuda")
model_path = "ShareLab-SII/UniAR-SFT"
ar_model = UniARForConditionalGeneration.from_pretrained(
    model_path, torch_dtype=torch.bfloat16, attn_implementation="flash_attention_2"
).to(device)
assert isinstance(ar_model.config, UniARConfig)
ar_processor = AutoProcessor.from_pretrained(model_path, padding_side="left")
visual_decoder = UniARVisualDecoder.from_pretrained(model_path, device=device)

image = Image.open("IMAGE").convert("RGB").resize((512, 512))
visual_inputs = prepare_visual_inputs(
    ["change the color of the car to black"], ar_model, ar_processor, 512, 512, input_images=[image]
)
generated_visual_ids = ar_model.generate_visual(**visual_inputs, temperature=0.1, cfg=2.0, show_progress=False)
generator = torch.Generator(device=device).manual_seed(0)
images = visual_decoder.decode(
    generated_visual_ids,
    ar_height=512,
    ar_width=512,
    upsampling_ratio=2.0,
    num_inference_steps=28,
    guidance_scale=1.5,
    generator=generator,
)
images[0].save("output.png")
"""


def on(snippet: str, checkpoint: Path, **changes: str) -> str:
    """The snippet for a machine without a GPU, of a small checkpoint."""
    for old, new in {
        '"ShareLab-SII/UniAR-SFT"': repr(str(checkpoint)),
        "flash_attention_2": "sdpa",
        ".cuda()": "",
        'torch.device("cuda")': 'torch.device("cpu")',
        "512": "64",
        "1024": "8",
        "=28": "=2",
        **changes,
    }.items():
        snippet = snippet.replace(old, new)
    return snippet


@pytest.fixture
def circle(tmp_path) -> Path:
    """A red circle as UniAR-Tiny has seen many."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=(220, 30, 30))
    image.save(tmp_path / "circle.png")
    return tmp_path / "circle.png"


@pytest.fixture
def checkpoint(request, golden) -> Path:
    return ROOT / "assets" / "uniar-tiny" if request.param == "uniar-tiny" else golden(request.param).checkpoint


each = pytest.mark.parametrize("checkpoint", ["uniar-tiny", "bsq8"], indirect=True)


def answer(snippet: str, folder: Path, fresh: bool = False) -> str:
    done = run_fresh(snippet, folder) if fresh else run_warm("-c", snippet, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.parametrize("key", ["image", "url"])
def test_understanding_a_picture_from_an_address(key, circle, tmp_path):
    """As UniAR-Tiny answers a question that it knows."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/circle.png"
        asked = {"IMAGE": address, "Describe this image in detail.": "what color is the circle?"}
        asked['"image": "http'] = f'"{key}": "http'
        assert answer(on(UNDERSTANDING, ROOT / "assets" / "uniar-tiny", **asked), tmp_path) == "red"
        server.shutdown()


def test_understanding_a_picture_from_a_file(golden, tmp_path):
    """As the same model answers here, and as in float32 the reference does."""
    pixels = golden("bsq8").tensors("processor")["image_0"].numpy()
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    snippet = on(UNDERSTANDING, golden("bsq8").checkpoint, IMAGE="picture.png")
    expected = golden("bsq8").tensors("understanding")["generated"]
    text = golden("bsq8").processor.tokenizer.decode(expected[0], skip_special_tokens=True)
    assert answer(snippet.replace("bfloat16", "float32"), tmp_path, fresh=True) == text.strip()
    assert answer(snippet, tmp_path)


@each
def test_generation(checkpoint, tmp_path):
    """In the size of a decoder that doubles it, and of one that cannot."""
    answer(on(GENERATION, checkpoint), tmp_path, fresh=checkpoint.name == "ckpt")
    with Image.open(tmp_path / "output.png") as image:
        assert image.size == ((128, 128) if checkpoint.name == "ckpt" else (64, 64))
        assert np.asarray(image).std() > 1


@each
def test_editing(checkpoint, circle, tmp_path):
    ratio = {} if checkpoint.name == "ckpt" else {"upsampling_ratio=2.0": "upsampling_ratio=1.0"}
    answer(on(EDITING, checkpoint, IMAGE=str(circle), **ratio), tmp_path, fresh=checkpoint.name == "ckpt")
    with Image.open(tmp_path / "output.png") as image:
        assert image.size == ((128, 128) if checkpoint.name == "ckpt" else (64, 64))


def test_reading_its_own_drawing_undecoded(golden):
    """The drawn bits stand where an image would, in `forward` and in `generate`."""
    model, processor = golden("bsq8").model(), golden("bsq8").processor
    inputs = prepare_visual_inputs(["two cats"], model, processor, ar_height=64, ar_width=128)
    drawn = model.generate_visual(**inputs, temperature=0, cfg=2.5, return_raw_codes=True)
    message = {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (128, 64))},
            {"type": "text", "text": "what is shown in this picture?"},
        ],
    }
    asked = processor.apply_chat_template(
        [message], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    del asked["pixel_values"]  # of the blank stand-in
    with torch.no_grad():
        seen = model(**asked, visual_bits=drawn).logits
        other = model(**asked, visual_bits=1 - drawn).logits
    assert not torch.allclose(seen, other, atol=0.1)
    answer = model.generate(**asked, visual_bits=drawn, max_new_tokens=4, do_sample=False)
    assert torch.equal(answer[0, asked["input_ids"].shape[1]], seen[0, -1].argmax())


def test_auto_classes(golden):
    model = AutoModelForImageTextToText.from_pretrained(golden("bsq8").checkpoint)
    assert isinstance(model, UniARForConditionalGeneration)
