"""Writing files whole or not at all."""

import os
import platform
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """write(other path), then rename: a killed or failed run leaves no half file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers on several nodes have the same process ids, and may share the folder.
    aside = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def needing(count: int, place: Path) -> Iterator[None]:
    """A disk that is full says how much was wanted."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{place}: writing failed ({error}); it needs {count:,} bytes") from error


PACKED = "model.safetensors.z"  # how weights are shipped: a third smaller


def weights(folder: Path) -> bytes:
    """The content of a folder's model.safetensors, packed or not; FileNotFoundError if it is not there, ValueError if
    it is damaged."""
    for name in ("model.safetensors", PACKED):
        if (folder / name).exists():
            content = (folder / name).read_bytes()
            return unpack(content) if name == PACKED else content
    raise FileNotFoundError(f"{folder / 'model.safetensors'} is missing; expected a checkpoint, made by `make scratch`")


def pack(content: bytes) -> bytes:
    """Every fourth byte, from each of the first four on, as a zlib stream of its own: exponents of floats are alike."""
    packers = [zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY) for _ in range(4)]
    return b"".join(packer.compress(content[i::4]) + packer.flush() for i, packer in enumerate(packers))


def unpack(packed: bytes) -> bytes:
    """What `pack` was given.  ValueError if that cannot be read."""
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
