"""Writes tests/fixtures/pictures: one small picture in every form that clients send, and as PNG what it shows.

    pip install pillow==12.3.0 numpy==2.3.4
    python scripts/reference/make_pictures.py

Pillow decodes; transparent pictures are composited on white, orientation is applied, as transformers 5 does.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

OUT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "pictures"
W, H = 23, 14


def drawing(mode="RGB"):
    """Slopes, edges and a corner mark, so that every turn and mirror image differs."""
    y, x = np.mgrid[0:H, 0:W]
    rgb = np.stack([x * 11, y * 18, (x + y) * 6], axis=-1) % 256
    rgb[2:6, 3:9] = (250, 30, 30)
    rgb[0:3, 0:2] = (10, 240, 20)
    image = Image.fromarray(rgb.astype(np.uint8), "RGB")
    if mode == "RGBA":
        alpha = ((x * 11 + y * 3) % 256).astype(np.uint8)
        alpha[4:8, 10:16] = 0
        image.putalpha(Image.fromarray(alpha, "L"))
        return image
    return image.convert(mode)


def png16(array):
    """A PNG with 16 bits: Pillow writes only grey ones."""
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = array.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(image):
    """The first frame as it should be seen, on white."""
    image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    manifest = {}

    def add(name, data, tolerance=0, expected=None):
        (OUT / name).write_bytes(data)
        picture = expected if expected is not None else shown(Image.open(io.BytesIO(data)))
        target = name.replace(".", "_") + ".expected.png"
        picture.save(OUT / target, optimize=True)
        manifest[name] = {"expected": target, "size": list(picture.size), "tolerance": tolerance}

    rgb, rgba = drawing(), drawing("RGBA")
    grey = drawing("L")
    wide = np.asarray(rgb).astype(np.uint32) * 257
    wide_alpha = np.asarray(rgba).astype(np.uint32) * 257
    add("rgb.png", saved(rgb, "PNG"))
    add("rgba.png", saved(rgba, "PNG"))
    add("grey.png", saved(grey, "PNG"))
    add("grey_alpha.png", saved(rgba.convert("LA"), "PNG"))
    add("palette.png", saved(rgb.quantize(16), "PNG"))
    transparent = rgb.quantize(16)
    add("palette_transparent.png", saved(transparent, "PNG", transparency=bytes([0, 60, 120, 255] * 4)))
    add("one_bit.png", saved(drawing("1"), "PNG"))
    add("grey16.png", png16(np.asarray(grey).astype(np.uint32) * 257), expected=grey.convert("RGB"))
    add("rgb16.png", png16(wide), expected=rgb)
    add("rgba16.png", png16(wide_alpha), tolerance=1, expected=shown(rgba))

    add("baseline_444.jpg", saved(rgb, "JPEG", quality=95, subsampling=0), tolerance=4)
    add("baseline_420.jpg", saved(rgb, "JPEG", quality=95, subsampling=2), tolerance=24)
    add("progressive.jpg", saved(rgb, "JPEG", quality=95, subsampling=0, progressive=True), tolerance=4)
    add("grey.jpg", saved(grey, "JPEG", quality=95), tolerance=3)
    add("cmyk.jpg", saved(rgb.convert("CMYK"), "JPEG", quality=95), tolerance=6)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(rgb, "JPEG", quality=95, subsampling=0, exif=exif)
        add(f"orientation_{orientation}.jpg", data, tolerance=4)

    add("lossy.webp", saved(rgb, "WEBP", quality=95), tolerance=24)
    add("lossless.webp", saved(rgb, "WEBP", lossless=True))
    add("alpha.webp", saved(rgba, "WEBP", lossless=True, exact=True))
    second = ImageOps.invert(rgb)
    add("animated.webp", saved(rgb, "WEBP", lossless=True, save_all=True, append_images=[second]))
    exif = Image.Exif()
    exif[0x0112] = 6
    add("orientation_6.webp", saved(rgb, "WEBP", lossless=True, exif=exif))

    add("still.gif", saved(rgb.quantize(32), "GIF"))
    clear = rgb.quantize(31)
    add("transparent.gif", saved(clear, "GIF", transparency=3))
    add("animated.gif", saved(rgb.quantize(32), "GIF", save_all=True, append_images=[second.quantize(32)]))

    add("rgb.bmp", saved(rgb, "BMP"))
    add("palette.bmp", saved(rgb.quantize(16), "BMP"))
    add("one_bit.bmp", saved(drawing("1"), "BMP"))

    add("rgb.tiff", saved(rgb, "TIFF"))
    add("lzw.tiff", saved(rgb, "TIFF", compression="tiff_lzw"))
    add("deflate.tiff", saved(rgb, "TIFF", compression="tiff_adobe_deflate"))
    add("grey.tiff", saved(grey, "TIFF"))
    add("rgba.tiff", saved(rgba, "TIFF"))
    add("orientation_6.tiff", saved(rgb, "TIFF", exif=exif))

    # A colour profile of 64 MiB in 64 KiB: what reading a header must not unpack.
    (OUT / "bomb.png").write_bytes(saved(rgb, "PNG", icc_profile=bytes(64 << 20)))

    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{len(manifest)} pictures, {sum(f.stat().st_size for f in OUT.iterdir())} bytes")


if __name__ == "__main__":
    main()
