"""What vLLM's CPU build cannot run."""

from __future__ import annotations

from typing import Any

#: Head sizes of vLLM's attention on the CPU (0.32); with another one the engine ends at the first request.
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def vllm_cpu_note(text_config: Any) -> str | None:
    """Return a remark if vLLM's CPU build cannot run an LLM; None if it takes the head size, or the config has none."""
    size, width, heads = (
        getattr(text_config, name, None) for name in ("head_dim", "hidden_size", "num_attention_heads")
    )
    if size is None and isinstance(width, int) and isinstance(heads, int) and heads > 0:
        size = width // heads
    if size is None or size in HEAD_SIZES:
        return None
    known = ", ".join(map(str, HEAD_SIZES))
    return f"The LLM's attention heads have size {size}. vLLM's CPU build cannot run them; it takes {known}."
