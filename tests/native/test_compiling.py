"""Tests that the planner is compiled once for each source, compiler and processor, and that failures do no harm."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_ids, tiny_model, tiny_tokenizer

from ttlib import control, search
from ttlib.control import Streams
from ttlib.native import compiling, decoder
from ttlib.search import Plan

needs_compiler = pytest.mark.skipif(bool(compiling.failure()), reason=f"no native planner: {compiling.failure()}")
SCRIPT = "from ttlib.native import compiling; compiling.library(); print('compiled')"


@pytest.fixture(autouse=True)
def anew(monkeypatch, tmp_path):
    """Forget what this process compiled, and use a cache folder of the test's own."""
    monkeypatch.setenv("TTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    for cached in (compiling._library, decoder._say):
        cached.cache_clear()
    yield
    for cached in (compiling._library, decoder._say):
        cached.cache_clear()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A source that compiles in no time, with a function of the planner's."""
    source = tmp_path_factory.mktemp("source") / "planner.cpp"
    source.write_text('extern "C" { long planner_bytes(void *) { return 7; } void planner_free(void *) {} }\n')
    return source


def cached() -> list[Path]:
    folder = compiling.cache_folder()
    return sorted(folder.iterdir()) if folder.exists() else []


def plans_of(made) -> search.Plans:
    model, bins, ids = tiny_model(d_model=32), tiny_tokenizer(), random_ids(2, 2)
    found, plan = made(model, bins, ids), Plan(2, 3, 2, proposal="sample", drop_probability=0.0)
    return search.maximise(found.advance, found.select_plans, found.log_p, bins, plan, Streams(range(2)))


def falls_back(capsys, reason: str) -> None:
    """PyTorch plans, as it always does, and one sentence says why."""
    model = tiny_model(d_model=32)
    assert decoder.decoder_for(model) is decoder.decoder_for(model) is control.Decoder
    said = capsys.readouterr().err
    assert said.startswith("PyTorch plans instead of the native planner: ") and said.count("\n") == 1 and reason in said
    assert decoder.planner() == "torch"
    fallback, usual = plans_of(decoder.decoder_for(model)), plans_of(control.Decoder)
    assert (fallback.bins == usual.bins).all() and (fallback.value == usual.value).all()


def refuses(monkeypatch, reason: str) -> None:
    """Who asked for the native planner gets an error."""
    monkeypatch.setenv("TTLIB_PLANNER", "native")
    with pytest.raises(compiling.NotCompiledError, match=f"TTLIB_PLANNER=native, but.*{reason}"):
        decoder.decoder_for(tiny_model(d_model=32))


def script(folder: Path, name: str, lines: str) -> Path:
    """Write a program."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(0o755)
    return file


@pytest.mark.usefixtures("without_gradients")
def test_without_a_compiler_pytorch_plans(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    falls_back(capsys, "there is no C++ compiler: install g++ or clang++")
    refuses(monkeypatch, "there is no C")


@pytest.mark.usefixtures("without_gradients")
def test_a_compiler_that_is_missing_or_fails_is_named(monkeypatch, tmp_path, capsys):
    failing = script(tmp_path, "failing", 'case "$1" in --version) echo 1.0;; *) echo "error: no" >&2; exit 1;; esac')
    for command, reason in ((tmp_path / "missing", "CXX names .*missing, which is not installed"),
                            (failing, "the compiler .*failing failed: error: no"),
                            (script(tmp_path, "broken", "exit 3"), "the compiler .*broken failed: nothing was printed"),
                            (script(tmp_path, "lying", "exit 0"), "it cannot be loaded: ")):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setenv("CXX", str(command))
            compiling._library.cache_clear()
            decoder._say.cache_clear()
            falls_back(capsys, reason.split(".*")[0])
            refuses(patched, reason)
        assert not [file for file in cached() if file.suffix == ".tmp"], "nothing half-written stays"


@needs_compiler
def test_it_is_compiled_once(monkeypatch, short):
    monkeypatch.setattr(compiling, "SOURCE", short)
    assert compiling.library().planner_bytes(None) == 7
    (file,) = cached()
    written = file.stat().st_mtime_ns
    compiling._library.cache_clear()
    monkeypatch.setattr(subprocess, "run", only_versions(subprocess.run))
    assert compiling.library().planner_bytes(None) == 7 and cached() == [file] and file.stat().st_mtime_ns == written


def only_versions(run):
    def checked(command, **options):
        assert command[-1] == "--version"
        return run(command, **options)

    return checked


@needs_compiler
@pytest.mark.parametrize("changed", ["SOURCE", "FLAGS", "processor", "compiler"])
def test_what_was_made_for_another_source_compiler_or_processor_is_not_loaded(monkeypatch, tmp_path, short, changed):
    monkeypatch.setattr(compiling, "SOURCE", short)
    before, command = compiling.compiled(tmp_path, compiling.compiler()), compiling.compiler()
    other = tmp_path / "other.cpp"
    other.write_text(short.read_text().replace("7", "8"))
    values = {"SOURCE": other, "FLAGS": [*compiling.FLAGS, "-g"], "processor": lambda: "avx1024"}
    if changed == "compiler":
        command = [str(script(tmp_path, "c++", f'[ "$1" = --version ] && echo 99 || {command[0]} "$@"'))]
    else:
        monkeypatch.setattr(compiling, changed, values[changed])
    assert compiling.compiled(tmp_path, command).name.split("-")[1] != before.name.split("-")[1]


def test_the_processor_is_known_by_its_instructions():
    if Path("/proc/cpuinfo").exists():
        assert "flags" in compiling.processor() or "Features" in compiling.processor()
    assert compiling.processor() == compiling.processor()


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "empty", "edited"])
def test_a_damaged_file_is_compiled_again(monkeypatch, short, damage):
    monkeypatch.setattr(compiling, "SOURCE", short)
    command = compiling.compiler()
    file = compiling.compiled(compiling.cache_folder(), command)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-100], "empty": b"", "edited": b"X" + whole[1:]}[damage])
    again = compiling.compiled(compiling.cache_folder(), command)
    assert ctypes.CDLL(str(again)).planner_bytes(None) == 7


@needs_compiler
@pytest.mark.parametrize("obstacle", ["a file", "read-only"])
def test_a_cache_folder_that_cannot_be_written_is_done_without(monkeypatch, tmp_path, short, obstacle):
    folder = tmp_path / "place"
    if obstacle == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
    monkeypatch.setenv("TTLIB_CACHE", str(folder))
    monkeypatch.setattr(compiling, "SOURCE", short)
    assert compiling.library().planner_bytes(None) == 7


@needs_compiler
def test_processes_that_compile_at_once_agree():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = lambda: subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE)  # noqa: E731
    both = [start() for _ in range(2)]
    assert [each.communicate()[0].strip() for each in both] == [b"compiled"] * 2
    assert {file.suffix for file in cached()} == {".so"}


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("TTLIB_CACHE", "/somewhere")
    assert compiling.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("TTLIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiling.cache_folder() == tmp_path / "ttlib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiling.cache_folder() == tmp_path / ".cache" / "ttlib"
