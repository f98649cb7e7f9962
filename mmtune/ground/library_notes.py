"""Notes of libraries that would bury what a run says: dropped by their words, everything else is left to be seen."""

import logging

NOISE = {
    "bitsandbytes.autograd._functions": "inputs will be cast",  # LLM.int8, at every call of every layer
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # an optional kernel that is not used
}
"""Logger -> the words of its note."""


def silence_library_notes() -> None:
    """Drop the notes of ``NOISE``; call it before the libraries are imported, as often as you like."""
    for name, words in NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Silence) for one in logger.filters):
            logger.addFilter(_Silence(words))


class _Silence(logging.Filter):
    """Drops records whose text holds the words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        return self.words not in str(record.msg)
