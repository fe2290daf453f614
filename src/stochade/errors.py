"""Every error a caller can cause, by name.

Each message says what was expected, what came and what to do next, and is raised before any compute.
All derive from `StochadeError` (a `ValueError`), so one `except` catches them; the command line turns
them into one line and exit status 2.
"""


class StochadeError(ValueError):
    """A misuse, told as: what was expected, what came, the next step.

    Args:
        expected: what the function accepts.
        got: what it was given.
        hint: the next step for the caller.
    """

    def __init__(self, expected: str, got: str, hint: str = ""):
        self.expected, self.got, self.hint = expected, got, hint
        super().__init__(f"expected {expected}, got {got}" + (f"; {hint}" if hint else ""))

    def __reduce__(self):  # exceptions cross process boundaries by their arguments
        return type(self), (self.expected, self.got, self.hint)


class ImagesError(StochadeError):
    """Images of the wrong type, range or shape."""


class LabelsError(StochadeError):
    """Labels of the wrong type, range or count."""


class BudgetError(StochadeError):
    """A threat's budget, a number of steps or draws, or a step size that makes no sense."""


class ModelError(StochadeError):
    """A model that cannot be called on these images, or is in a state that no evaluation can use."""


class LogitsError(StochadeError):
    """Model outputs that are not finite logits [N,K]."""


class GradientError(StochadeError):
    """No gradient reaches the images."""


class DataError(StochadeError):
    """A data set that is missing, unreadable or not in a known layout."""


class CheckpointError(StochadeError):
    """A checkpoint that is missing, truncated, altered or describes an unknown network."""


class RecordsError(StochadeError):
    """Records that are missing, do not belong together or do not hold what was asked for."""


class ThreatError(StochadeError):
    """Inputs that leave their threat, or scores that would mix threats."""


class UsageError(StochadeError):
    """A command-line or registry name that nothing answers to."""
