"""Reading images: what a person sees in a viewer is what the model gets, and what cannot be read says why."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import PIXEL_LIMIT, SIDE_RATIO_LIMIT, ImageFile, check_header, read_image

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def noise(width: int = 12, height: int = 9) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def ramp() -> Image.Image:
    """16-bit grey from 0 to 65535, 16 pixels."""
    return Image.fromarray(np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_same_pixels(form: str) -> None:
    read = read_image(encoded(noise(), form), "x")
    assert read.mode == "RGB"
    assert np.array_equal(pixels(read), pixels(noise()))


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("GIF", {})])
def test_lossy_formats_give_nearly_the_same_pixels(form: str, options: dict[str, int]) -> None:
    smooth = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    read = read_image(encoded(smooth, form, **options), "x")
    assert read.mode == "RGB"
    # quality 95 of a smooth ramp: a few grey levels
    assert np.abs(pixels(read) - pixels(smooth)).max() <= 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    image = ramp() if mode == "I;16" else noise().convert(mode)
    read = read_image(encoded(image, form), "x")
    assert read.mode == "RGB" and read.size == image.size


def test_16_bits_are_scaled_and_not_clipped() -> None:
    for form in ("PNG", "TIFF", "PPM"):
        read = pixels(read_image(encoded(ramp(), form), "x"))[..., 0].ravel()
        assert read[0] == 0 and read[-1] == 255
        assert np.array_equal(read, np.round(np.linspace(0, 65535, 16).astype(int) / 257))
    clipped = pixels(ramp().convert("L")).ravel()
    assert (clipped[1:] == 255).all(), "Pillow's own conversion clips; scaling it ourselves would then be needless"


def test_white_is_zero_16_bit_tiff() -> None:
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    read = pixels(read_image(encoded(ramp(), "TIFF", tiffinfo=tags), "x"))[..., 0].ravel()
    plain = pixels(read_image(encoded(ramp(), "TIFF"), "x"))[..., 0].ravel()
    assert np.array_equal(read, 255 - plain)


def test_transparency_lies_on_white() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 0, 128))
    read = read_image(encoded(half, "PNG"), "x")
    assert read.getpixel((0, 0)) == WHITE
    assert read.getpixel((1, 0)) == (127, 127, 127)
    assert half.convert("RGB").getpixel((0, 0)) == RED, "dropping the alpha channel would show red"


def test_transparency_of_a_palette_and_of_grey() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    for form in ("PNG", "GIF"):
        read = read_image(encoded(palette, form, transparency=0), "x")
        assert [read.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 0, 255)]
    assert read_image(encoded(palette, "PNG"), "x").getpixel((0, 0)) == RED
    assert read_image(encoded(Image.new("LA", (1, 1), (0, 0)), "PNG"), "x").getpixel((0, 0)) == WHITE
    assert read_image(encoded(Image.new("LA", (1, 1), (0, 255)), "PNG"), "x").getpixel((0, 0)) == BLACK


def test_transparent_value_of_16_bit_grey() -> None:
    read = pixels(read_image(encoded(ramp(), "PNG", transparency=0), "x"))[..., 0].ravel()
    assert read[0] == 255 and read[1] == 17


def test_cmyk_jpeg() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    read = read_image(encoded(red, "JPEG", quality=95), "x")
    assert np.abs(pixels(read) - np.array(RED)).max() <= 4  # JPEG rounding


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns_the_image(orientation: int, form: str) -> None:
    from PIL import ImageOps

    image = Image.new("RGB", (16, 8), WHITE)
    image.paste(BLACK, (0, 0, 4, 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(encoded(image, form, exif=exif), "x")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))))
    assert read.size == ((16, 8) if orientation < 5 else (8, 16))
    assert np.abs(pixels(read) - pixels(upright)).mean() < 12  # JPEG and WebP blur the edge of the corner
    corner = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0), (1, 1), (0, 1)][orientation - 1]
    place = (corner[0] * (read.width - 1), corner[1] * (read.height - 1))
    assert max(read.getpixel(place)) < 60, "the black corner is where the orientation says"


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLACK)]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(read_image(data, "x")) - np.array(RED)).max() <= 8  # WebP is lossy


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert read_image(data, "x").size == (12, 9)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (encoded(noise(64, 64), "JPEG")[:-400], "damaged or cut short: "),
        (encoded(noise(), "PNG")[:200], "damaged or cut short: "),
        (encoded(noise(), "BMP")[:200], "damaged or cut short: "),
        (encoded(noise(), "TIFF")[:200], "damaged"),
        (encoded(noise(), "WEBP")[:100], "damaged"),
        (encoded(noise(), "PNG")[:20], "damaged header: "),
        (png_header(60_000, 60_000), "too many pixels: "),
        (png_header(10_000, 10_000), "too many pixels: 10,000 x 10,000"),
        (png_header(20_000, 20), "too long and thin: 20,000 x 20"),
        (encoded(noise(), "ICO"), "not an allowed format: an icon"),
        (encoded(noise(), "TGA"), "not an allowed format: begins with "),
        (b"  <!DOCTYPE html><title>404</title>", "not an allowed format: a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an allowed format: an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an allowed format: a Git LFS pointer"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf", "not an allowed format: an AVIF image"),
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", "not an allowed format: a HEIC image"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "pixels without a defined white: mode F"),
        (encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "pixels without a defined white: mode I"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read_image(data, "cat.jpg")
    assert str(caught.value).startswith(f"cat.jpg: {reason}")


def test_limits_are_where_they_say() -> None:
    side = 1000
    assert read_image(encoded(Image.new("L", (side, side)), "PNG"), "x", max_pixels=side * side).size == (side, side)
    with pytest.raises(DataError, match="too many pixels"):
        read_image(encoded(Image.new("L", (side, side)), "PNG"), "x", max_pixels=side * side - 1)
    assert read_image(encoded(Image.new("L", (SIDE_RATIO_LIMIT, 1)), "PNG"), "x").size == (SIDE_RATIO_LIMIT, 1)
    with pytest.raises(DataError, match="too long and thin"):
        read_image(encoded(Image.new("L", (SIDE_RATIO_LIMIT + 1, 1)), "PNG"), "x")
    assert 50_000_000 < PIXEL_LIMIT < 179_000_000


def test_damage_of_any_kind_is_a_data_error_and_nothing_else() -> None:
    """Bytes are flipped and cut at random: whatever Pillow raises, a person gets a DataError."""
    random = np.random.default_rng(0)
    num_good = num_bad = 0
    for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM"):
        data = np.frombuffer(encoded(noise(), form), np.uint8)
        for _ in range(60):
            broken = data[: random.integers(1, len(data) + 1)].copy()
            places = random.integers(0, len(broken), 4)
            broken[places] = random.integers(0, 256, 4)
            try:
                assert read_image(broken.tobytes(), "x").mode == "RGB"
                num_good += 1
            except DataError:
                num_bad += 1
    assert num_good and num_bad


def test_header_check_agrees_with_reading(tmp_path: Path) -> None:
    good, cut, empty = tmp_path / "good.png", tmp_path / "cut.png", tmp_path / "empty.png"
    good.write_bytes(encoded(noise(), "PNG"))
    cut.write_bytes(encoded(noise(), "PNG")[:200])
    empty.write_bytes(b"")
    assert check_header(good) is None
    assert check_header(cut) is None, "the header is whole; only decoding finds the end missing"
    assert check_header(empty) == "the file is empty"
    assert check_header(tmp_path / "none.png") == "no such file"
    assert check_header(tmp_path) == "a folder, not an image"
    with pytest.raises(DataError, match="cut.png: damaged or cut short"):
        ImageFile(str(cut)).read()


def test_the_suffix_does_not_matter_but_the_content_does(tmp_path: Path) -> None:
    path = tmp_path / "named.jpg"
    path.write_bytes(encoded(noise(), "PNG"))
    assert np.array_equal(pixels(read_image(path, "x")), pixels(noise()))


def test_sources_of_bytes(tmp_path: Path) -> None:
    data = encoded(noise(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data)):
        assert np.array_equal(pixels(read_image(source, "x")), pixels(noise()))


def test_reference_is_the_file_and_not_its_name(tmp_path: Path) -> None:
    path, link, other = tmp_path / "a.png", tmp_path / "link.png", tmp_path / "b.png"
    path.write_bytes(encoded(noise(), "PNG"))
    other.write_bytes(encoded(noise(), "PNG"))
    link.symlink_to(path)
    reference = ImageFile(str(path))
    assert reference.key == ImageFile(str(link)).key == ImageFile(f"{tmp_path}/./a.png").key
    assert reference.key != ImageFile(str(other)).key
    assert ImageFile(str(link)).where == str(link)
    copy = pickle.loads(pickle.dumps(reference))
    assert copy == reference and np.array_equal(pixels(copy.read()), pixels(noise()))


def test_reading_leaves_the_file_closed_and_the_image_usable(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(), "PNG"))
    image = read_image(path, "x")
    path.unlink()
    assert image.crop((0, 0, 2, 2)).size == (2, 2)
