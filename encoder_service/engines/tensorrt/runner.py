"""A built engine on the GPU."""

from typing import Any

import torch
from torch import Tensor

from encoder_service.engines.tensorrt.library import ENGINE_FIELD, OTHER_ENGINES, TensorRTLibrary
from encoder_service.engines.tensorrt.log import LastError, library_logger
from triptych.errors import ConfigurationError, InternalError

OUTPUT = "embeddings"


class TensorRTRunner:
    """Runs the graph's engine on the current torch stream; nothing is waited for. All calls come from one thread.

    TensorRT works on the process's current CUDA device, which must be `device`. The memory of activations is taken from
    torch's allocator for the shapes of each call, not for the profile's most.
    """

    def __init__(self, library: TensorRTLibrary, data: bytes, device: torch.device) -> None:
        tensorrt = library.module
        self._last_error = LastError()
        self._logger = library_logger(library, self._last_error)
        self._device = device
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self._unusable(library)
        self._context: Any = self._engine.create_execution_context(
            tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._context is None:
            raise self._unusable(library)
        self._output_dtype = _torch_dtype(tensorrt, self._engine.get_tensor_dtype(OUTPUT))

    def run(self, inputs: dict[str, Tensor]) -> Tensor:
        """The graph's output for its inputs by name. Raises InternalError when TensorRT does not take the work."""
        context = self._context
        # The engine reads raw addresses: each input must lie in one piece until its work is enqueued.
        inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise InternalError(f"TensorRT refuses {name} of the shape {tuple(tensor.shape)}: {self._error()}")
            context.set_tensor_address(name, tensor.data_ptr())
        output = torch.empty(tuple(context.get_tensor_shape(OUTPUT)), dtype=self._output_dtype, device=self._device)
        context.set_tensor_address(OUTPUT, output.data_ptr())
        num_bytes = context.update_device_memory_size_for_shapes()
        # Torch's allocator hands memory on in the order of the stream, so it may be let go of when the work is queued.
        activations = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        context.set_device_memory(activations.data_ptr(), num_bytes)
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise InternalError(f"TensorRT did not run the vision tower: {self._error()}")
        return output

    def _unusable(self, library: TensorRTLibrary) -> ConfigurationError:
        return ConfigurationError(
            f"{library.name} {library.version} cannot load the vision engine on this GPU: {self._error()}. Check the "
            f"driver, {OTHER_ENGINES}",
            field=ENGINE_FIELD,
        )

    def _error(self) -> str:
        return self._last_error.text


def _torch_dtype(tensorrt: Any, dtype: Any) -> torch.dtype:
    known = {tensorrt.float32: torch.float32, tensorrt.float16: torch.float16, tensorrt.bfloat16: torch.bfloat16}
    return known[dtype]
