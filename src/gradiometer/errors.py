"""What a user sees instead of a stack trace."""


class GradiometerError(Exception):
    """A mistake or mishap a user can do something about.

    Args:
        message: one sentence that says what is wrong.
        hint: one sentence that says what to do; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()
