"""Pack weights for shipping: a third smaller than the file they come from."""

import zlib
from pathlib import Path

PACKED = "model.safetensors.z"
RATIO = 8  # codes of Huffman alone, which `pack` writes, spend at least one bit on a byte


def weights(folder: Path, most: int | None = None) -> bytes:
    """Return a folder's model.safetensors, packed or not, of `most` bytes.

    Raises FileNotFoundError, or ValueError if it is damaged or larger, before memory is taken for it.
    """
    if (plain := folder / "model.safetensors").exists():
        if most is not None and (size := plain.stat().st_size) > most:
            raise ValueError(f"{plain} has {size:,} bytes; its config has at most {most:,}: fetch or train it again")
        return plain.read_bytes()
    if (packed := folder / PACKED).exists():
        return unpack(packed.read_bytes(), most)
    raise FileNotFoundError(f"{plain} is missing; expected a checkpoint, which `make scratch` trains")


def pack(content: bytes) -> bytes:
    """Compress every fourth byte, from each of the first four on, as one stream: exponents of floats are alike."""
    packers = [zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY) for _ in range(4)]
    return b"".join(packer.compress(content[i::4]) + packer.flush() for i, packer in enumerate(packers))


def unpack(packed: bytes, most: int | None = None) -> bytes:
    """Return what `pack` was given, of `most` bytes.  Raises ValueError if it cannot be read or has more."""
    parts, room = [], RATIO * len(packed) if most is None else min(most, RATIO * len(packed))
    for _ in range(4):
        stream = zlib.decompressobj()
        try:
            parts.append(stream.decompress(packed, room + 1))
        except zlib.error as error:
            raise ValueError(f"weights cannot be unpacked ({error}): fetch or train them again") from error
        if (room := room - len(parts[-1])) < 0:
            raise ValueError("weights cannot be unpacked (more bytes than their config has): fetch or train them again")
        if not stream.eof:
            raise ValueError("weights cannot be unpacked (they end too early): fetch or train them again")
        packed = stream.unused_data
    content = bytearray(sum(map(len, parts)))
    for i, part in enumerate(parts):
        content[i::4] = part
    return bytes(content)
