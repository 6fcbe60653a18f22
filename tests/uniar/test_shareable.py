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
    "see /home/alice smith/x": "see x",
    "at /mnt/a b c/d e/f.txt is there, /mnt/g/h.txt or i": "at f.txt is there, h.txt or i",
    "datasets:/root/secret_project/ds:train": "datasets:ds:train",
    "datasets:~/secret_project/ds": "datasets:ds",
    "local-dir:/home/alice/clip": "local-dir:clip",
    r"local-dir:C:\Users\alice\clip": "local-dir:clip",
    # addresses, with and without a scheme, name and password
    "http://10.0.0.2:8000/v1": "<URL>",
    "https://jane:pa55@judge.internal/v1?key=abc": "<URL>",
    "jane:pa55@judge.internal:8000": "<URL>",
    "s3://bucket/prompts.jsonl": "<URL>",
    "file:///home/jane/prompts.jsonl": "<URL>",
    "localhost:8000": "<URL>",
    "judge.internal:8000/v1": "<URL>",
    "10.0.0.2": "<URL>",
    "gpu7:8000": "<URL>",
    "gpu-7:29500/v1 or gpu7:443": "<URL> or <URL>",
    "[::1]:8000": "<URL>",
    "[fe80::a:1]:8000/v1": "<URL>",
    "at ::1 and fe80::1": "at <URL> and <URL>",
    "alice@example.org": "<URL>",
    "ask http://a.b/c, then http://d.e": "ask <URL> then <URL>",
    # keys by their look
    "sk-abcdefghijklmnop": "<secret>",
    "Bearer abc.def": "Bearer <secret>",
    "hf_abcdefghijklmnop": "<secret>",
    "ghp_abcdefghijklmnop": "<secret>",
    "github_pat_abcdefghijklmnop": "<secret>",
    "glpat-abcdefghijklmnop": "<secret>",
    "AKIAIOSFODNN7EXAMPLE": "<secret>",
    "with AIzaSyA-abcdefghijklmnopqrstuvwxyz_01": "with <secret>",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_d": "<secret>",
    "token=abcdef": "token=<secret>",
    "judge?api_key=abc&n=2": "judge?api_key=<secret>&n=2",
    "X-Auth: abcdef": "X-Auth: <secret>",
    "--password hunter2 --n 3": "--password <secret> --n 3",
    # what stays
    "ShareLab-SII/UniAR-SFT": None,
    "assets/uniar-tiny": None,
    "configs/../configs/nano.yaml": "nano.yaml",
    "rl.tiny.shapes:Shapes": None,
    "my_rewards.py:brightness": None,
    "preset nano, seed 0": None,
    "Rate it 1/5 or 5/5, and/or say why.": None,
    "an image of 16:9, at 12:30": None,
    "OPENAI_API_KEY": None,
    "max_tokens=512": None,
    "prompt_key=caption": None,
    "the key: a token is a word, the author: Jane": None,
    "openai/clip-vit-base-patch32@main": None,
    "seed:42, datasets:org/name:train, rewards::Shapes": None,
    "": None,
}


@pytest.mark.parametrize(("text", "left"), TEXTS.items())
def test_texts(text, left):
    assert shareable(text) == (text if left is None else left)


SECRETS = [
    "X-Auth",
    "x-api-key",
    "secret_access_key",
    "private_key",
    "auth",
    "Authorization",
    "pwd",
    "db_password",
    "passwd",
    "passphrase",
    "hub_token",
    "tokens",
    "credentials",
    "apiKey",
    "key",
    "signing-key",
    "cookie",
    "client_secret",
]
HARMLESS = [
    "prompt_key",
    "image_key",
    "author",
    "co_authors",
    "authors_list",
    "token_env",
    "api_key_env",
    "max_tokens",
    "max_new_tokens",
    "tokenizer",
    "keyword",
    "use",
]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", ["plain", "12345", 12345, ["plain"], {"user": "plain"}], ids=str)
def test_names_of_secrets(name, value):
    assert shareable({"extra": {name: value}}) == {"extra": {name: "<secret>"}}
    assert shareable({name: None, "n": 1}) == {name: None, "n": 1}


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_only_look_like_it(name):
    assert shareable({name: "plain"}) == {name: "plain"}


def test_what_holds_them():
    """Names of settings say what is a key; whatever is not a string stays as it is."""
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
