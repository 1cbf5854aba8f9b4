"""Asks a running Triptych.

with Client("127.0.0.1:50051") as client:
    print(client.ask("what is this?", images=["a.png"]).text)
"""

from triptych.client.answer import Answer, Choice
from triptych.client.asynchronous import AsyncAnswerStream, AsyncClient
from triptych.client.blocking import AnswerStream, Client
from triptych.client.content import assistant, image, system, user, video
from triptych.client.response_format import json_object, json_schema, one_of, regex

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "Choice",
    "Client",
    "assistant",
    "image",
    "json_object",
    "json_schema",
    "one_of",
    "regex",
    "system",
    "user",
    "video",
]
