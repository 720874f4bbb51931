"""The errors that end a program with a promised exit status; `utils.cli` prints them."""


class UserError(ValueError):
    """A mistake the user can mend; the message is one sentence naming the file, field or flag."""


class Unsatisfied(Exception):
    """The work is done and kept, but is not what a flag demands; the message is one sentence."""


class Terminated(Exception):
    """The program was told to stop and has saved its work; the message says how far.

    `status` is the exit status: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, message: str, status: int = 143):
        super().__init__(message)
        self.status = status
