"""Modular-addition grokking."""
