# SPDX-License-Identifier: Apache-2.0
"""`./pcm install`: what it installs is found by pkg-config and CMake, and used;
uninstall removes it."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

from tests.artifacts import elf
from tests.testing import cases

INSTALL, LIBRARY = (os.path.abspath(path) for path in (sys.argv.pop(1), sys.argv.pop(1)))

MODES = {"v2safe-cpu", "v2safe-cid", "legacy", "locked"}
SONAME = "libpcmalloc.so.0"

# One that asks pcmalloc, one that has never heard of it and leaves malloc to libc.
SOURCES = {
    "asks": """
#include <pcmalloc/pcmalloc.h>
#include <stdio.h>
int main(void) {
  printf("%s %s %s\\n", pcmalloc_mode(), pcmalloc_version(), PCMALLOC_VERSION);
  return 0;
}
""",
    "quiet": """
#include <string.h>
int main(int argc, char** argv) { return strdup(argv[argc - 1]) == NULL; }
""",
}

CMAKE = """
cmake_minimum_required(VERSION 3.13)
project(example C)
find_package(pcmalloc 0.1 REQUIRED)
foreach(name asks quiet)
  foreach(kind shared static)
    add_executable(${name}_${kind} ${name}.c)
    target_link_libraries(${name}_${kind} PRIVATE pcmalloc::${kind})
  endforeach()
  add_executable(${name}_all_static ${name}.c)
  target_link_libraries(${name}_all_static PRIVATE -static pcmalloc::static)
endforeach()
"""
CMAKE_VERSIONS = """
cmake_minimum_required(VERSION 3.19)
project(versions NONE)
foreach(wanted 0 0.1 0.1.0 0.0.9 0.1.1 0.2 1 0.1...0.2 0...<0.1.0 0...0.1.0 0.2...1)
  unset(pcmalloc_DIR CACHE)
  find_package(pcmalloc ${wanted} QUIET)
  message("wanted ${wanted} ${pcmalloc_FOUND}")
endforeach()
"""
SUITING = {"0", "0.1", "0.1.0", "0.0.9", "0.1...0.2", "0...0.1.0"}


def run(*command, **environment):
    kept = {name: value for name, value in os.environ.items()
            if name not in ("DESTDIR", "LD_PRELOAD", "PCMALLOC_CONF")}
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False, timeout=120, env={**kept, **environment})


class InstallTest(unittest.TestCase):

    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp(prefix="pcm-install"))
        self.addCleanup(shutil.rmtree, self.top)
        for name, text in SOURCES.items():
            (self.top / f"{name}.c").write_text(text)
        # What is used lies elsewhere than at its prefix, and where blanks are.
        self.flags = ("--prefix=/opt/example", "--destdir", str(self.top / "a stage"))
        self.root = self.top / "a stage/opt/example"
        done = self.pcm("install", *self.flags)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.told = done.stdout.splitlines()

    def pcm(self, verb, *flags, **environment):
        libraries = ("--libraries", os.path.dirname(LIBRARY)) if verb == "install" else ()
        return run(INSTALL, verb, *libraries, *flags, **environment)

    def installed(self):
        """Paths below the root, directories not among them."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")
                if path.is_symlink() or not path.is_dir()}

    def pkg_config(self, *flags):
        done = run("pkg-config", *flags, "pcmalloc",
                   PKG_CONFIG_LIBDIR=str(self.root / "lib/pkgconfig"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return shlex.split(done.stdout)

    def build(self, name, *flags):
        program = self.top / f"{name}.out"
        done = run("gcc", "-O1", "-Wall", "-Werror", "-o", program, self.top / f"{name}.c", *flags)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return program

    def assert_on_pcmalloc(self, program, **environment):
        """Runs it; it may be either of the two."""
        done = run(program, PCMALLOC_CONF="stats_print:true", **environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("pcmalloc", done.stderr)
        if "asks" in program.name:
            mode, version, of_header = done.stdout.split()
            self.assertIn(mode, MODES)
            self.assertEqual(version, of_header)
            self.assertEqual([version], self.pkg_config("--modversion"))

    def assert_shared(self, program, **environment):
        self.assertIn(SONAME, elf.Elf(program).needed())
        where = re.search(rf"{SONAME} => (.*) \(", run("ldd", program, **environment).stdout)
        self.assertEqual(os.path.realpath(where[1]), os.path.realpath(self.root / "lib" / SONAME))
        self.assert_on_pcmalloc(program, **environment)

    def assert_static(self, program, needed):
        self.assertEqual(elf.Elf(program).needed(), needed)
        # In the object that has malloc, and not libc's.
        self.assertTrue(re.search(r" T sdallocx$", elf.output("nm", program), re.M))
        self.assert_on_pcmalloc(program)

    def test_what_is_told_is_there(self):
        self.assertEqual(self.told[0], "Installed:")
        paths = [line[line.index(str(self.top)):].split(" -> ")[0] for line in self.told[1:]]
        self.assertEqual({os.path.relpath(path, self.root) for path in paths}, self.installed())
        self.assertEqual(len({line.index(str(self.top)) for line in self.told[1:]}), 1)
        self.assertEqual(os.readlink(self.root / "lib/libpcmalloc.so"), SONAME)
        for path in paths:
            self.assertTrue(os.path.exists(path))

    def test_nothing_names_the_place(self):
        for path in self.installed():
            self.assertNotIn(b"/opt/example", (self.root / path).read_bytes(), path)

    def test_pkg_config_shared(self):
        for name in SOURCES:
            program = self.build(name, *self.pkg_config("--cflags", "--libs"))
            self.assert_shared(program, LD_LIBRARY_PATH=str(self.root / "lib"))

    def test_pkg_config_shared_where_the_linker_drops_libraries(self):
        for linker in ("bfd", "gold"):
            program = self.build("quiet", f"-fuse-ld={linker}", "-Wl,--as-needed",
                                 *self.pkg_config("--libs"))
            self.assert_shared(program, LD_LIBRARY_PATH=str(self.root / "lib"))

    def test_pkg_config_static(self):
        for name in SOURCES:
            for static in ("-static", "-static-pie"):
                flags = self.pkg_config("--static", "--cflags", "--libs")
                self.assert_static(self.build(name, static, *flags), [])

    def test_pkg_config_archive(self):
        program = self.build("asks", *self.pkg_config("--cflags"),
                             *self.pkg_config("--variable=archive"), "-pthread")
        self.assert_static(program, ["libc.so.6"])

    def cmake(self, text):
        (self.top / "CMakeLists.txt").write_text(text)
        done = run("cmake", "-S", self.top, "-B", self.top / "build", "-G", "Unix Makefiles",
                   f"-DCMAKE_PREFIX_PATH={self.root}")
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    @unittest.skipUnless(shutil.which("cmake") and shutil.which("make"), "no cmake or make here")
    def test_cmake(self):
        self.cmake(CMAKE)
        build = self.top / "build"
        done = run("cmake", "--build", build)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for name in SOURCES:
            self.assert_shared(build / f"{name}_shared")
            self.assert_static(build / f"{name}_static", ["libc.so.6"])
            self.assert_static(build / f"{name}_all_static", [])

    @unittest.skipUnless(shutil.which("cmake") and shutil.which("make"), "no cmake or make here")
    def test_cmake_versions(self):
        answers = dict(re.findall(r"^wanted (\S+) (\d)$", self.cmake(CMAKE_VERSIONS).stderr, re.M))
        self.assertGreater(len(answers), len(SUITING))
        self.assertEqual({wanted for wanted, found in answers.items() if found == "1"}, SUITING)

    def test_installing_again_leaves_running_programs_their_files(self):
        library = self.root / f"lib/{SONAME}"
        before = library.stat().st_ino
        with open(library, "rb"):
            self.assertEqual(self.pcm("install", *self.flags).returncode, 0)
            self.assertNotEqual(library.stat().st_ino, before)
        self.assertFalse([path for path in self.installed() if ".new" in path])

    def test_uninstall(self):
        (self.root / "lib/others.so").touch()
        (self.root / "lib/pkgconfig/others.pc").touch()
        done = self.pcm("uninstall", *self.flags)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout.splitlines()[1:], self.told[1:])
        self.assertEqual({str(path.relative_to(self.root)) for path in self.root.rglob("*")},
                         {"lib", "lib/others.so", "lib/pkgconfig", "lib/pkgconfig/others.pc"})

    def test_uninstall_of_another_version_leaves_nothing(self):
        header = self.root / "include/pcmalloc/pcmalloc.h"
        header.write_text(re.sub(r'(VERSION) "\S+"', r'\1 "0.0.7"', header.read_text()))
        library = self.root / "lib"
        os.rename(next(library.glob("libpcmalloc.so.*.*.*")), library / "libpcmalloc.so.0.0.7")
        (library / SONAME).unlink()
        (library / SONAME).symlink_to("libpcmalloc.so.0.0.7")
        done = self.pcm("uninstall", self.flags[0], DESTDIR=self.flags[2])
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(list(self.root.rglob("*")), [])

    def test_uninstall_where_nothing_is(self):
        done = self.pcm("uninstall", "--prefix", str(self.top / "nowhere"))
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Apcm uninstall: nothing of pcmalloc .*/nowhere\n\Z")

    def test_wrong_use(self):
        for flags in (["--prefx=/x"], ["--prefix"], ["--prefix="], ["more"]):
            for verb in ("install", "uninstall"):
                done = self.pcm(verb, *flags)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertRegex(done.stderr, rf"\Apcm {verb}: .*\n\Z")

    def assert_refused(self, prefix, why):
        done = self.pcm("install", f"--prefix={prefix}")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, rf"\Apcm install: cannot write to {self.top}.*: {why}\n\Z")

    def test_prefix_that_cannot_be_written(self):
        self.assert_refused(self.top / "asks.c/prefix", "Not a directory")
        if os.geteuid() != 0:
            (self.top / "closed").mkdir(mode=0o555)
            self.assert_refused(self.top / "closed/prefix", "Permission denied")

    def test_a_half_of_an_installation_is_not_begun(self):
        prefix = self.top / "prefix"
        (prefix / "lib").mkdir(parents=True)
        (prefix / "lib/pkgconfig").touch()
        self.assert_refused(prefix, "Not a directory")
        self.assertEqual(sorted(path.name for path in prefix.rglob("*")), ["lib", "pkgconfig"])


if __name__ == "__main__":
    cases.main()
