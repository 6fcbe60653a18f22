"""What model cards and pictures say of the machine that they come from: names."""

import pytest

from uniar.shareable import shareable

TEXTS = {
    # paths outside the current folder leave their last name
    "/data/secret/models/base": "base",
    "/data/secret/models/base/": "base",
    "/home/jane/my models/UniAR SFT": "UniAR SFT",
    "~/prompts.jsonl": "prompts.jsonl",
    "~jane/prompts.jsonl": "prompts.jsonl",
    "~": "~",
    "../../jane/prompts.jsonl": "prompts.jsonl",
    r"C:\Users\jane\prompts.jsonl": "prompts.jsonl",
    r"\\server\share\prompts.jsonl": "prompts.jsonl",
    "/home/jane/my_rewards.py:brightness": "my_rewards.py:brightness",
    "--config=/home/jane/a.yaml --x ~/b/c.json": "--config=a.yaml --x c.json",
    "see '/home/jane/a b' and (/mnt/x/y.txt)": "see 'a b' and (y.txt)",
    # addresses, with and without a scheme, name and password
    "http://10.0.0.2:8000/v1": "<URL>",
    "https://jane:pa55@judge.internal/v1?key=abc": "<URL>",
    "jane:pa55@judge.internal:8000": "<URL>",
    "s3://bucket/prompts.jsonl": "<URL>",
    "file:///home/jane/prompts.jsonl": "<URL>",
    "localhost:8000": "<URL>",
    "judge.internal:8000/v1": "<URL>",
    "10.0.0.2": "<URL>",
    "ask http://a.b/c, then http://d.e": "ask <URL> then <URL>",
    # keys by their look
    "sk-abcdefghijklmnop": "<secret>",
    "Bearer abc.def": "Bearer <secret>",
    "hf_abcdefghijklmnop": "<secret>",
    # what stays
    "ShareLab-SII/UniAR-SFT": None,
    "assets/uniar-tiny": None,
    "configs/../configs/nano.yaml": "nano.yaml",
    "tiny.shapes:Shapes": None,
    "my_rewards.py:brightness": None,
    "preset nano, seed 0": None,
    "Rate it 1/5 or 5/5, and/or say why.": None,
    "an image of 16:9, at 12:30": None,
    "OPENAI_API_KEY": None,
    "": None,
}


@pytest.mark.parametrize(("text", "left"), TEXTS.items())
def test_texts(text, left):
    assert shareable(text) == (text if left is None else left)


def test_what_holds_them():
    """Names of settings say what is a key; whatever is no text stays as it is."""
    recipe = {
        "model": {"path": "/data/base", "seed": 3, "lora": None},
        "rewards": [
            {
                "use": "remote",
                "url": ["http://a:1/", "http://jane:pa55@b/"],
                "token_env": "TOKEN_OF_MINE",
                "extra": {"api_key": "plain", "headers": {"Authorization": "Basic abc", "X-Token": "plain"}},
                "max_tokens": 512,
            }
        ],
        "paths": ("/a/b", "c/d"),
    }
    assert shareable(recipe) == {
        "model": {"path": "base", "seed": 3, "lora": None},
        "rewards": [
            {
                "use": "remote",
                "url": ["<URL>", "<URL>"],
                "token_env": "TOKEN_OF_MINE",
                "extra": {"api_key": "<secret>", "headers": {"Authorization": "<secret>", "X-Token": "<secret>"}},
                "max_tokens": 512,
            }
        ],
        "paths": ["b", "c/d"],
    }
    assert recipe["model"]["path"] == "/data/base"
