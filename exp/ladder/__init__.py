"""The ladder: language models of growing size on bytes of English, one pass."""
