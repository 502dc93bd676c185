"""Exceptions for users."""


class ConfigError(Exception):
    """An error in the configuration or the arguments; the text is for the user."""


class NoCompiler(ConfigError):
    """torch.compile lacks the compiler that it calls on this machine."""
