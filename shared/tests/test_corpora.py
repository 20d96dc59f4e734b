"""The corpora that every Python brings along, built from this one's library."""

import ast
import errno
import hashlib
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from shared import corpora, faults
from shared.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the corpora are kept once built."""
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture
def small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder stand for the standard library; corpora of any size are taken."""
    library = tmp_path / "library"
    library.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(library))
    monkeypatch.setattr(corpora, "MIN_CHARACTERS", 1)
    return library


def test_python_docs_is_english_of_some_length(folder: Path) -> None:
    """Topics come first, docstrings follow, and neither code nor tests are in it."""
    data, sha256, path = corpora.load("python-docs", folder)
    text = data.decode()
    assert text.startswith('The "assert" statement')
    assert (json_dump := ast.get_docstring(_function("json/__init__.py", "dump")))
    assert json_dump in text
    assert len(text) > 1_000_000
    assert "\n    return self." not in text
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert path is not None
    assert path.read_bytes() == data


def _function(module: str, name: str) -> ast.FunctionDef:
    source = (Path(sysconfig.get_path("stdlib")) / module).read_text("utf-8")
    found = [n for n in ast.walk(ast.parse(source)) if getattr(n, "name", "") == name]
    assert isinstance(found[0], ast.FunctionDef)
    return found[0]


def test_python_code_is_the_library(folder: Path) -> None:
    """A module's source is in it as it stands."""
    text = corpora.load("python-code", folder)[0].decode()
    library = Path(sysconfig.get_path("stdlib"))
    assert (library / "json" / "decoder.py").read_text("utf-8").strip("\n") in text
    assert len(text) > 5_000_000


def test_words_are_distinct_lower_case_and_from_python_docs(folder: Path) -> None:
    """One word a line, ASCII letters only, sorted, all of them in python-docs."""
    words = corpora.load("words", folder)[0].decode().splitlines()
    docs = corpora.load("python-docs", folder)[0].decode()
    assert words == sorted(set(words))
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert set(words) <= set(re.findall("[a-z]+", docs.lower()))
    assert {"dictionary", "the", "statement"} <= set(words)
    assert len(words) > 5000


def test_a_word_is_not_part_of_a_name() -> None:
    """What a dot, digit, underscore, hyphen or inner capital joins is no word."""
    text = "The cat's a.b os.path Rat2 snake_case TypeError e-mail sat. The END, ok (mat)"
    assert corpora.words_of(text) == ["mat", "ok", "sat", "the"]


def test_a_corpus_is_built_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call reads the kept file, and gives the same bytes and digest."""
    first = corpora.load("python-docs", folder)
    monkeypatch.delattr(corpora, "build")
    assert corpora.load("python-docs", folder) == first


def test_building_in_another_process_gives_the_same_bytes(small_library: Path) -> None:
    """Neither the folder's order nor string hashing shows in the corpus."""
    for name in ("b.py", "a.py", "c/d.py"):
        (small_library / name).parent.mkdir(exist_ok=True)
        (small_library / name).write_text(f'"""About {name}."""\n')
    program = (
        "import sys, sysconfig; from shared import corpora\n"
        f"sysconfig.get_path = lambda name: {str(small_library)!r}\n"
        "corpora.MIN_CHARACTERS = 1\n"
        "sys.stdout.write(corpora.build('python-docs'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {"About a.py.\n\nAbout b.py.\n\nAbout c/d.py.\n"}


def test_docstrings_come_from_top_to_bottom_and_once(small_library: Path) -> None:
    """Modules, classes, functions, nested and under conditions; a repeated one counts once."""
    (small_library / "a.py").write_text(
        '"""Module."""\n'
        "class A:\n"
        '    """Class."""\n'
        "    def f(self):\n"
        '        """Method.\n\n        indented\n        """\n'
        "        x = 'not a docstring'\n"
        "        async def g():\n"
        '            """Inner."""\n'
        "if x:\n"
        "    def h():\n"
        '        """Conditional."""\n'
        "def again():\n"
        '    """Inner."""\n'
    )
    expected = "Module.\n\nClass.\n\nMethod.\n\nindented\n\nInner.\n\nConditional.\n"
    assert corpora.build("python-docs") == expected


def test_nothing_of_the_library_is_run_and_bad_files_are_passed_over(small_library: Path) -> None:
    """A module that would fail when imported is read; one that is no Python is left out."""
    (small_library / "a.py").write_text('"""Good \\d."""\nraise SystemExit("it ran")\n')
    (small_library / "b.py").write_text("def (:\n")
    (small_library / "c.py").write_bytes(b"# coding: no-such-coding\n'''x'''\n")
    (small_library / "test").mkdir()
    (small_library / "test" / "d.py").write_text('"""A test."""\n')
    assert corpora.build("python-docs") == "Good \\d.\n"


@pytest.mark.parametrize(
    "name",
    ["test/a.py", "json/tests/a.py", "site-packages/a.py", "_sysconfigdata_x.py", "config-3/a.py"],
)
def test_what_is_not_the_library_is_left_out(small_library: Path, name: str) -> None:
    """Tests, installed packages and the build's own settings are in no corpus."""
    (small_library / name).parent.mkdir(parents=True, exist_ok=True)
    (small_library / name).write_text('"""Left out."""\n')
    (small_library / "b.py").write_text('"""Kept."""\n')
    assert corpora.build("python-code") == '"""Kept."""\n'
    assert corpora.build("python-docs") == "Kept.\n"


def test_a_lone_surrogate_in_a_docstring_is_replaced(small_library: Path, tmp_path: Path) -> None:
    """The corpus is valid UTF-8 whatever a string spells."""
    (small_library / "a.py").write_text('"""Half \\ud800 a pair."""\n')
    assert corpora.load("python-docs", tmp_path / "kept")[0] == b"Half ? a pair.\n"


def test_a_python_without_sources_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is invented where there is nothing to read; the error names the folder."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match="no library source at") as error:
        corpora.build("python-docs")
    assert str(tmp_path) in str(error.value)


def test_a_read_only_cache_is_no_obstacle(small_library: Path, tmp_path: Path) -> None:
    """The corpus is then returned from memory, with no path."""
    (small_library / "a.py").write_text('"""Text."""\n')
    read_only = OSError(errno.EROFS, "Read-only file system")
    with faults.fail_nth(1, read_only, lasting=True):
        data, sha256, path = corpora.load("python-docs", tmp_path / "kept")
    assert (data, path) == (b"Text.\n", None)
    assert sha256 == hashlib.sha256(data).hexdigest()


def test_a_file_in_the_place_of_the_cache_is_no_obstacle(
    small_library: Path, tmp_path: Path
) -> None:
    """The cache folder can't be made, and the corpus is there all the same."""
    (small_library / "a.py").write_text('"""Text."""\n')
    (tmp_path / "file").write_text("")
    assert corpora.load("python-docs", tmp_path / "file")[0] == b"Text.\n"


def test_a_damaged_kept_corpus_is_built_again_and_said(small_library: Path, tmp_path: Path) -> None:
    """Its digest is in its name; a warning says what happens, and the new file is whole."""
    (small_library / "a.py").write_text('"""Text."""\n')
    path = corpora.load("python-docs", tmp_path / "kept")[2]
    assert path is not None
    path.write_text("torn")
    with pytest.warns(UserWarning, match="is damaged; building python-docs again"):
        data = corpora.load("python-docs", tmp_path / "kept")[0]
    assert data == path.read_bytes() == b"Text.\n"


def test_another_python_gets_a_corpus_of_its_own(
    small_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache shared by two versions holds both texts."""
    (small_library / "a.py").write_text('"""Old."""\n')
    corpora.load("python-docs", tmp_path / "kept")
    (small_library / "a.py").write_text('"""New."""\n')
    monkeypatch.setattr(sys, "version", "99.0")
    assert corpora.load("python-docs", tmp_path / "kept")[0] == b"New.\n"
    assert len(list((tmp_path / "kept").iterdir())) == 2
