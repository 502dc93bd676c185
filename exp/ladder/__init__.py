"""The ladder: language models of growing size on English text, one pass."""
