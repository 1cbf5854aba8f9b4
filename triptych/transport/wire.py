"""Fetch without a parser of its own on the stream: messages leave as they were encoded and come as bytes."""

from __future__ import annotations

from typing import Any

import grpc

from triptych.v1 import tensor_pb2
from triptych.v1.tensor_pb2_grpc import add_TensorServiceServicer_to_server

_SERVICE = tensor_pb2.DESCRIPTOR.services_by_name["TensorService"]
_FETCH = _SERVICE.methods_by_name["Fetch"].name


def add_tensor_service(servicer: Any, server: grpc.aio.Server) -> None:
    """As the generated `add_TensorServiceServicer_to_server`, but Fetch may write encoded messages too."""
    fetch = grpc.unary_stream_rpc_method_handler(
        servicer.Fetch, tensor_pb2.FetchRequest.FromString, response_serializer=_serialize
    )
    # The first handler that knows a method serves it, but one that is registered goes before all others.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE.full_name, {_FETCH: fetch}),))
    add_TensorServiceServicer_to_server(servicer, server)
    server.add_registered_method_handlers(_SERVICE.full_name, {_FETCH: fetch})


def call_fetch(channel: grpc.aio.Channel, request: tensor_pb2.FetchRequest, timeout_s: float) -> Any:
    """Fetch, whose answers are encoded FetchResponses."""
    method: Any = channel.unary_stream(
        f"/{_SERVICE.full_name}/{_FETCH}", request_serializer=tensor_pb2.FetchRequest.SerializeToString
    )
    return method(request, timeout=timeout_s)


def _serialize(message: tensor_pb2.FetchResponse | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
