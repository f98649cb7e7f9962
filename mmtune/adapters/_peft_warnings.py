"""peft asks transformers for ``is_gradient_checkpointing``, which transformers has renamed: not the user's to mend."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_names_allowed() -> Iterator[None]:
    """That one warning is not shown inside; every other one is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
