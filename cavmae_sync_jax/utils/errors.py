"""The errors that end a program with a documented exit status; `utils.cli` prints them."""


class UserError(ValueError):
    """A mistake that the user can fix; the message is one sentence with the file, field or flag."""


class Unsatisfied(Exception):
    """The work is done and kept, but is not what a flag demands; the message is one sentence."""


class Terminated(Exception):
    """The program had to stop and has saved its work; the message says how far.

    `status` is the exit status: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, message: str, status: int = 143):
        super().__init__(message)
        self.status = status
