"""Names and shapes of the vision tower's tensors, as checkpoints are published."""

from triptych.models.qwen2_5_vl.config import VisionConfig


def tower_weight_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor by its name without `visual.`; weights of linears are [outputs, inputs]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    merged = hidden * config.spatial_merge_size**2
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (hidden, config.patch_dim),
        "merger.ln_q.weight": (hidden,),
        **_linear("merger.mlp.0", merged, merged),
        **_linear("merger.mlp.2", config.out_hidden_size, merged),
    }
    for index in range(config.depth):
        block = f"blocks.{index}"
        shapes |= {f"{block}.norm1.weight": (hidden,), f"{block}.norm2.weight": (hidden,)}
        shapes |= _linear(f"{block}.attn.qkv", 3 * hidden, hidden) | _linear(f"{block}.attn.proj", hidden, hidden)
        shapes |= _linear(f"{block}.mlp.gate_proj", inner, hidden) | _linear(f"{block}.mlp.up_proj", inner, hidden)
        shapes |= _linear(f"{block}.mlp.down_proj", hidden, inner)
    return shapes


def _linear(name: str, num_outputs: int, num_inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (num_outputs, num_inputs), f"{name}.bias": (num_outputs,)}
