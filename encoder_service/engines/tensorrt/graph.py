"""An ONNX graph put together node by node, its weights in a file beside it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

# Split and ReduceMean with a tensor of axes, as of opset 18; both onnxruntime and TensorRT's parser read it.
OPSET = 18
IR_VERSION = 10
# Weights start at multiples of this, so that a reader may map the file.
ALIGNMENT_BYTES = 4096

ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int32: TensorProto.INT32,
}


@dataclass
class OnnxGraph:
    """Nodes and values by name. Use as a context: the weights file is written while the graph grows.

    The protocol buffer that holds an ONNX graph ends at 2 GiB, so weights stand in `weights_path`, in the folder of the
    graph's own file, and are written one by one: no second copy of the tower is ever in memory.
    """

    weights_path: Path
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def __enter__(self) -> "OnnxGraph":
        self._weights = self.weights_path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._weights.close()

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[str | int]) -> str:
        """A named dimension is dynamic; equal names are equal sizes."""
        self.inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))
        return name

    def output(self, name: str, dtype: torch.dtype, shape: Sequence[str | int]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))

    def weight(self, name: str, values: Tensor) -> str:
        """Writes `values` behind the weights before it."""
        self._weights.seek(-(-self._weights.tell() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        offset = self._weights.tell()
        flat = values.detach().contiguous().reshape(-1).view(torch.uint8)
        flat.numpy().tofile(self._weights)
        tensor = TensorProto(name=name, data_type=ELEMENT_TYPES[values.dtype], dims=list(values.shape))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.weights_path.name), ("offset", offset), ("length", flat.numel())):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A constant that names a shape, axes or sizes: int64, inside the graph. Made once per name."""
        if all(known.name != name for known in self.initializers):
            self.initializers.append(onnx.numpy_helper.from_array(np.asarray(values, dtype=np.int64), name))
        return name

    def scalar(self, name: str, value: float, dtype: torch.dtype) -> str:
        """A constant of one element, inside the graph. Made once per name."""
        if all(known.name != name for known in self.initializers):
            self.initializers.append(helper.make_tensor(name, ELEMENT_TYPES[dtype], [], [value]))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One node with one output, whose name is also the node's."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def split(self, value: str, sizes: Sequence[int], axis: int, outputs: Sequence[str]) -> Sequence[str]:
        """Cuts `value` along `axis` into parts of `sizes`."""
        lengths = self.integers("sizes_" + "_".join(map(str, sizes)), sizes)
        self.nodes.append(helper.make_node("Split", [value, lengths], list(outputs), name=outputs[0], axis=axis))
        return outputs

    def reshape(self, value: str, shape: Sequence[int], output: str) -> str:
        """`shape` with at most one -1, which is worked out; no 0."""
        return self.node(
            "Reshape", [value, self.integers("shape_" + "_".join(map(str, shape)), shape)], output, allowzero=1
        )

    def cast(self, value: str, dtype: torch.dtype, output: str) -> str:
        return self.node("Cast", [value], output, to=ELEMENT_TYPES[dtype])

    def save(self, path: Path, name: str, producer: str) -> None:
        """Checks the graph and writes it. `path` must be in the folder of the weights."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name=producer
        )
        self._weights.flush()
        os.fsync(self._weights.fileno())
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)
