"""Decoding: the pixels of each kind of picture, exactly; damage of any kind is an error and never a
wrong picture.
"""

import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.picture_files import encoded, made

from fewstep.data import pictures
from fewstep.data.coco import Coco
from fewstep.data.folder import Folder
from fewstep.data.pictures import How, decode, decode_all, in_channels
from fewstep.data.table import Table
from fewstep.errors import DataMemoryError

COLOUR = made(1, shape=(3, 20, 30))[0][0]
GREY = made(1, shape=(1, 20, 30))[0][0]


def saved(image, form="PNG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixels(content, *options):
    return decode(content, *options).transpose(2, 0, 1)


def everything(contents, size=0, channels="auto", workers=0, on_bad="error"):
    named = [(f"picture {i}", content) for i, content in enumerate(contents)]
    return decode_all(named, How(size, channels, on_bad), workers)


class TestKinds:
    @pytest.mark.parametrize("form", ["PNG", "WEBP"])
    def test_lossless_pictures_come_out_as_they_went_in(self, form):
        assert np.array_equal(pixels(encoded(COLOUR, form)), COLOUR)

    def test_grey_stays_one_channel(self):
        assert np.array_equal(pixels(encoded(GREY)), GREY)
        assert pixels(encoded(np.full((1, 8, 8), 77, np.uint8), "JPEG")).shape == (1, 8, 8)

    def test_jpeg_is_near(self):
        smooth = np.linspace(0, 255, 3 * 16 * 16).astype(np.uint8).reshape(3, 16, 16)
        assert np.abs(pixels(encoded(smooth, "JPEG", quality=95)).astype(int) - smooth).max() < 12

    def test_channels_that_are_asked_for(self):
        r, g, b = COLOUR.astype(float)
        luma = pixels(encoded(COLOUR), 0, "grey")
        assert luma.shape == (1, 20, 30)
        assert np.abs(luma[0] - (0.299 * r + 0.587 * g + 0.114 * b)).max() <= 1
        assert np.array_equal(pixels(encoded(GREY), 0, "rgb"), np.repeat(GREY, 3, 0))

    def test_what_is_transparent_lies_on_white(self):
        alpha = np.arange(600, dtype=np.uint32).reshape(20, 30) % 256
        image = Image.fromarray(
            np.concatenate([COLOUR, alpha[None].astype(np.uint8)]).transpose(1, 2, 0), "RGBA"
        )
        found = pixels(saved(image)).astype(float)
        assert np.abs(found - (COLOUR * (alpha / 255) + 255 * (1 - alpha / 255))).max() <= 1
        assert np.array_equal(found[:, alpha == 255], COLOUR[:, alpha == 255])
        assert (found[:, alpha == 0] == 255).all()

    def test_grey_with_transparency_stays_grey(self):
        alpha = np.where(np.arange(600).reshape(1, 20, 30) % 2, 255, 0).astype(np.uint8)
        image = Image.fromarray(np.concatenate([GREY, alpha]).transpose(1, 2, 0), "LA")
        assert np.array_equal(pixels(saved(image)), np.where(alpha, GREY, 255))

    def test_a_palette_becomes_colours(self):
        palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
        image = Image.frombytes("P", (30, 20), GREY.tobytes())
        image.putpalette(palette.tobytes())
        assert np.array_equal(decode(saved(image)), palette[GREY[0]])
        clear = decode(saved(image, transparency=7))
        assert (clear[GREY[0] == 7] == 255).all()
        assert np.array_equal(clear[GREY[0] != 7], palette[GREY[0]][GREY[0] != 7])

    def test_sixteen_bits_become_eight(self):
        deep = np.array([[0, 128, 129, 257, 65535 - 129, 65535 - 128, 65535, 77 * 257]], np.uint16)
        assert decode(saved(Image.fromarray(deep)))[..., 0].tolist() == [
            [0, 0, 1, 1, 254, 255, 255, 77]
        ]

    def test_every_value_of_sixteen_bits(self):
        deep = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
        rounded = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
        assert np.array_equal(decode(saved(Image.fromarray(deep)))[..., 0], rounded)

    def test_strips_on_white_change_nothing(self, monkeypatch):
        rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
        content = saved(Image.fromarray(rgba))
        whole = decode(content), decode(content, 0, "grey")
        monkeypatch.setattr(pictures, "STRIP", 70)
        assert np.array_equal(decode(content), whole[0])
        assert np.array_equal(decode(content, 0, "grey"), whole[1])

    def test_one_bit(self):
        image = Image.fromarray(GREY[0] > 100)
        assert np.array_equal(pixels(saved(image))[0], np.where(GREY[0] > 100, 255, 0))

    def test_cmyk(self):
        image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
        assert np.abs(decode(saved(image, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() < 8

    @pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (8, 1), (3, 2), (6, 3)])
    def test_a_photo_is_turned_as_its_camera_says(self, orientation, turned):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(Image.fromarray(COLOUR.transpose(1, 2, 0)), exif=exif)
        assert np.array_equal(decode(content), np.rot90(COLOUR.transpose(1, 2, 0), turned))


def long_middle(side):
    """What is around the middle of a long side, all of a short one."""
    return slice(side // 2 - 40, side // 2 + 40) if side > 80 else slice(None)


def lanczos(line, size):
    """Along the first axis: each new pixel is the mean of the old ones below its window of three
    lobes.
    """
    scale = len(line) / size
    wide = max(scale, 1)
    places = (np.arange(size)[:, None] + 0.5) * scale
    x = (np.arange(len(line)) + 0.5 - places) / wide
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return np.tensordot(weights / weights.sum(1, keepdims=True), line, 1)


class TestSize:
    @pytest.mark.parametrize(
        ("shape", "left", "top"), [((20, 30), 5, 0), ((30, 20), 0, 5), ((20, 33), 6, 0)]
    )
    def test_the_middle_is_cut_out_exactly(self, shape, left, top):
        picture = made(1, shape=(3, *shape))[0][0]
        assert np.array_equal(
            pixels(encoded(picture), 20), picture[:, top : top + 20, left : left + 20]
        )

    @pytest.mark.parametrize(
        ("shape", "size"), [((40, 40), 20), ((64, 64), 7), ((9, 9), 16), ((50, 80), 20)]
    )
    def test_resizing_is_lanczos_with_antialiasing(self, shape, size):
        smooth = np.random.default_rng(0).integers(60, 190, (1, *shape), dtype=np.uint8)
        high, wide = (round(side * size / min(shape)) for side in shape)
        wanted = lanczos(lanczos(smooth[0].astype(float), high).T, wide).T
        left = (wide - size) // 2
        found = pixels(encoded(smooth), size)[0].astype(float)
        assert np.abs(found - wanted[:, left : left + size]).max() < 1.01

    @pytest.mark.parametrize("shape", [(3, 1, 50), (3, 999, 1000), (3, 7, 5)])
    def test_any_shape_becomes_a_square_and_one_colour_stays(self, shape):
        assert (pixels(encoded(np.full(shape, 93, np.uint8)), 16) == np.full((3, 16, 16), 93)).all()

    @pytest.mark.parametrize("shape", [(1, 1, 2_000_000), (1, 2_000_000, 1), (4, 1, 500_000)])
    def test_of_a_long_one_the_middle_is_cut_out_first(self, shape):
        """All of it, as high as `size`, would take gigabytes."""
        line = np.full(shape, 255, np.uint8)
        line[(slice(None), *map(long_middle, shape[1:]))] = 93
        line[3:] = 255
        content = encoded(line)
        tracemalloc.start()
        found = pixels(content, 64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found == 93).all()
        assert found.shape[1:] == (64, 64)
        assert peak < 16e6

    def test_both_ways_to_cut_out_the_middle_agree(self, monkeypatch):
        smooth = np.add.outer(np.arange(60), np.arange(90)).astype(np.uint8)[None]
        for shape in ((60, 90), (60, 31), (7, 90)):
            content = encoded(smooth[:, : shape[0], : shape[1]])
            before = pixels(content, 20).astype(int)
            monkeypatch.setattr(pictures, "MOST_RESIZED", 0)
            assert np.abs(pixels(content, 20) - before).max() <= 1
            monkeypatch.undo()

    def test_pictures_of_different_sizes_need_one(self):
        contents = [encoded(made(1, shape=(3, *s))[0][0]) for s in ((8, 8), (8, 8), (9, 8))]
        with pytest.raises(ValueError, match=r"picture 0 of 8×8 and picture 2 of 9×8: size=N"):
            everything(contents)
        assert everything(contents, size=8)[0].shape == (3, 3, 8, 8)


class TestDamage:
    @pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
    def test_a_cut_picture(self, form, share):
        content = encoded(COLOUR, form)
        with pytest.raises(ValueError, match=r"1 of 1 pictures cannot be read .* picture 0: "):
            everything([content[: int(share * len(content))]])

    def test_a_png_file_without_its_last_chunk(self):
        with pytest.raises(ValueError, match="picture 0"):
            everything([encoded(COLOUR)[:-12]])

    def test_no_flipped_bit_of_a_png_file_goes_unseen(self):
        """Pillow itself checks nothing behind the header."""
        whole = bytearray(encoded(COLOUR))
        for place in range(0, len(whole), 61):
            changed = bytearray(whole)
            changed[place] ^= 16
            with pytest.raises(ValueError, match="picture 0"):
                everything([bytes(changed)])

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "it is empty"),
            (b"not a picture", "it is no PNG, JPEG, WEBP"),
            (saved(Image.new("RGB", (8, 8)), "GIF"), "it is no PNG, JPEG, WEBP"),
            (saved(Image.new("RGB", (8, 8)), "TIFF"), "it is no PNG, JPEG, WEBP"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "it is no PNG, JPEG, WEBP"),
        ],
    )
    def test_what_is_no_picture(self, content, says):
        with pytest.raises(ValueError, match=says):
            everything([content])

    @pytest.mark.parametrize("side", [8100, 9900, 60000])
    def test_a_bomb_is_refused_before_it_unpacks(self, side):
        """8100² is above our limit, 9900² where Pillow warns, 60000² where it refuses; none shows a
        warning.
        """
        head = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 2, 0, 0, 0)
        body = b"IDAT" + zlib.compress(bytes(1000))
        chunks = [
            struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
            for c in (head, body, b"IEND")
        ]
        tracemalloc.start()
        with (
            warnings.catch_warnings(record=True) as seen,
            pytest.raises(
                ValueError,
                match=r"picture 0.*more than 64000000",
            ),
        ):
            everything([b"\x89PNG\r\n\x1a\n" + b"".join(chunks)])
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()
        assert not seen

    def test_bad_pictures_are_left_out_counted_and_named(self):
        contents = [encoded(COLOUR)] * 300
        contents[7], contents[123], contents[299] = b"", b"x", encoded(COLOUR)[:100]
        with pytest.raises(
            ValueError, match=r"3 of 300 .*on_bad=skip.* the first is picture 7: it is empty"
        ):
            everything(contents)
        images, places, notes = everything(contents, on_bad="skip")
        first, second, third = notes["bad"].split(", picture ")
        assert first == "3 of 300: picture 7: it is empty"
        assert second.startswith("123: it is no PNG")
        assert third.startswith("299: ")
        assert places.tolist() == sorted(set(range(300)) - {7, 123, 299})
        assert images.shape == (297, 3, 20, 30)
        assert (images == torch.from_numpy(COLOUR)).all()

    def test_any_number_may_be_left_out_but_not_all(self):
        contents = [b"", b"x"] + [encoded(COLOUR)] * 2
        for on_bad in ("error", "skip"):
            told = r"2 of 4 .*on_bad=skip_all any number\), the first is picture 0: it is empty"
            with pytest.raises(ValueError, match=rf"{told}; others: picture 1$"):
                everything(contents, on_bad=on_bad)
        images, places, notes = everything(contents, on_bad="skip_all")
        assert (len(images), places.tolist()) == (2, [2, 3])
        assert notes["bad"].startswith("2 of 4: picture 0: it is empty, picture 1: ")
        with pytest.raises(ValueError, match="2 of 2 pictures cannot be read"):
            everything(contents[:2], on_bad="skip_all")

    def test_twenty_of_them_are_named(self):
        with pytest.raises(
            ValueError, match=r"picture 0: it is empty; others: picture 1, "
        ) as told:
            everything([b""] * 30 + [encoded(COLOUR)])
        assert str(told.value).endswith("picture 18, picture 19, …")

    @pytest.mark.parametrize(("bad", "fails"), [(1, False), (2, False), (3, True), (200, True)])
    def test_more_than_one_in_a_hundred_fails(self, bad, fails):
        contents = [b""] * bad + [encoded(GREY)] * (200 - bad)
        if fails:
            with pytest.raises(ValueError, match=f"{bad} of 200"):
                everything(contents, on_bad="skip")
        else:
            assert len(everything(contents, on_bad="skip")[0]) == 200 - bad

    def test_of_many_bad_ones_five_are_named(self):
        notes = everything([encoded(GREY)] * 594 + [b""] * 6, on_bad="skip")[2]
        told = ", ".join(f"picture {i}: it is empty" for i in range(594, 599))
        assert notes["bad"] == f"6 of 600: {told}, …"

    def test_nothing_bad_is_not_mentioned(self):
        assert everything([encoded(GREY)], on_bad="skip")[2] == {}

    def test_no_memory_is_no_bad_picture(self, monkeypatch):
        def full(*_):
            raise MemoryError

        monkeypatch.setattr(pictures, "read", full)
        with pytest.raises(DataMemoryError, match="picture 0: there is not memory enough"):
            everything([b"x"] * 200, on_bad="skip")


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_changes_nothing(workers, monkeypatch):
    monkeypatch.setattr(pictures, "LARGE", 0)  # also tiny ones go to threads
    contents = [encoded(image) for image in made(300, shape=(3, 9, 12))[0]]
    contents[50] = b"bad"
    alone, some = (everything(contents, 8, "auto", n, "skip") for n in (0, workers))
    assert torch.equal(alone[0], some[0])
    assert torch.equal(alone[1], some[1])
    assert alone[2] == some[2]
    with pytest.raises(ValueError, match="the first is picture 50"):
        everything(contents, workers=workers)


@pytest.mark.parametrize(("side", "threads"), [(8, 1), (64, 3)])
def test_small_pictures_are_not_worth_a_thread(side, threads, monkeypatch):
    """They would take half as long again: measured on 32×32."""
    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count):
            asked.append(count)
            super().__init__(count)

    monkeypatch.setattr(pictures, "ThreadPoolExecutor", Pool)
    everything([encoded(made(1, shape=(3, side, side))[0][0])] * 4, workers=3)
    assert asked == [threads]


def test_grey_among_colours_becomes_the_same_in_all_three():
    images, _, _ = everything([encoded(GREY), encoded(COLOUR)])
    assert np.array_equal(images[0], np.repeat(GREY, 3, 0))
    assert np.array_equal(images[1], COLOUR)
    assert everything([encoded(GREY)] * 2)[0].shape == (2, 1, 20, 30)


def test_grey_from_colours_is_the_same_before_and_after_decoding():
    """So a judge's channels may be chosen once all is read."""
    grey = torch.from_numpy(pixels(encoded(COLOUR), 0, "grey"))
    colour = torch.from_numpy(COLOUR)[None].repeat(130, 1, 1, 1)
    assert torch.equal(in_channels(colour, 1), grey[None].repeat(130, 1, 1, 1))
    ends = torch.tensor([[0, 255]] * 3, dtype=torch.uint8).view(1, 3, 1, 2)
    assert in_channels(ends, 1).flatten().tolist() == [0, 255]
    assert torch.equal(
        in_channels(torch.from_numpy(GREY)[None], 3)[0, 2], torch.from_numpy(GREY)[0]
    )
    assert in_channels(colour, 3) is colour
    with pytest.raises(ValueError, match="images of 3 channels cannot be read as 4"):
        in_channels(colour, 4)


def test_the_shape_is_known_where_options_settle_it():
    assert How(4, "rgb").shape == (3, 4, 4)
    assert How(4, "grey").shape == (1, 4, 4)
    assert How(4).shape == How(0, "rgb").shape == ()
    for kind in (Folder, Table):
        assert kind(size=4, channels="rgb", label="none").foreseen().shape == (3, 4, 4)
        assert kind(size=4, channels="rgb").foreseen() is None  # there may be classes
    assert Coco(size=4, channels="rgb").foreseen().shape == (3, 4, 4)
