"""Grokking of modular arithmetic."""
