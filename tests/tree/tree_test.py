# SPDX-License-Identifier: Apache-2.0
"""House rules that a machine can check, on the source tree itself."""

import os
import pathlib
import re
import subprocess
import unittest

from tests.testing import cases

# This test runs outside of the sandbox, where runfiles are links into the source tree.
TREE = pathlib.Path(os.path.realpath(__file__)).parents[2]

CXX = {".cc", ".h", ".c", ".S", ".inc", ".def"}
SOURCES = CXX | {".py", ".sh", ".bzl", ".pml", ".lds", ".BUILD"}
SOURCE_NAMES = {"BUILD", "WORKSPACE", ".bazelrc", ".clang-format"}

PUBLIC_HEADER = pathlib.Path("allocator/api/include/pcmalloc/pcmalloc.h")

HEADER_LINES = 500
SOURCE_LINES = 600
COLUMNS = 100
# Of comments: one or two words; what begins a paragraph of its own; diagrams and tables.
FEW_WORDS = re.compile(r"[A-Za-z][\w'-]*[,;:.]?( [A-Za-z][\w'-]*[,;:.]?)?$")
BEGINS = re.compile(r"(Purpose|Invariants|Cost): |[-*] |\d+[.)] ")
DRAWN = re.compile(r"\S  +\S|[|^]|--")
# Instructions; a declaration that names its symbol, `int f() __asm__("g");`, is none.
ASSEMBLY = re.compile(r"\b(__asm__|__asm|asm)\b\s*(__volatile__|volatile|goto|inline)\b"
                      r"|(^|[;{}])\s*(__asm__|__asm|asm)\b")
MAY_HOLD_ASSEMBLY = re.compile(r"^(rseq/arch/|percpu/ops_|tests/|benchmarks/)|_test\.cc$")


def files_of(tree):
    """Paths relative to the tree, without what is generated."""
    for directory, names, files in os.walk(tree):
        names[:] = [n for n in names
                    if not n.startswith("bazel-") and n not in (".git", "out", "__pycache__")]
        for name in files:
            path = pathlib.Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(tree)


def is_source(path):
    if path.suffix in SOURCES or path.name in SOURCE_NAMES:
        return True
    with open(TREE / path, "rb") as file:
        return file.read(2) == b"#!"


def lines_of(path):
    return (TREE / path).read_text(encoding="utf-8").splitlines()


def comments_of(path):
    """For each line its text if it is a comment and nothing else, otherwise ""."""
    mark = "#" if path.suffix == ".py" else "//"
    return [line.strip()[len(mark):].strip() if line.strip().startswith(mark) else ""
            for line in lines_of(path)]


def without_comments(lines):
    """The code of C++ lines; good enough for text that names no comment marks in strings."""
    text = "\n".join(lines)
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
    return [line.split("//", 1)[0] for line in text.splitlines()]


class TreeTest(unittest.TestCase):
    """Each test lists every offender, not only the first."""

    @classmethod
    def setUpClass(cls):
        if not (TREE / "WORKSPACE").exists():
            raise RuntimeError(f"{TREE} is not the source tree")
        cls.files = sorted(files_of(TREE))
        cls.sources = [path for path in cls.files if is_source(path)]
        cls.cxx = [path for path in cls.files if path.suffix in CXX]
        cls.cxx_and_python = [path for path in cls.files if path.suffix in CXX | {".py"}]

    def assert_none(self, offenders, rule):
        if offenders:
            self.fail("\n  ".join([f"{rule}:", *map(str, offenders)]))

    def test_tree_was_found(self):
        self.assertIn(pathlib.Path("tests/tree/tree_test.py"), self.sources)
        self.assertIn(pathlib.Path("pcm"), self.sources)
        self.assertGreater(len(self.cxx), 5)

    def test_licence_line(self):
        self.assert_none(
            [path for path in self.sources
             if not any("SPDX-License-Identifier: Apache-2.0" in line
                        for line in lines_of(path)[:3])],
            "no SPDX line in the first three lines")

    def test_length(self):
        self.assert_none(
            [f"{path}: {len(lines_of(path))} lines" for path in self.cxx
             if len(lines_of(path)) > (HEADER_LINES if path.suffix == ".h" else SOURCE_LINES)],
            f"headers have at most {HEADER_LINES} lines, sources {SOURCE_LINES}")

    def test_width(self):
        """clang-format moves no comment and no string, and sees no Python."""
        self.assert_none(
            [f"{path}:{number}: {len(line)} columns" for path in self.cxx_and_python
             for number, line in enumerate(lines_of(path), 1)
             if len(line) > COLUMNS and "://" not in line],
            f"lines have at most {COLUMNS} columns")

    def test_width_of_texts(self):
        """Tables and what is shown as it is (indented by four) may be wider."""
        self.assert_none(
            [f"{path}:{number}: {len(line)} columns" for path in self.files
             if path.suffix == ".md" for number, line in enumerate(lines_of(path), 1)
             if len(line) > COLUMNS and "://" not in line and not line.startswith(("|", "    "))],
            f"texts have at most {COLUMNS} columns")

    def test_no_words_are_left_alone_within_a_comment(self):
        offenders = []
        for path in self.cxx_and_python:
            comments = comments_of(path)
            for number, three in enumerate(zip(comments, comments[1:], comments[2:]), 2):
                _, text, after = three
                if (all(three) and FEW_WORDS.match(text) and not BEGINS.match(after)
                        and not any(map(DRAWN.search, three))):
                    offenders.append(f"{path}:{number}: {text}")
        self.assert_none(offenders, "a line of one or two words within a paragraph of a comment")

    def test_headers_open_with_their_contract(self):
        library = re.compile(r"^(allocator|rseq|percpu)/")
        offenders = []
        for path in self.cxx:
            if path.suffix == ".h" and library.match(str(path)):
                opening = "\n".join(lines_of(path)[:60])
                missing = [w for w in ("Purpose:", "Invariants:", "Cost:") if w not in opening]
                if missing:
                    offenders.append(f"{path}: {', '.join(missing)}")
        self.assert_none(offenders, "headers of the library open with Purpose, Invariants, Cost")

    def test_assembly_has_its_place(self):
        offenders = [f"{path}:{number}: {line.strip()}"
                     for path in self.cxx if not MAY_HOLD_ASSEMBLY.search(str(path))
                     for number, line in enumerate(without_comments(lines_of(path)), 1)
                     if ASSEMBLY.search(line)]
        offenders += [path for path in self.cxx
                      if path.suffix == ".S" and not MAY_HOLD_ASSEMBLY.search(str(path))]
        self.assert_none(offenders, "raw assembly outside of rseq/arch and percpu/ops_*")

    def test_public_header_is_plain_c_and_cxx(self):
        for compiler, language in (("gcc", "c11"), ("gcc", "c++11"), ("clang-14", "c11"),
                                   ("clang-14", "c++20")):
            with self.subTest(compiler=compiler, language=language):
                done = subprocess.run(
                    [compiler, "-x", "c" if language == "c11" else "c++", f"-std={language}",
                     "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I",
                     TREE / PUBLIC_HEADER.parents[1], "-"],
                    input=f"#include <pcmalloc/{PUBLIC_HEADER.name}>\n", text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
                self.assertEqual(done.returncode, 0, done.stdout)

    def test_public_header_names_what_is_exported(self):
        code = "\n".join(without_comments(lines_of(PUBLIC_HEADER)))
        declared = set(re.findall(r"\b(pcmalloc_\w+)\(", code))
        self.assertIn("pcmalloc_mode", declared)
        exported = {line for line in lines_of("tests/artifacts/exports.txt")
                    if line.startswith("pcmalloc_")}
        self.assertEqual(sorted(declared), sorted(exported))

    def test_clang_format(self):
        formatted = [str(p) for p in self.cxx if p.suffix in (".cc", ".h", ".c")]
        done = subprocess.run(["clang-format-14", "--dry-run", "--Werror", *formatted], cwd=TREE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
        offenders = sorted({line.split(":", 1)[0] for line in done.stdout.splitlines()
                            if "error:" in line})
        self.assert_none(offenders, "clang-format-14 -i changes")
        self.assertEqual(done.returncode, 0, done.stdout)


if __name__ == "__main__":
    cases.main()
