"""The exception for errors that the user can correct."""


class UserError(ValueError):
    """An error that the user can correct: one line with what is wrong, where, and what to do.

    Scripts print it without a traceback and exit with status 2. All other exceptions indicate a bug, in vidjax or in
    the caller's code, and keep their traceback.
    """
