"""StageStubs: the generated stubs of one channel, made once: making them costs as much as a call."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import grpc

from triptych.rpc.channels import ChannelPool
from triptych.v1 import encoder_pb2_grpc, language_pb2_grpc, tensor_pb2_grpc


class StageStubs:
    """What an actor of any stage may be asked."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
        self.language = language_pb2_grpc.LanguageServiceStub(channel)
        self.tensor = tensor_pb2_grpc.TensorServiceStub(channel)


class StubPool:
    """Stubs by endpoint; those of a channel that was dropped are forgotten with it."""

    def __init__(self, channels: ChannelPool) -> None:
        self._channels = channels
        self._stubs: WeakKeyDictionary[grpc.aio.Channel, StageStubs] = WeakKeyDictionary()

    def get(self, endpoint: str) -> StageStubs:
        """Raises Unavailable once the channels are closed."""
        channel = self._channels.get(endpoint)
        stubs = self._stubs.get(channel)
        if stubs is None:
            stubs = self._stubs[channel] = StageStubs(channel)
        return stubs
