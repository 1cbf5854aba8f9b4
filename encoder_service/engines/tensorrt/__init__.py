"""The vision tower as a TensorRT engine: an ONNX graph, a builder, a cache of built engines, and the engine itself.

Nothing here imports onnx, tensorrt or tensorrt_rtx before it is used: all three are optional.
"""
