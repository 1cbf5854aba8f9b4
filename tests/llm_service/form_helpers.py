"""A tokenizer for the small random model: printable characters and a few pairs of them, 100 tokens and EOS."""

from __future__ import annotations

from pathlib import Path

from tiny_qwen import EOS
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

VOCAB_SIZE = 128
PAIRS = ("12", "34", "ab", "fo")
# In the order of their ids; the space is written as byte-level vocabularies have it.
TOKENS = [chr(code) for code in range(33, 127)] + ["Ġ", *PAIRS]


def write_tokenizer(folder: Path) -> Path:
    """tokenizer.json of a byte-level BPE vocabulary whose text tokens are 0 to 98."""
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(BPE(vocabulary, [(pair[0], pair[1]) for pair in PAIRS]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    special = [AddedToken(f"<|{index}|>", special=True) for index in range(len(TOKENS), EOS + 1)]
    tokenizer.add_special_tokens(special)
    assert tokenizer.token_to_id(f"<|{EOS}|>") == EOS
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")  # not read here, but a checkpoint has them
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def text_of(token_ids: tuple[int, ...]) -> str:
    """What the tokens say, without those that are none of text."""
    return "".join(TOKENS[token] for token in token_ids if token < len(TOKENS)).replace("Ġ", " ")
