"""Pack weights for shipping: a third smaller than the file they come from."""

import zlib
from pathlib import Path

PACKED = "model.safetensors.z"


def weights(folder: Path) -> bytes:
    """Return a folder's model.safetensors, packed or not.  Raises FileNotFoundError, or ValueError if it is damaged."""
    if (plain := folder / "model.safetensors").exists():
        return plain.read_bytes()
    if (packed := folder / PACKED).exists():
        return unpack(packed.read_bytes())
    raise FileNotFoundError(f"{plain} is missing; expected a checkpoint, which `make scratch` trains")


def pack(content: bytes) -> bytes:
    """Compress every fourth byte, from each of the first four on, as one stream: exponents of floats are alike."""
    packers = [zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY) for _ in range(4)]
    return b"".join(packer.compress(content[i::4]) + packer.flush() for i, packer in enumerate(packers))


def unpack(packed: bytes) -> bytes:
    """Return what `pack` was given.  Raises ValueError if it cannot be read."""
    parts = []
    for _ in range(4):
        stream = zlib.decompressobj()
        try:
            parts.append(stream.decompress(packed))
        except zlib.error as error:
            raise ValueError(f"weights cannot be unpacked ({error}): fetch or train them again") from error
        if not stream.eof:
            raise ValueError("weights cannot be unpacked (they end too early): fetch or train them again")
        packed = stream.unused_data
    content = bytearray(sum(map(len, parts)))
    for i, part in enumerate(parts):
        content[i::4] = part
    return bytes(content)
