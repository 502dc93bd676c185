"""What the harness raises for a user to read."""


class ConfigError(Exception):
    """Something in the configuration or the arguments is wrong; the text is for the user."""
