"""Asks a running Triptych about pictures and videos, and prints where the time went.

triptych serve                                   # in another terminal
python examples/ask.py "What is in the picture?" picture.png
python examples/ask.py "Which picture has more shapes?" a.png b.png
python examples/ask.py "Which way does it move?" clip.mp4
"""

from __future__ import annotations

import argparse

from triptych.client import Client

VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".avi", ".mov")


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask about pictures and videos.")
    parser.add_argument("question")
    parser.add_argument("files", nargs="*", help="pictures and videos")
    parser.add_argument("--endpoint", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    videos = [file for file in arguments.files if file.lower().endswith(VIDEO_ENDINGS)]
    images = [file for file in arguments.files if file not in videos]

    with Client(arguments.endpoint) as client:
        stream = client.stream(arguments.question, images=images, videos=videos, temperature=0.0)
        for piece in stream:
            print(piece, end="", flush=True)
        answer = stream.answer()

    times = answer.timings
    print(f"\n\n{answer.usage.prompt_tokens} prompt tokens, {answer.usage.media_tokens} of them for media")
    print(f"encode {times.encode_s * 1000:.1f} ms, prefill {times.prefill_s * 1000:.1f} ms, ", end="")
    print(f"first token after {times.time_to_first_token_s * 1000:.1f} ms, all after {times.total_s * 1000:.1f} ms")


if __name__ == "__main__":
    main()
