"""Compile the planner on this machine at its first use, and keep what was compiled in a folder of the user."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("planner.cpp")
TUNE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = ["-O3", TUNE, "-std=c++17", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC"]
COMPILERS = ("c++", "g++", "clang++")  # without $CXX, the first of these


class NotCompiledError(RuntimeError):
    """There is no compiled planner; the message says why."""


def compiler() -> list[str]:
    """Return the command of the C++ compiler: $CXX, or the first of COMPILERS; raises NotCompiledError without one."""
    given = shlex.split(os.environ.get("CXX", ""))
    for command in [given] if given else [[name] for name in COMPILERS]:
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    missing = f"CXX names {given[0]}, which is not installed" if given else "there is no C++ compiler"
    raise NotCompiledError(f"{missing}: install g++ or clang++, or set CXX")


def processor() -> str:
    """Return what decides which instructions this machine's processor has."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    known = {line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name")}
    return "\n".join([platform.machine(), platform.processor(), *sorted(known)])


def cache_folder() -> Path:
    """Return the folder of compiled planners: $TTLIB_CACHE, or `ttlib` in the user's cache folder.

    Raises OSError for a user without a home.
    """
    if given := os.environ.get("TTLIB_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttlib"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def key(command: list[str]) -> str:
    """Return a digest of all that decides the compiled file: source, compiler, flags and processor."""
    version = _run([*command, "--version"])
    known = "\0".join([SOURCE.read_text("utf-8"), *command, version, *FLAGS, processor()])
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _run(command: list) -> str:
    """Return what a command prints; raises NotCompiledError with its last line where it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or "nothing was printed").splitlines()[-1]
        raise NotCompiledError(f"the compiler {command[0]} failed: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiledError(f"the compiler {command[0]} did not run: {error}") from error


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def compiled(folder: Path, command: list[str]) -> Path:
    """Return the compiled planner in a folder; it is compiled where it is missing or damaged.

    Its name ends with the digest of its content, so that a damaged file is known before it is loaded.  It appears
    under this name when it is whole; processes that compile at once do not disturb each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"planner-{key(command)}"
    for file in sorted(folder.glob(f"{name}-*.so")):
        if file.stem == f"{name}-{_digest(file)}":
            return file
    handle, aside = tempfile.mkstemp(suffix=".tmp", prefix=name, dir=folder)
    os.close(handle)
    try:
        _run([*command, *FLAGS, str(SOURCE), "-o", aside])
        file = folder / f"{name}-{_digest(Path(aside))}.so"
        os.replace(aside, file)
    finally:
        Path(aside).unlink(missing_ok=True)
    return file


def library() -> ctypes.CDLL:
    """Return the planner's functions, compiled at first use; raises NotCompiledError."""
    if isinstance(found := _library(), NotCompiledError):
        raise found
    return found


def failure() -> str:
    """Return why there is no compiled planner, or an empty string."""
    return str(found) if isinstance(found := _library(), NotCompiledError) else ""


@functools.cache
def _library() -> ctypes.CDLL | NotCompiledError:
    """Return `library` or its error, which is final: no decision compiles again.

    Where the cache folder cannot be written, a temporary one serves this process alone.
    """
    try:
        command = compiler()
        try:
            return _load(compiled(cache_folder(), command))
        except OSError:
            with tempfile.TemporaryDirectory() as folder:
                return _load(compiled(Path(folder), command))
    except (NotCompiledError, OSError) as error:
        return error if isinstance(error, NotCompiledError) else NotCompiledError(f"it cannot be loaded: {error}")


def _load(file: Path) -> ctypes.CDLL:
    """Return the functions of a compiled file, with the types of those that return pointers or sizes."""
    loaded = ctypes.CDLL(str(file))
    loaded.planner_bytes.restype = ctypes.c_int64
    loaded.planner_bytes.argtypes = loaded.planner_free.argtypes = [ctypes.c_void_p]
    return loaded
