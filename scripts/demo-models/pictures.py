"""Simple pictures, drawn from a `random.Random`: a few shapes, or one or two printed characters, with what is
where.

Drawing is mostly pasting: outlines are rendered once with smooth edges and used again at other places, in
other colours.
"""

import dataclasses
import glob
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE, PATCH = 112, 16
GRID = SIDE // PATCH
PATCHES = GRID * GRID
MOST = 4  # things in a picture

COLOURS = {
    "red": (215, 30, 35),
    "green": (30, 150, 50),
    "blue": (30, 60, 215),
    "yellow": (245, 220, 30),
    "orange": (245, 130, 15),
    "purple": (135, 35, 165),
    "black": (15, 15, 15),
    "white": (248, 248, 248),
}
COLOUR_NAMES = list(COLOURS)
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
DIGITS, LETTERS = "0123456789", "ACEHLTX"
KINDS = SHAPES + list(DIGITS + LETTERS)
PLACES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]
FONTS = [
    f
    for f in sorted(glob.glob("/usr/share/fonts/truetype/dejavu/DejaVu*.ttf"))
    if not any(word in f for word in ("MathTeX", "ExtraLight", "Oblique", "Italic", "Serif", "Condensed"))
]


@dataclasses.dataclass
class Thing:
    """A shape or a character; middle and half its height in pixels of a picture of SIDE."""

    kind: str
    colour: str
    x: float
    y: float
    half: float

    @property
    def name(self):
        return f"{self.colour} {self.kind}"

    @property
    def place(self):
        """Index into PLACES; None near a border between thirds."""
        column, row = third(self.x), third(self.y)
        return None if column is None or row is None else 3 * row + column


def third(v):
    for i, (low, high) in enumerate([(0, 34), (42, 70), (78, SIDE)]):
        if low <= v <= high:
            return i
    return None


# --- outlines --------------------------------------------------------------------------------


def corners(kind, r, angle):
    """Corner points of a shape of radius r around (0, 0)."""

    def at(degrees, radius):
        t = math.radians(degrees) + angle
        return radius * math.cos(t), radius * math.sin(t)

    if kind == "square":
        return [at(45 + 90 * i, r * 1.12) for i in range(4)]
    if kind == "triangle":
        return [at(-90 + 120 * i, r * 1.15) for i in range(3)]
    if kind == "star":
        return [at(-90 + 36 * i, r * 1.15 if i % 2 == 0 else r * 0.48) for i in range(10)]
    w = r * 0.33
    points = [
        (-w, -r),
        (w, -r),
        (w, -w),
        (r, -w),
        (r, w),
        (w, w),
        (w, r),
        (-w, r),
        (-w, w),
        (-r, w),
        (-r, -w),
        (-w, -w),
    ]
    c, s = math.cos(angle), math.sin(angle)
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def soften(rng, big, factor):
    """A mask drawn `factor` times too large, as float32 of the right size, sometimes a little blurred."""
    if rng.random() < 0.3:
        big = big.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9) * factor))
    return np.asarray(big.reduce(factor), np.float32) / 255


def shape_mask(rng, kind):
    """(mask, radius); the middle of the mask is the middle of the shape, but for part of a pixel."""
    r, angle = rng.uniform(13, 22), rng.uniform(-0.24, 0.24)
    side = 2 * math.ceil(r * 1.2 + 2)
    x, y = 2 * (side + rng.uniform(-1, 1)), 2 * (side + rng.uniform(-1, 1))
    big = Image.new("L", (4 * side, 4 * side))
    draw, r4 = ImageDraw.Draw(big), 4 * r
    if kind == "circle":
        draw.ellipse((x - r4, y - r4, x + r4, y + r4), fill=255)
    elif kind == "ring":
        draw.ellipse((x - r4, y - r4, x + r4, y + r4), outline=255, width=int(r4 * 0.38))
    else:
        draw.polygon([(x + u, y + v) for u, v in corners(kind, r4, angle)], fill=255)
    return soften(rng, big, 4), r


_fonts = {}


def text_mask(rng, text):
    """(mask, half its height)."""
    px = round(rng.uniform(62, 84) if len(text) == 1 else rng.uniform(54, 66)) * 2
    path = rng.choice(FONTS)
    if (path, px) not in _fonts:
        _fonts[path, px] = ImageFont.truetype(path, px)
    font = _fonts[path, px]
    left, top, right, bottom = font.getbbox(text)
    w, h = int(right - left) + 24, int(bottom - top) + 24
    big = Image.new("L", (w + w % 2, h + h % 2))
    ImageDraw.Draw(big).text(
        (12 - left + rng.randint(0, 1), 12 - top + rng.randint(0, 1)), text, font=font, fill=255
    )
    big = big.rotate(rng.uniform(-5, 5), Image.Resampling.BILINEAR, expand=True)
    left, top, right, bottom = big.getbbox()
    big = big.crop((left - 2, top - 2, right + 2, bottom + 2))
    big = big.crop((0, 0, big.width + big.width % 2, big.height + big.height % 2))
    mask = soften(rng, big, 2)
    return mask, mask.shape[0] / 2


class Masks:
    """Rendered outlines, each used some twenty times in random draws before a new one takes its place."""

    def __init__(self, size=60):
        self.size, self.kept = size, {}

    def draw(self, rng, what):
        kept = self.kept.setdefault(what, [])
        if len(kept) < 8 or rng.random() < 0.06:
            new = shape_mask(rng, what) if what in SHAPES else text_mask(rng, what)
            if len(kept) < self.size:
                kept.append(new)
            else:
                kept[rng.randrange(self.size)] = new
            return new
        return rng.choice(kept)


# --- scenes ----------------------------------------------------------------------------------


def jitter(rgb, rng, by):
    return tuple(min(255, max(0, c + rng.randint(-by, by))) for c in rgb)


def background(rng, avoid):
    """A plain colour, light or dark, well apart from the colours of all things; None if none is found."""
    for _ in range(60):
        kind = rng.random()
        if kind < 0.85:
            grey = rng.randint(170, 255) if kind < 0.6 else rng.randint(5, 75)
            rgb = jitter((grey, grey, grey), rng, 22)
        else:
            rgb = tuple(rng.randint(150, 255) for _ in range(3))
        if all(sum((a - b) ** 2 for a, b in zip(rgb, COLOURS[c], strict=True)) > 95**2 for c in avoid):
            return rgb
    return None


class Scene:
    """`things` from left to right, `text` if they are characters, and `ground`, light or dark."""

    def __init__(self, rng, masks):
        self.rng, self.masks = rng, masks
        while True:
            self.things, self.text, self.pasted = [], None, []
            chance = rng.random()
            if chance < 0.6:
                self._place_shapes()
            elif chance < 0.97:
                self._place_text()
            self.rgb = background(rng, {t.colour for t in self.things})
            if self.rgb is not None:
                break
        order = sorted(range(len(self.things)), key=lambda i: self.things[i].x)
        self.things = [self.things[i] for i in order]
        self.cover = (
            np.stack([self.pasted[i] for i in order]) if order else np.zeros((0, SIDE, SIDE), np.float32)
        )
        self.ground = "light" if sum(self.rgb) / 3 > 128 else "dark"

    def _place_shapes(self):
        rng = self.rng
        count = rng.choices(range(1, MOST + 1), [2, 4, 4, 3])[0]
        # few kinds or colours, so that there is something to count
        kinds = rng.sample(SHAPES, 2) if rng.random() < 0.35 else SHAPES
        colours = rng.sample(COLOUR_NAMES, 2) if rng.random() < 0.35 else COLOUR_NAMES
        while len(self.things) < count:
            self.things, self.pasted = [], []
            for _ in range(40):
                kind = rng.choice(kinds)
                mask, r = self.masks.draw(rng, kind)
                x, y = self._free(r)
                if x is None:
                    break
                self._paste(mask, kind, rng.choice(colours), x, y, r)
                if len(self.things) == count:
                    break

    def _free(self, r):
        for _ in range(12):
            x, y = self.rng.uniform(r + 4, SIDE - r - 4), self.rng.uniform(r + 4, SIDE - r - 4)
            if all(math.hypot(x - t.x, y - t.y) > (r + t.half) * 1.12 + 3 for t in self.things):
                return x, y
        return None, None

    def _place_text(self):
        rng = self.rng
        chance = rng.random()
        text = (
            rng.choice(DIGITS)
            if chance < 0.4
            else rng.choice(LETTERS)
            if chance < 0.7
            else str(rng.randint(10, 99))
        )
        mask, half = self.masks.draw(rng, text)
        h, w = mask.shape
        x, y = rng.uniform(w / 2 + 3, SIDE - w / 2 - 3), rng.uniform(h / 2 + 3, SIDE - h / 2 - 3)
        colour, width = rng.choice(COLOUR_NAMES), w / len(text)
        for i, character in enumerate(text):
            part = np.zeros_like(mask)
            columns = slice(round(i * width), round((i + 1) * width))
            part[:, columns] = mask[:, columns]
            self._paste(part, character, colour, x, y, half)
            self.things[-1].x = x - w / 2 + (i + 0.5) * width
        self.text = text

    def _paste(self, mask, kind, colour, x, y, half):
        h, w = mask.shape
        top, left = round(y - h / 2), round(x - w / 2)
        whole = np.zeros((SIDE, SIDE), np.float32)
        y0, x0 = max(0, top), max(0, left)
        part = mask[y0 - top : SIDE - top, x0 - left : SIDE - left]
        whole[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
        self.pasted.append(whole)
        self.things.append(Thing(kind, colour, x, y, half))

    def draw(self):
        """The picture, uint8 [SIDE, SIDE, 3]."""
        rng = self.rng
        picture = np.empty((SIDE, SIDE, 3), np.float32)
        picture[:] = self.rgb
        if rng.random() < 0.3:  # a faint shine
            ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
            shine = ramp[:, None] * rng.uniform(-14, 14) + ramp[None] * rng.uniform(-14, 14)
            picture += shine[..., None]
        same = jitter(COLOURS[self.things[0].colour], rng, 14) if self.text else None
        for thing, mask in zip(self.things, self.cover, strict=True):
            rgb = np.array(same or jitter(COLOURS[thing.colour], rng, 14), np.float32)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            picture[box] += mask[box][..., None] * (rgb - picture[box])
        if rng.random() < 0.5:
            top, left = rng.randrange(SIDE), rng.randrange(SIDE)
            picture += NOISE[top : top + SIDE, left : left + SIDE] * rng.uniform(1, 10)
        picture = np.clip(picture, 0, 255).astype(np.uint8)
        return squeeze(rng, picture) if rng.random() < 0.3 else picture

    def owners(self):
        """For each patch 1 + the index of the thing there, or 0: [PATCHES]."""
        if not self.things:
            return np.zeros(PATCHES, np.int64)
        cover = self.cover.reshape(-1, GRID, PATCH, GRID, PATCH).mean((2, 4)).reshape(-1, PATCHES)
        return np.where(cover.max(0) > 0.09, cover.argmax(0) + 1, 0)

    def labels(self):
        """What the vision tower is taught about each patch, [len(LABELS), PATCHES]."""
        things, own = self.things, self.owners()
        names = [t.colour for t in things], [t.kind for t in things]
        from_top = {i: rank for rank, i in enumerate(sorted(range(len(things)), key=lambda i: things[i].y))}
        rows = [[0] * (len(LABELS) - 3)] + [
            [
                1 + KINDS.index(t.kind),
                1 + COLOUR_NAMES.index(t.colour),
                1 + i,
                1 + from_top[i],
                names[0].count(t.colour),
                names[1].count(t.kind),
                -100 if t.place is None else 1 + t.place,
            ]
            for i, t in enumerate(things)
        ]
        dense = np.array(rows, np.int64)[own].T
        centre = np.zeros(PATCHES, np.int64)
        for t in things:
            centre[int(t.y // PATCH) * GRID + int(t.x // PATCH)] = 1
        ground = 1 + ["dark", "light"].index(self.ground)
        whole = [np.full((1, PATCHES), value) for value in (len(things), ground)]
        return np.concatenate([dense, centre[None], *whole])


# Classes of every label. Where nothing is, the label is 0; -100 is not taught.
LABELS = {
    "kind": 1 + len(KINDS),
    "colour": 1 + len(COLOUR_NAMES),
    "from left": 1 + MOST,
    "from top": 1 + MOST,
    "of the colour": 1 + MOST,
    "of the kind": 1 + MOST,
    "place": 1 + len(PLACES),
    "centre": 2,
    "all": 1 + MOST,
    "ground": 3,
}
NOISE = np.random.default_rng(0).standard_normal((2 * SIDE, 2 * SIDE, 3), np.float32)


def squeeze(rng, picture):
    """What JPEG leaves of it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=rng.randint(40, 92))
    return np.asarray(Image.open(buffer).convert("RGB"))
