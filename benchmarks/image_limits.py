"""Memory that one hostile image takes: a few kilobytes that claim many pixels, frames or bytes of text.

Each image is decoded in a process of its own: ``python benchmarks/image_limits.py``
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from PIL import Image

SIDE = 12_247  # whose square is just below the limit
KINDS = {
    "PNG, 150 million pixels": lambda file: Image.new("L", (SIDE, SIDE)).save(file, "PNG"),
    "PNG, above the limit": lambda file: Image.new("L", (SIDE + 800, SIDE)).save(file, "PNG"),
    "JPEG 2000, 74 million pixels": lambda file: Image.new("RGB", (8600, 8600)).save(file, "JPEG2000"),
    "JPEG 2000, above its limit": lambda file: Image.new("RGB", (9000, 9000)).save(file, "JPEG2000"),
    "WebP, 150 million pixels": lambda file: Image.new("RGB", (SIDE, SIDE)).save(file, "WEBP", lossless=True),
    "GIF, 150 million pixels": lambda file: Image.new("P", (SIDE, SIDE)).save(file, "GIF"),
    "TIFF with alpha, 150 million pixels": lambda file: Image.new("RGBA", (SIDE, SIDE)).save(
        file, "TIFF", compression="tiff_deflate"
    ),
    "GIF, 200 frames of 4 million pixels": lambda file: _frames(file, "GIF", 200),
    "WebP, 60 frames of 4 million pixels": lambda file: _frames(file, "WEBP", 60),
    "PNG with 900 MB of text": lambda file: _text(file, 900_000_000),
}


def _frames(file: io.BytesIO, kind: str, count: int) -> None:
    frames = [Image.new("L", (2000, 2000), number) for number in range(count)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])


def _text(file: io.BytesIO, size: int) -> None:
    plain = io.BytesIO()
    Image.new("L", (8, 8)).save(plain, "PNG")
    content = b"zTXt" + b"p\0\0" + zlib.compress(b"a" * size, 9)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    file.write(plain.getvalue()[:33] + chunk + plain.getvalue()[33:])


def decode() -> None:
    """Decode the image on stdin, and print what came and the memory that it took."""
    from lmms_eval_emi.data.images import open_image, to_rgb
    from lmms_eval_emi.errors import ImageError

    content = sys.stdin.buffer.read()
    before = _peak()
    try:
        came = "read"
        to_rgb(open_image(content))
    except ImageError:
        came = "refused"
    print(f"{came} | {(_peak() - before) / 1024:,.0f} MB")


def _peak() -> int:
    """Most memory that this process has taken, in kB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Make every image, and let a fresh process decode it."""
    print("| image | bytes | what came | memory |\n| --- | ---: | --- | ---: |")
    for name, make in KINDS.items():
        file = io.BytesIO()
        make(file)
        command = [sys.executable, "-W", "ignore", __file__, "--decode"]
        found = subprocess.run(command, input=file.getvalue(), capture_output=True, check=True)
        print(f"| {name} | {len(file.getvalue()):,} | {found.stdout.decode().strip()} |", flush=True)


if __name__ == "__main__":
    decode() if "--decode" in sys.argv else main()
