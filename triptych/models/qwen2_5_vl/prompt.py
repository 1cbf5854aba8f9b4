"""From chat messages to the token ids of a prompt, with a placeholder for each embedding. Used by the router alone."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triptych.errors import InvalidRequest, ModelError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.detokenizer import IncrementalDetokenizer, TokenBytes
from triptych.models.qwen2_5_vl.grid import MediaGrid
from triptych.models.qwen2_5_vl.json_file import read_json_object

__all__ = [
    "ChatMessage",
    "IncrementalDetokenizer",
    "MediaPart",
    "Placement",
    "Prompt",
    "PromptBuilder",
    "TextPart",
]

ROLES = ("system", "user", "assistant")
# Older checkpoints keep the chat template here; newer ones where transformers finds it by itself.
TEMPLATE_NAME = "chat_template.json"
# `is_far_longer` tokenizes that many characters at a time.
PIECE_CHARACTERS = 16_384
MAX_BYTES_A_CHARACTER = 4  # in UTF-8; a token is one byte or more


@dataclass(frozen=True)
class TextPart:
    """Text of a message."""

    text: str


@dataclass(frozen=True)
class MediaPart:
    """The place of a picture or video in a message. The parts of all messages are in the order of the media."""

    kind: Literal["image", "video"]


@dataclass(frozen=True)
class ChatMessage:
    """One message of a chat: `role` is system, user or assistant."""

    role: str
    content: tuple[TextPart | MediaPart, ...]


@dataclass(frozen=True)
class Placement:
    """Where the embeddings of media item `media_index` go: `length` tokens from `offset` on."""

    media_index: int
    offset: int
    length: int


@dataclass(frozen=True)
class Prompt:
    """Token ids with placeholders expanded, and one placement per media item, in prompt order."""

    token_ids: tuple[int, ...]
    placements: tuple[Placement, ...]


class PromptBuilder:
    """The chat template and tokenizer of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        # Imported here: of all processes only the router pays for transformers.
        from transformers import AutoTokenizer

        self._config = ModelConfig.from_folder(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} has no tokenizer that can be read: {error}") from error
        self._template = self._tokenizer.chat_template or _template_of_older_checkpoint(folder)
        special = {id_: token.content for id_, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._special = special
        self._special_tokens = tuple(special.values())
        self._token_bytes = TokenBytes(self._tokenizer, special)
        self._require_special(special)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The text of a chat up to where the answer begins, one placeholder per picture or video.

        Raises InvalidRequest for no messages, an unknown role, empty content, or text that spells a special token.
        """
        self._check(messages)
        conversation = [{"role": message.role, "content": _template_content(message)} for message in messages]
        rendered: str = self._tokenizer.apply_chat_template(
            conversation, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def build(self, messages: Sequence[ChatMessage], media: Sequence[MediaGrid]) -> Prompt:
        """The prompt of a chat whose pictures and videos, in order, are `media`.

        Raises InvalidRequest as `render` does, and when the parts of the messages are not those of `media`.
        """
        rendered = self.render(messages)
        kinds = [part.kind for message in messages for part in message.content if isinstance(part, MediaPart)]
        if len(kinds) != len(media):
            raise InvalidRequest(
                f"the messages have {len(kinds)} placeholders for pictures and videos, expected one for each of the "
                f"{len(media)} that are attached",
                field="messages",
            )
        for index, (kind, item) in enumerate(zip(kinds, media, strict=True)):
            if kind != item.kind:
                raise InvalidRequest(f"media {index} is a {item.kind}, expected the {kind} of its place", field="media")
        return self._expand(self._token_ids(rendered), media)

    def is_far_longer(self, text: str, num_tokens: int) -> bool:
        """Does `text` have more than 1.5 times `num_tokens`? Costs no more than that many tokens do.

        Tokenizing takes 250 times a text's size in memory, and a second for each MiB. Pieces have a few tokens more
        than the whole where they are cut, hence the margin.
        """
        most = 1.5 * num_tokens
        if len(text) * MAX_BYTES_A_CHARACTER <= most:
            return False
        num_counted = 0
        for start in range(0, len(text), PIECE_CHARACTERS):
            piece = text[start : start + PIECE_CHARACTERS]
            num_counted += len(self._token_ids(piece))
            if num_counted > most:
                return True
        return False

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of whole sequences of tokens, special tokens left out."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def bytes_of(self, token_id: int) -> bytes:
        """What a token stands for: bytes of text, or the name of a special token."""
        return self._token_bytes[token_id] or (self._special.get(token_id, "")).encode()

    def detokenizer(self) -> IncrementalDetokenizer:
        """A detokenizer for the tokens of one answer."""
        return IncrementalDetokenizer(self._token_bytes)

    def _token_ids(self, text: str) -> list[int]:
        """Past transformers' own layer, which takes as long as tokenizing a short text."""
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _expand(self, rendered_ids: Sequence[int], media: Sequence[MediaGrid]) -> Prompt:
        """Repeats each placeholder as often as its item has embeddings."""
        pads = {"image": self._config.image_token_id, "video": self._config.video_token_id}
        places = [index for index, token in enumerate(rendered_ids) if token in pads.values()]
        if [rendered_ids[place] for place in places] != [pads[item.kind] for item in media]:
            raise ModelError(
                f"the chat template wrote {len(places)} placeholders for {len(media)} pictures and videos, expected "
                "one each, of its kind; check chat_template and the token ids in config.json"
            )
        token_ids: list[int] = []
        placements = []
        copied = 0
        for media_index, (place, item) in enumerate(zip(places, media, strict=True)):
            token_ids += rendered_ids[copied:place]
            length = item.grid.num_tokens(self._config.vision.spatial_merge_size)
            placements.append(Placement(media_index, len(token_ids), length))
            token_ids += [pads[item.kind]] * length
            copied = place + 1
        token_ids += rendered_ids[copied:]
        return Prompt(tuple(token_ids), tuple(placements))

    def _require_special(self, special: Mapping[int, str]) -> None:
        """A client's text could spell a placeholder that the tokenizer took for text."""
        for name in ("image_token_id", "video_token_id"):
            if getattr(self._config, name) not in special:
                raise ModelError(f"{name} of config.json is {getattr(self._config, name)}, which is no special token")

    def _check(self, messages: Sequence[ChatMessage]) -> None:
        if not messages:
            raise InvalidRequest("there are no messages, expected at least one", field="messages")
        for index, message in enumerate(messages):
            field = f"messages[{index}]"
            if message.role not in ROLES:
                raise InvalidRequest(
                    f"{field}.role is {message.role[:40]!r}, expected one of {', '.join(ROLES)}", field=f"{field}.role"
                )
            if not any(isinstance(part, MediaPart) or part.text for part in message.content):
                raise InvalidRequest(
                    f"{field}.content is empty, expected text, a picture or a video", field=f"{field}.content"
                )
            text = "".join(part.text if isinstance(part, TextPart) else "\0" for part in message.content)
            self._check_text(text, f"{field}.content")

    def _check_text(self, text: str, field: str) -> None:
        """A client's text must stay text. `text` has all parts of a message, so that a token can't be split over two;
        it is looked at in the tokenizer's normal form too, so that a token can't be disguised."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{field} is not valid Unicode: {error.reason}", field=field) from error
        for form in {text, unicodedata.normalize("NFC", text)}:
            for token in self._special_tokens:
                if token in form:
                    raise InvalidRequest(
                        f"{field} contains the special token {token}, expected plain text: attach pictures and videos "
                        "as parts of their own",
                        field=field,
                    )


def _template_content(message: ChatMessage) -> list[dict[str, str]]:
    """A message's parts in the form that chat templates read."""
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": part.kind}
        for part in message.content
    ]


def _template_of_older_checkpoint(folder: Path) -> str:
    if (folder / TEMPLATE_NAME).is_file():
        template = read_json_object(folder / TEMPLATE_NAME).get("chat_template")
        if isinstance(template, str):
            return template
    raise ModelError(
        f"{folder} has no chat template, expected chat_template.jinja, {TEMPLATE_NAME} or the key 'chat_template' in "
        "tokenizer_config.json"
    )
