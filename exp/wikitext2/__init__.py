"""Wikitext-2 with a small Qwen3."""
