"""The three text encoders and tokenizers of a preset's SD3 pipeline.

The decoder's prompt never changes, so all that they have to be is small, loadable and complete.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

from uniar.decoder_parts import DECODER_PROMPT, LENGTH_KEY
from uniar.presets.processor import added_token, write_json
from uniar.presets.weights import randomize

TEXT_LENGTH = 16
"""What a tokenizer lets through: the whole constant prompt, a token per word. In the released model it is 77 and
512."""
WHOLE_PROMPT_LENGTH = 3
"""What it needs to let through when the prompt is one token, with a start and an end."""

T5_SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def write_text_encoders(folder: Path, joint_dim: int, seed: int, *, whole_prompt: bool = False) -> None:
    """Writes tokenizer, tokenizer_2, tokenizer_3 and their text encoders into the pipeline `folder`.

    The CLIP encoders share `joint_dim` between them, the T5 encoder is as wide; so is the pooled projection. With
    `whole_prompt` the constant prompt is a single token of each tokenizer: the SD3 transformer, which spends as much on
    a token of text as on one of the image, then sees 6 of them instead of 32.
    """
    for suffix, activation, pad_token in (("", "quick_gelu", "<|endoftext|>"), ("_2", "gelu", "!")):
        vocabulary = _write_clip_tokenizer(folder / f"tokenizer{suffix}", pad_token, whole_prompt)
        encoder = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=joint_dim // 2,
                projection_dim=joint_dim // 2,
                intermediate_size=joint_dim,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=_text_length(whole_prompt),
                hidden_act=activation,
                bos_token_id=vocabulary["<|startoftext|>"],
                eos_token_id=vocabulary["<|endoftext|>"],
                pad_token_id=vocabulary[pad_token],
            )
        )
        randomize(encoder, seed, f"text_encoder{suffix}")
        encoder.save_pretrained(folder / f"text_encoder{suffix}")
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=_write_t5_tokenizer(folder / "tokenizer_3", whole_prompt),
            d_model=joint_dim,
            d_kv=joint_dim // 4,
            d_ff=2 * joint_dim,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
    randomize(encoder, seed, "text_encoder_3")
    encoder.save_pretrained(folder / "text_encoder_3")


def _text_length(whole_prompt: bool) -> int:
    return WHOLE_PROMPT_LENGTH if whole_prompt else TEXT_LENGTH


def _write_clip_tokenizer(folder: Path, pad_token: str, whole_prompt: bool) -> dict[str, int]:
    """CLIP's byte-level BPE, with the merges that make each word of the decoder's prompt one token. Returns its
    vocabulary."""
    folder.mkdir(parents=True)
    pipeline = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=1024, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator([DECODER_PROMPT], trainer)
    tokenizer.model.save(str(folder))
    _, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()

    # CLIP's order: every byte, every byte that ends a word, the merges, the two special tokens.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    tokens = [*symbols, *(merge.replace(" ", "", 1) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    write_json(folder / "vocab.json", vocabulary)
    ends = ("<|startoftext|>", "<|endoftext|>")
    roles = {"bos_token": ends[0], "eos_token": ends[1], "unk_token": ends[1]}
    specials = {str(vocabulary[token]): added_token(token, normalized=True) for token in ends}
    if pad_token not in ends:
        specials[str(vocabulary[pad_token])] = added_token(pad_token)
    if whole_prompt:
        vocabulary[DECODER_PROMPT] = len(vocabulary)
        specials[str(vocabulary[DECODER_PROMPT])] = added_token(DECODER_PROMPT, special=False)
    write_json(
        folder / "special_tokens_map.json",
        {role: added_token(token, special=None, normalized=True) for role, token in roles.items()}
        | {"pad_token": pad_token},
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": specials,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "extra_special_tokens": {},
            "model_max_length": _text_length(whole_prompt),
            "pad_token": pad_token,
            "tokenizer_class": "CLIPTokenizer",
            **roles,
        },
    )
    return vocabulary


def _write_t5_tokenizer(folder: Path, whole_prompt: bool) -> int:
    """A unigram tokenizer of the words of the decoder's prompt and of single characters. Returns its size."""
    folder.mkdir(parents=True)
    words = [f"▁{word}" for word in DECODER_PROMPT.split()]
    characters = ["▁", *(chr(code) for code in range(0x21, 0x7F))]
    pieces = [(token, 0.0) for token in T5_SPECIAL_TOKENS]
    # Log-probabilities: any word costs less than spelling it.
    pieces += [(character, -10.0) for character in characters] + [(word, -5.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(list(T5_SPECIAL_TOKENS))
    if whole_prompt:
        tokenizer.add_tokens([DECODER_PROMPT])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(
        folder / "special_tokens_map.json",
        {role: added_token(token, special=None) for role, token in roles.items()},
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(number): added_token(token) for number, token in enumerate(T5_SPECIAL_TOKENS)},
            "additional_special_tokens": [],
            "clean_up_tokenization_spaces": False,
            "extra_ids": 0,
            "extra_special_tokens": {},
            LENGTH_KEY: _text_length(whole_prompt),
            "model_max_length": _text_length(whole_prompt),
            "tokenizer_class": "T5Tokenizer",
            **roles,
        },
    )
    return tokenizer.get_vocab_size()
