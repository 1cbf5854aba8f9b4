"""The byte-level BPE tokenizer: 1,002 tokens learned from the questions, the answers and some general English, and
Qwen's 22 special tokens after them. The same text gives the same tokenizer every time."""

from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tools.tiny_model.corpus import GENERAL_ENGLISH
from triptych.demo import questions
from triptych.demo.pictures import random_movie, random_scene

VOCABULARY_SIZE = 1024
# In the order of Qwen2.5's tokenizer. The first fourteen are special (left out of decoded text), the others plain.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
NUM_HIDDEN_WHEN_DECODED = 14
DEFAULT_SYSTEM = "You are a helpful assistant."
# Qwen2's way to cut text before BPE: contractions, words with a leading mark, single digits, marks, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- macro part(item) -%}
{%- if item['type'] == 'image' or 'image' in item or 'image_url' in item -%}
{%- set seen.images = seen.images + 1 -%}
{%- if add_vision_id %}Picture {{ seen.images }}: {% endif -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif item['type'] == 'video' or 'video' in item -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id %}Video {{ seen.videos }}: {% endif -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in item -%}
{{- item['text'] -}}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{{- part(item) -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def token_id(special: str) -> int:
    """Id of one of the special tokens."""
    return VOCABULARY_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(special)


def build_tokenizer() -> Tokenizer:
    """Learns the vocabulary from text that the question code writes itself."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    num_learned = VOCABULARY_SIZE - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=num_learned, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    if tokenizer.get_vocab_size() != num_learned:
        raise ValueError(f"the text gave {tokenizer.get_vocab_size()} tokens, expected {num_learned}: add to corpus.py")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS[:NUM_HIDDEN_WHEN_DECODED]])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in SPECIAL_TOKENS[NUM_HIDDEN_WHEN_DECODED:]])
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """`tokenizer_config.json`, with the chat template."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token_id(name)): {
                "content": name,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": index < NUM_HIDDEN_WHEN_DECODED,
            }
            for index, name in enumerate(SPECIAL_TOKENS)
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[1:NUM_HIDDEN_WHEN_DECODED]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }


def _training_text() -> list[str]:
    rng = Random(1)
    lines = []
    for _ in range(1500):
        scenes = [random_scene(rng, 112, 112, rng.randint(1, 5)) for _ in range(2)]
        movie = random_movie(rng, 112, 112, 4)
        asked = [ask(rng, scenes[0]) for ask in questions.PICTURE_QUESTIONS.values()]
        asked += [ask(rng, scenes) for ask in questions.PAIR_QUESTIONS.values()]
        asked += [ask(rng, movie) for ask in questions.VIDEO_QUESTIONS.values()]
        asked += [ask(rng) for ask in questions.TEXT_QUESTIONS.values()]
        lines += [f"user\n{question.text}\nassistant\n{question.answer}" for question in asked if question is not None]
    return [*lines, *([f"system\n{DEFAULT_SYSTEM}"] * 200), *(GENERAL_ENGLISH.splitlines() * 40)]
