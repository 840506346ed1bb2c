"""The error that a command shows as one line."""


class UserError(ValueError):
    """Something that the user can put right: one line that says what is wrong, where, and what to do.

    Commands print it without a traceback and end with status 2. Every other error is a defect, of vidjax or of the
    caller's own code, and keeps its traceback.
    """
