"""The error that a person can act on."""


class EvaluationError(Exception):
    """A run, a setting or data cannot be evaluated; names the value, the choices and the remedy."""
