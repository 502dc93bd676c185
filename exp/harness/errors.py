"""Exceptions for users."""


class ConfigError(Exception):
    """An error in the configuration or the arguments; the text is for the user."""
