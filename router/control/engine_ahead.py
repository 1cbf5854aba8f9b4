"""The door from the command line to the encoder's engine builder: services meet in this folder alone."""

from encoder_service.engines.tensorrt.ahead import build_ahead

__all__ = ["build_ahead"]
