"""What is asked: prompts of a known length, pictures that nobody has seen before, or a recorded trace."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from triptych.bench.arrivals import arrival_times
from triptych.errors import ConfigurationError

_JPEG_QUALITY = 85
# Side of the blocks that a picture's coarse pattern has, in pixels: files of the size that photographs have.
_BLOCK_PIXELS = 16
_GRAIN = 6
_MAX_TRACE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class WorkloadShape:
    """num_input_tokens: of the text alone, without the chat template. image_sizes: (width, height) to choose from."""

    num_input_tokens: int = 64
    num_output_tokens: int = 128
    num_images: int = 0
    image_sizes: Sequence[tuple[int, int]] = ((1280, 720),)
    # Lengths are drawn uniformly from [n (1 - r), n (1 + r)].
    range_ratio: float = 0.0


@dataclass(frozen=True)
class BenchRequest:
    """arrival_s: seconds after the start of the run. images: JPEG files."""

    arrival_s: float
    prompt: str
    images: tuple[bytes, ...]
    num_output_tokens: int


class Workload:
    """Makes requests; the same seed makes the same ones. No two pictures of a seed are alike."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = Random(seed)
        self._words = _plain_token_ids(tokenizer)

    def requests(self, num_requests: int, shape: WorkloadShape, rate: float, burstiness: float) -> list[BenchRequest]:
        times = arrival_times(num_requests, rate, burstiness, self._random)
        return [self._request(time, shape) for time in times]

    def from_trace(self, path: Path, shape: WorkloadShape, num_requests: int, speed: float) -> list[BenchRequest]:
        """Requests of a JSONL trace, at most `num_requests`. Keys of a line: timestamp (seconds; or milliseconds as
        in the Mooncake traces when timestamp_ms is given instead), input_length, output_length, num_images; what a
        line lacks comes from `shape`. `speed` 2 plays it twice as fast.

        Raises ConfigurationError naming the line that does not fit.
        """
        requests: list[BenchRequest] = []
        for number, line in enumerate(_lines(path), 1):
            if len(requests) >= num_requests:
                break
            try:
                record = json.loads(line)
                seconds = (
                    float(record["timestamp_ms"]) / 1e3 if "timestamp_ms" in record else float(record["timestamp"])
                )
                own = WorkloadShape(
                    num_input_tokens=int(record.get("input_length", shape.num_input_tokens)),
                    num_output_tokens=int(record.get("output_length", shape.num_output_tokens)),
                    num_images=int(record.get("num_images", shape.num_images)),
                    image_sizes=shape.image_sizes,
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigurationError(
                    f"{path}, line {number}: {error!r}; expected a JSON object with timestamp or timestamp_ms",
                    field="trace",
                ) from None
            requests.append(self._request(seconds / speed, own))
        first_s = min((request.arrival_s for request in requests), default=0.0)
        return [
            BenchRequest(request.arrival_s - first_s, request.prompt, request.images, request.num_output_tokens)
            for request in sorted(requests, key=lambda request: request.arrival_s)
        ]

    def _request(self, arrival_s: float, shape: WorkloadShape) -> BenchRequest:
        images = (random_jpeg(*self._random.choice(shape.image_sizes), self._random) for _ in range(shape.num_images))
        return BenchRequest(
            arrival_s=arrival_s,
            prompt=self._text(self._draw(shape.num_input_tokens, shape.range_ratio)),
            images=tuple(images),
            num_output_tokens=self._draw(shape.num_output_tokens, shape.range_ratio),
        )

    def _draw(self, length: int, range_ratio: float) -> int:
        low, high = math.floor(length * (1 - range_ratio)), math.ceil(length * (1 + range_ratio))
        return max(1, self._random.randint(low, high))

    def _text(self, num_tokens: int) -> str:
        """Text of that many tokens, or one or two fewer where neighbours merge: text of random ids does not always
        come back as the same ids."""
        ids = self._random.choices(self._words, k=num_tokens)
        text: str = self._tokenizer.decode(ids)
        for _ in range(4):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == num_tokens:
                break
            ids = ids[:num_tokens] + self._random.choices(self._words, k=max(0, num_tokens - len(ids)))
            text = self._tokenizer.decode(ids)
        return text


def random_jpeg(width: int, height: int, random: Random) -> bytes:
    """A JPEG file with coarse structure and fine grain, so that decoding it costs what a photograph costs."""
    generator = np.random.default_rng(random.getrandbits(64))
    coarse_size = (max(2, height // _BLOCK_PIXELS), max(2, width // _BLOCK_PIXELS), 3)
    coarse = Image.fromarray(generator.integers(0, 256, coarse_size, dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.integers(-_GRAIN, _GRAIN + 1, (height, width, 1), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _plain_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that stand for text of their own: no special token may get into a prompt by chance."""
    special = set(tokenizer.get_added_tokens_decoder())
    ids = [i for i in range(tokenizer.get_vocab_size()) if i not in special and tokenizer.decode([i]).strip().isalpha()]
    if not ids:
        raise ConfigurationError("the tokenizer has no token that is a word", field="tokenizer")
    return ids


def _lines(path: Path) -> Iterator[str]:
    try:
        if path.stat().st_size > _MAX_TRACE_BYTES:
            raise ConfigurationError(f"{path} has more than {_MAX_TRACE_BYTES} bytes", field="trace")
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--trace {path}: {error}", field="trace") from None
