"""The errors a user can cause. Each message says what is wrong, where, and what would be right."""


class MmtuneError(ValueError):
    """Base of every error that is the user's to mend: shown without a traceback.

    Attributes:
        exit_code: what a command ends with.
    """

    exit_code = 2


class RecipeError(MmtuneError):
    """A recipe, an override or a command line that cannot mean what it says."""


class DataError(MmtuneError):
    """Data that is missing, unreadable or bad beyond the recipe's ``max_bad_fraction``."""


class BackboneError(MmtuneError):
    """A backbone that cannot be found, read or adapted as asked."""


class CheckpointError(MmtuneError):
    """A checkpoint or run folder that is damaged, incomplete or belongs to another recipe."""


class TrainingError(MmtuneError):
    """A run that was stopped because going on would only waste time: non-finite values, dead parts, no memory."""


class PushError(MmtuneError):
    """What may not leave this machine, or what the hub refuses."""


class NotFinite(TrainingError):
    """A loss or gradient that is no number; nothing was moved by it."""


class MemoryExhausted(TrainingError):
    """One rank ran out of memory; the others do not know, so that rank has to say it."""


class RunStopped(MmtuneError):
    """A run that ended early because it was asked to, with everything it needs to go on saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
