"""Names that differ between the supported versions of transformers (5.16 to 5.24)."""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

#: Name of the key-value cache in arguments and outputs: "cache" since transformers 5.24, "past_key_values" before.
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
