"""The one place where sound files become waveforms: header first, by allow-list, always mono float32, never guessed.

Read through libsndfile, resampled by the SoX resampler; both come with the extra ``mmtune[audio]`` and neither is
imported before a sound is. Letters: T samples of a waveform, C channels.
"""

import importlib.util
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.ground.records import FileReference

FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3")
"""Formats that are opened, by libsndfile's names (OGG is Vorbis or Opus)."""

SOUND_SUFFIXES = frozenset(
    (".wav", ".wave", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf")
    + (".flac", ".ogg", ".oga", ".opus", ".mp3")
    + (".m4a", ".aac", ".wma", ".amr", ".webm")
)
"""Files that are taken for sounds. Formats that are not allowed are among them: listed as bad, not passed over."""

SAMPLE_LIMIT = 2**26
"""Most samples of all channels together, 67 million: 256 MiB as float32, 11 minutes of stereo at 48 kHz."""

RATES = (1_000, 768_000)
"""Lowest and highest sampling rate in Hz; what lies outside is a damaged header."""

LOUDEST = 100.0
"""Full scale is 1 and floats may pass it; a float file beyond this holds unscaled integers."""

UNKNOWN_FRAMES = 2**60
"""libsndfile gives a larger number where a header leaves the length open, as FLAC written into a pipe does."""

PACKAGES = ("soundfile", "soxr")

_OTHER_CONTENT = (
    (b"#!AMR", "an AMR recording"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM film"),
    (b"0&\xb2u", "a Windows Media file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"PK\x03\x04", "a zip archive"),
)

_CHUNKS = {b"RIFF": ("<4sI", b"data"), b"FORM": (">4sI", b"SSND")}
"""First word of a file of chunks -> how a chunk begins, and the name of the one that holds the sound."""

_UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF)
"""What writers into a pipe put where a length should stand."""


@dataclass(frozen=True)
class Sound:
    """A decoded sound.

    Attributes:
        waveform: float32[T], mono, full scale is -1 to 1.
        rate: samples per second.
    """

    waveform: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.waveform) / self.rate

    def at(self, rate: int) -> np.ndarray:
        """The waveform float32[T'] at another rate, T' = T x rate / self.rate rounded, at least 1."""
        if rate == self.rate:
            return self.waveform
        import soxr

        changed: np.ndarray = soxr.resample(self.waveform, self.rate, rate, quality="HQ")
        wanted = max(1, round(len(self.waveform) * rate / self.rate))
        padded = np.pad(changed, (0, max(0, wanted - len(changed))))
        return np.ascontiguousarray(padded[:wanted], dtype=np.float32)


@dataclass(frozen=True)
class SoundFile(FileReference):
    """A reference to a sound file."""

    modality: ClassVar[str] = "audio"
    noun: ClassVar[str] = "sound"

    def read(self) -> Sound:
        """The decoded sound.

        Raises:
            DataError: as `read_sound`.
        """
        return read_sound(Path(self.key), self.where)

    def check(self) -> str | None:
        """Why it cannot be read, as far as the header tells, or None; safe in threads."""
        return check_sound_header(self.key)


def require_packages() -> None:
    """See that sounds can be read at all.

    Raises:
        DataError: a package of ``mmtune[audio]`` is missing, or libsndfile is.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"reading sounds needs {' and '.join(missing)}: pip install 'mmtune[audio]'")
    try:
        import soundfile  # noqa: F401
    except OSError as error:
        raise DataError(f"soundfile is installed, but its library libsndfile does not load: {error}") from error


def read_sound(source: Path | bytes | BinaryIO, where: str, *, max_samples: int = SAMPLE_LIMIT) -> Sound:
    """Decode one sound to mono float32: channels are averaged, integers scaled to -1 to 1, the rate kept.

    Args:
        source: a path, the file's bytes, or an open binary file.
        where: what the error calls it.
        max_samples: refuse more than this many (all channels together) before decoding.

    Raises:
        DataError: ``where: reason`` for what is missing, empty, cut short, damaged, too long, not finite or of another
            format.
    """
    try:
        with _opened(source) as file, _header(file, max_samples) as sound:
            return Sound(_mono(_decode(sound)), int(sound.samplerate))
    except _Unreadable as problem:
        raise DataError(f"{where}: {problem}") from None


def check_sound_header(path: Path | str, *, max_samples: int = SAMPLE_LIMIT) -> str | None:
    """Why the sound cannot be read, as far as its header tells, or None. Decodes nothing; safe in threads."""
    try:
        with _opened(Path(path)) as file, _header(file, max_samples):
            return None
    except _Unreadable as problem:
        return str(problem)


class _Unreadable(Exception):
    """A reason of the form ``kind: detail``; reports count by the kind."""


class _Memory(io.BytesIO):
    """Bytes whose ``seek`` never raises: libsndfile asks for places before the start of damaged files, and an error
    in a function that C calls would only be printed."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


@contextmanager
def _opened(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield _Memory(source)
    elif isinstance(source, Path):
        try:
            file: Any = source.open("rb", buffering=0)  # libsndfile goes on where the descriptor stands
        except (FileNotFoundError, NotADirectoryError):
            raise _Unreadable("no such file") from None
        except IsADirectoryError:
            raise _Unreadable("a folder, not a sound") from None
        except (OSError, ValueError) as problem:
            raise _Unreadable(f"cannot be opened: {getattr(problem, 'strerror', None) or problem}") from None
        with file:
            yield file
    else:
        yield _Memory(source.read())


@contextmanager
def _header(file: BinaryIO, max_samples: int) -> Iterator[Any]:
    """Open, and check all that the header says. Decodes nothing."""
    import soundfile

    start = file.read(16)
    if not start:
        raise _Unreadable("the file is empty")
    if (lost := _lost_bytes(file, start)) > 0:
        raise _Unreadable(f"cut short: the last {lost:,} bytes that its header promises are not there")
    file.seek(0)
    try:
        sound = soundfile.SoundFile(file if isinstance(file, _Memory) else file.fileno(), closefd=False)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as problem:
        raise _Unreadable(_what_it_is(start, problem)) from None
    with sound:
        if sound.format not in FORMATS:
            raise _Unreadable(f"not an allowed format: {sound.format}, allowed are {', '.join(FORMATS)}")
        _check_size(sound.frames, sound.channels, sound.samplerate, max_samples)
        yield sound


def _what_it_is(start: bytes, problem: Exception) -> str:
    """The reason for a file that libsndfile does not open."""
    allowed = f"allowed are {', '.join(FORMATS)}"
    if start[4:8] == b"ftyp":
        return f"not an allowed format: an MP4 film or sound, {allowed}"
    for magic, name in _OTHER_CONTENT:
        if start.startswith(magic):
            return f"not an allowed format: {name}, {allowed}"
    if start[:4] in (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"caff", b"riff"):
        return f"damaged header: {getattr(problem, 'error_string', problem)}"
    return f"not an allowed format: begins with {start[:8]!r}, {allowed}"


def _check_size(frames: int, channels: int, rate: int, max_samples: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise _Unreadable(f"damaged header: {rate:,} samples per second")
    if frames < 1:
        raise _Unreadable("no samples: the sound has no length")
    if frames > UNKNOWN_FRAMES:
        raise _Unreadable("no length: its header does not say how long it is; write the file anew")
    if frames * channels > max_samples:
        most = max_samples / channels / rate
        raise _Unreadable(
            f"too long: {frames / rate:,.0f} s, allowed are {most:,.0f} s at this rate; cut it into pieces"
        )


def _lost_bytes(file: BinaryIO, start: bytes) -> int:
    """Bytes of sound that a header promises beyond the file's end; libsndfile passes over such a loss in these formats.

    Source: RIFF and AIFF are chunks of a name and a length, AU has offset and length of its sound in front.
    """
    length = file.seek(0, os.SEEK_END)
    if len(start) < 12:
        return 0
    if start[:4] == b".snd":
        first, size = struct.unpack(">II", start[4:12])
        return 0 if size in _UNKNOWN_LENGTHS else int(first + size - length)
    layout, wanted = _CHUNKS.get(start[:4], ("", b""))
    place = 12
    while layout and place + 8 <= length:
        file.seek(place)
        name, size = struct.unpack(layout, file.read(8))
        if name == wanted:
            return 0 if size in _UNKNOWN_LENGTHS else int(place + 8 + size - length)
        place += 8 + size + size % 2
    return 0


def _decode(sound: Any) -> np.ndarray:
    """float32[T, C], whole and finite."""
    import soundfile

    try:
        samples: np.ndarray = sound.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError, MemoryError) as problem:
        raise _Unreadable(f"damaged or cut short: {getattr(problem, 'error_string', problem)}") from None
    if len(samples) < sound.frames:
        raise _Unreadable(f"damaged or cut short: {len(samples):,} of {sound.frames:,} samples can be decoded")
    loudest = float(np.abs(samples).max())
    if not np.isfinite(loudest):
        raise _Unreadable("not finite: the samples hold NaN or infinity")
    if loudest > LOUDEST:
        raise _Unreadable(
            f"not scaled: samples up to {loudest:,.0f}, full scale is 1; save them as integers or scale them"
        )
    return samples


def _mono(samples: np.ndarray) -> np.ndarray:
    """The mean of the channels, float32[T]."""
    return np.ascontiguousarray(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32))
