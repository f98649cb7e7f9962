"""Reading sounds: whatever wrote the file, the same waveform comes out, and what cannot be read says why."""

import importlib.util
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sound_files import tone, write_wav

from mmtune.ground import sound_reading
from mmtune.ground.errors import DataError
from mmtune.ground.sound_reading import RATES, Sound, SoundFile, check_sound_header, read_sound, require_packages

RATE = 16_000

ONE_STEP = {1: 2**-7, 2: 2**-15, 3: 2**-20, 4: 2**-20}
"""One step of an integer of so many bytes, as a share of full scale; float32 is no finer than 2**-20 near 1."""

RESAMPLED = 2e-3
"""A tone far below both rates comes through SoX's filter nearly unchanged, away from the ends."""


def written(tmp_path: Path, samples: np.ndarray, **options: Any) -> Path:
    return write_wav(tmp_path / "x.wav", samples, options.pop("rate", RATE), **options)


def encoded(samples: np.ndarray, rate: int = RATE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integers_are_scaled_to_full_scale_one(tmp_path: Path, width: int) -> None:
    expected = tone(3, 0.1, RATE)
    sound = SoundFile(str(written(tmp_path, expected, width=width))).read()
    assert sound.waveform.dtype == np.float32 and sound.waveform.shape == (1600,) and sound.rate == RATE
    assert np.abs(sound.waveform - expected).max() <= 1.5 * ONE_STEP[width]
    assert np.abs(sound.waveform - expected).max() > 0


def test_channels_are_averaged(tmp_path: Path) -> None:
    one, two, silence = tone(1, 0.1, RATE), tone(2, 0.1, RATE), np.zeros(1600)
    sound = read_sound(written(tmp_path, np.stack([one, two, silence], axis=1)), "x")
    assert np.abs(sound.waveform - (one + two) / 3).max() < 2 * ONE_STEP[2]
    assert np.abs(sound.waveform - one).max() > 0.1, "the first channel alone is another sound"


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", None), ("OGG", "VORBIS"), ("AIFF", None), ("WAV", "FLOAT")])
def test_what_soundfile_reads_is_read(form: str, subtype: str | None) -> None:
    expected = tone(2, 0.5, RATE)
    sound = read_sound(encoded(expected, format=form, subtype=subtype), "x")
    assert sound.rate == RATE and len(sound.waveform) == len(expected)
    assert np.corrcoef(sound.waveform, expected)[0, 1] > 0.99  # OGG is lossy
    assert check_sound_header.__doc__


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000])
def test_any_rate_becomes_the_asked_one(rate: int) -> None:
    pitch = 440.0
    sound = Sound(np.sin(2 * np.pi * pitch * np.arange(rate) / rate).astype(np.float32), rate)
    changed = sound.at(16_000)
    assert changed.dtype == np.float32 and len(changed) == 16_000 and sound.seconds == 1.0
    expected = np.sin(2 * np.pi * pitch * np.arange(16_000) / 16_000)
    inner = slice(800, -800)
    assert np.abs(changed - expected)[inner].max() < RESAMPLED
    assert np.array_equal(sound.at(16_000), changed) and sound.at(rate) is sound.waveform


def test_resampling_filters_what_the_lower_rate_cannot_hold() -> None:
    high = Sound(np.sin(2 * np.pi * 6000 * np.arange(48_000) / 48_000).astype(np.float32), 48_000)
    assert np.abs(high.at(8000)[400:-400]).max() < RESAMPLED
    assert np.abs(high.waveform[::6][400:-400]).max() > 0.5, "every sixth sample would fold it down"


@pytest.mark.parametrize(("frames", "rate"), [(1, 44_100), (3, 48_000), (1001, 11_025), (7, 8000)])
def test_odd_lengths_keep_their_duration(frames: int, rate: int) -> None:
    for wanted in (8000, 48_000):
        changed = Sound(np.full(frames, 0.1, dtype=np.float32), rate).at(wanted)
        assert len(changed) == max(1, round(frames * wanted / rate)) and np.isfinite(changed).all()


def damaged(tmp_path: Path) -> dict[str, bytes]:
    """Words of the reason -> bytes of a file that is bad in this way."""
    whole = written(tmp_path, tone(1, 0.2, RATE)).read_bytes()
    broken = np.full(100, 0.1)
    infinite, missing = broken.copy(), broken.copy()
    infinite[3], missing[5] = np.inf, np.nan
    flac = encoded(tone(2, 2.0, RATE), format="FLAC")
    return {
        "the file is empty": b"",
        "cut short: the last 100 bytes that its header promises are not there": whole[:-100],
        "cut short: the last 6,400": whole[:44],
        "damaged header: ": whole[:30],
        "cut short: the last 90 bytes": encoded(tone(1, 0.2, RATE), format="AIFF")[:-90],
        "cut short: the last 91 bytes": encoded(tone(1, 0.2, RATE), format="AU")[:-91],
        "no length: ": flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:],
        "no samples: the sound has no length": written(tmp_path, np.zeros(0)).read_bytes(),
        "not finite: the samples hold NaN": encoded(missing, format="WAV", subtype="FLOAT"),
        "not finite: the samples hold NaN or inf": encoded(infinite, format="WAV", subtype="FLOAT"),
        "not scaled: samples up to 32,767": encoded(np.full(9, 32767.0), format="WAV", subtype="FLOAT"),
        "damaged header: 40 samples per second": encoded(broken, 40, format="WAV"),
        "damaged or cut short: ": flac[: len(flac) // 2],
        "not an allowed format: a web page": b"<html>404</html>" * 9,
        "not an allowed format: a PNG image": b"\x89PNG\r\n\x1a\n" + bytes(90),
        "not an allowed format: an MP4 film or sound": b"\0\0\0\x20ftypM4A " + bytes(90),
        "not an allowed format: begins with b'no sound'": b"no sound at all" * 9,
        "not an allowed format: VOC": encoded(broken, 8000, format="VOC", subtype="PCM_16"),
    }


def test_what_is_bad_says_why(tmp_path: Path) -> None:
    for reason, content in damaged(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read_sound(content, "x.wav")
        assert str(caught.value).startswith(f"x.wav: {reason}"), str(caught.value)


def test_the_header_alone_tells_most_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = damaged(tmp_path)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)  # nothing is decoded
    by_decoding = ("not finite", "not scaled", "damaged or cut short")
    for number, (reason, content) in enumerate(cases.items()):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(content)
        found = SoundFile(str(path)).check()
        assert found is None if reason.startswith(by_decoding) else found is not None and found.startswith(reason)
    good = written(tmp_path, tone(1, 0.1, RATE))
    assert check_sound_header(good) is None
    assert check_sound_header(tmp_path) == "a folder, not a sound"
    assert check_sound_header(tmp_path / "none.wav") == "no such file"


def test_long_sounds_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((3000, 2)), rate=1000)
    assert check_sound_header(path, max_samples=6000) is None
    reason = "too long: 3 s, allowed are 2 s at this rate; cut it into pieces"
    assert check_sound_header(path, max_samples=4000) == reason
    with pytest.raises(DataError, match="x: too long"):
        read_sound(path, "x", max_samples=4000)


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    """Programs that write into a pipe leave the length open."""
    content = bytearray(written(tmp_path, tone(1, 0.2, RATE)).read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert len(read_sound(bytes(content), "x").waveform) == 3200
    content[40:44] = struct.pack("<I", 6402)
    with pytest.raises(DataError, match="cut short: the last 2 bytes"):
        read_sound(bytes(content), "x")


def test_no_damage_ends_in_another_error(tmp_path: Path) -> None:
    """Flipped and cut bytes give a sound or a DataError, in every format."""
    numbers = np.random.default_rng(0)
    for form in ("WAV", "FLAC", "OGG", "AIFF", "AU", "CAF", "MP3"):
        whole = encoded(tone(1, 0.3, RATE), format=form)
        for _ in range(25):
            content = bytearray(whole)
            for place in numbers.integers(0, min(len(whole), 200), 3):
                content[place] = numbers.integers(0, 256)
            for cut in (bytes(content), bytes(content[: numbers.integers(1, len(whole))])):
                try:
                    sound = read_sound(cut, "x")
                except DataError:
                    continue
                assert np.isfinite(sound.waveform).all() and len(sound.waveform)
                assert RATES[0] <= sound.rate <= RATES[1]


def test_a_reference_is_small_and_knows_its_file_by_any_name(tmp_path: Path) -> None:
    path = written(tmp_path, tone(1, 0.1, RATE))
    (tmp_path / "link.wav").symlink_to(path)
    one, two = SoundFile(str(path)), SoundFile(str(tmp_path / "." / "link.wav"))
    assert one.key == two.key and one.where != two.where and one.modality == "audio"
    assert len(pickle.dumps(one)) < 1000 and pickle.loads(pickle.dumps(one)) == one


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages()
    real = importlib.util.find_spec
    monkeypatch.setattr(sound_reading.importlib.util, "find_spec", lambda name: None if name == "soxr" else real(name))
    with pytest.raises(DataError, match=r"reading sounds needs soxr: pip install 'mmtune\[audio\]'"):
        require_packages()
