"""The exceptions that this package raises for input that a person has to put right."""


class DataError(Exception):
    """Data cannot be found, reached, read or trusted.

    The message names the URL or key, the value that was found, and what to do about it.
    """


class NotFound(DataError):
    """The store answered, and there is no such object, bucket or file."""


class Refused(DataError):
    """The store answered that this object, or all that it has, is not for these credentials."""


class Unreadable(DataError):
    """The bytes of one file came, and aren't what they should be: others may be good."""


class StoreUnavailable(DataError):
    """The store can't be reached, or fails for longer than it was asked again: it may be there later."""
