"""Qwen2.5-VL: configuration, media processing, mRoPE, vision tower, language model, weights and prompt.

Import from the modules: nothing is imported here, so that reading a configuration does not load torch and
building a tower does not load transformers.
"""
