"""Statements of papers as experiments with verdicts: the machinery, without a paper in it."""
