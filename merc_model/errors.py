"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake the user can mend; its message is one line that says what to do.

    The command line prints the line and exits with 2; Python callers see an ordinary exception.
    """
