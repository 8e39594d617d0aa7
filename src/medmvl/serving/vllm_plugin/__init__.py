"""Plugin for vLLM: `vllm serve FOLDER` answers about images and volumes.

vLLM runs the LLM. Prompts, preprocessing and visual embeddings are ours: they come from `MedMVLProcessor` and the towers of the
checkpoint. vLLM finds `registration.register` by the entry point group `vllm.general_plugins`.
"""
