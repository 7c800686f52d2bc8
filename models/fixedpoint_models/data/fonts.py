"""Characters of many alphabets, rendered from the fonts that come with Matplotlib."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fixedpoint.checks import check_count
from fixedpoint_models.data.few_shot import FewShot
from fixedpoint_models.data.images import DataError

# Each font is one example of every class.
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *(
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSerif-Italic",
        "DejaVuSerif-BoldItalic",
    ),
)
# First and last code point. Of characters that look the same, the first stays.
BLOCKS = (
    (0x0021, 0x007E),  # ASCII
    (0x00A1, 0x024F),  # Latin of other languages
    (0x0250, 0x02AF),  # phonetic letters
    (0x0370, 0x03FF),  # Greek
    (0x0400, 0x052F),  # Cyrillic
    (0x0531, 0x0587),  # Armenian
    (0x10A0, 0x10FF),  # Georgian
    (0x20A0, 0x20BF),  # currencies
    (0x2100, 0x214F),  # letters as symbols
    (0x2190, 0x23FF),  # arrows, mathematics, technical symbols
    (0x25A0, 0x27BF),  # shapes and ornaments
)
# No font has a glyph for this code point, which will never be a character.
MISSING = "\uffff"
EM = 64
"""Pixels of an em, in the rendering that is then reduced."""
ALIKE = 0.1
"""Root mean square between the mean images of two classes, of which one is dropped
below it.
"""


def glyphs(side: int = 28, seed: int = 0) -> FewShot:
    """Hundreds of characters of many alphabets, one example from each of `FONTS`.

    Every character is as large as the image allows, whence a small letter that looks
    like its capital is the same. Of characters that look alike, as the Latin and the
    Greek A, one is kept. A character that a font lacks is left out, and so is one that
    looks the same in two of the fonts, and a letter with an accent.

    Parameters
    ----------
    side : int
        The side of the images, in pixels; 12 or more.
    seed : int
        The order of the classes.

    Returns
    -------
    FewShot
        Ink is 1. The classes are named by their characters.

    Raises
    ------
    DataError
        If a font is missing.

    Examples
    --------
    >>> from fixedpoint_models.data import glyphs
    >>> characters = glyphs()
    >>> characters.images.shape[1:], len(characters) > 400
    ((12, 28, 28), True)
    >>> sorted({"A", "\N{GREEK CAPITAL LETTER ALPHA}",
    ...         "\N{CYRILLIC CAPITAL LETTER ZHE}"}
    ...        & set(characters.names))
    ['A', 'Ж']
    """
    check_count("side", side, 12)
    images, names = _distinct(side)
    every = FewShot(images, names)
    return every.take(np.random.default_rng(seed).permutation(len(every)))


@lru_cache(maxsize=2)  # rendering takes seconds
def _distinct(side: int) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The classes that remain, and their names, in the order of code points."""
    fonts = [_font(name) for name in FONTS]
    blanks = [_drawn(MISSING, font) for font in fonts]
    rendered = {
        character: images
        for character in _candidates()
        if (images := _renderings(character, fonts, blanks, side)) is not None
    }
    images = np.stack(list(rendered.values()))
    kept = _unlike(images.mean(axis=1))
    names = list(rendered)
    return images[kept], tuple(names[index] for index in kept)


def _font(name: str) -> ImageFont.FreeTypeFont:
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    try:
        # The basic layout is that of every installation of Pillow.
        return ImageFont.truetype(str(file), EM, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        raise DataError(
            f"{file}: no such font, or damaged; Matplotlib comes with it"
        ) from None


def _candidates() -> list[str]:
    """Letters, digits and symbols, without those made of others."""
    # Punctuation is dots and strokes, which are alike once they are warped.
    characters = [
        chr(code) for first, last in BLOCKS for code in range(first, last + 1)
    ]
    return [
        character
        for character in characters
        if unicodedata.category(character)[0] in "LNS"
        and not unicodedata.decomposition(character)
    ]


def _drawn(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The character alone, cropped to its ink; of no size if it has none."""
    canvas = Image.new("L", (3 * EM, 3 * EM))
    ImageDraw.Draw(canvas).text(
        (EM, 2 * EM), character, fill=255, font=font, anchor="ls"
    )
    return canvas.crop(canvas.getbbox() or (0, 0, 0, 0))


def _renderings(
    character: str,
    fonts: list[ImageFont.FreeTypeFont],
    blanks: list[Image.Image],
    side: int,
) -> NDArray[np.float32] | None:
    """An image from each font, or None if one lacks the character or two draw it the
    same.
    """
    images = []
    for font, blank in zip(fonts, blanks, strict=True):
        drawn = _drawn(character, font)
        # What a font lacks is drawn as a box, or as nothing.
        if 0 in drawn.size or drawn == blank:
            return None
        images.append(_fitted(drawn, side))
    if len({image.tobytes() for image in images}) < len(images):
        return None
    return np.stack(
        [np.asarray(image, np.float32) / np.float32(255.0) for image in images]
    )


def _fitted(drawn: Image.Image, side: int) -> Image.Image:
    """Resized so that the longer side leaves a margin, which warps need, and put in the
    middle.
    """
    scale = (side - 2 * (side // 9)) / max(drawn.size)
    width, height = (max(1, round(scale * length)) for length in drawn.size)
    image = Image.new("L", (side, side))
    small = drawn.resize((width, height), Image.Resampling.LANCZOS)
    image.paste(small, ((side - width) // 2, (side - height) // 2))
    return image


def _unlike(means: NDArray[np.float32]) -> list[int]:
    """Each class that is not like one kept before it."""
    kept: list[int] = []
    for index, mean in enumerate(means):
        differences = means[kept] - mean
        if not (np.sqrt(np.mean(differences**2, axis=(1, 2))) < ALIKE).any():
            kept.append(index)
    return kept
