#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Installs the two libraries, the header, and what pkg-config and CMake ask for; or removes them.

`./pcm install` and `./pcm uninstall` are this program. Exit status: 0 done, 1 it could not be, 2
wrong use. Nothing that is installed names the prefix, so that the whole may be moved.
"""

import argparse
import os
import pathlib
import re
import shutil
import sys
import tempfile

TREE = pathlib.Path(os.path.abspath(__file__)).parents[2]
TEMPLATES = TREE / "tools/install"
INCLUDE = TREE / "allocator/api/include"
HEADER = "include/pcmalloc/pcmalloc.h"

# Whose include/ and lib/ stay, empty or not.
SYSTEM = (pathlib.Path("/usr"), pathlib.Path("/usr/local"))


class Failure(Exception):
    """Told in one line."""


class Parser(argparse.ArgumentParser):

    def error(self, message):
        self.exit(2, f"{self.prog.removeprefix('./')}: {message} ({self.prog} --help)\n")


def directory(text):
    if not text:
        raise argparse.ArgumentTypeError("a directory is missing")
    return pathlib.Path(os.path.abspath(text))


def parse_arguments(argv):
    verb = argv[0] if argv else ""
    if verb not in ("install", "uninstall"):
        sys.exit("usage: install.py install|uninstall [FLAG...]")
    what = {
        "install": "Installs libpcmalloc.so and libpcmalloc.a (builds them if a source has "
                   "changed), the header, and the files by which pkg-config and CMake find them.",
        "uninstall": "Removes what `./pcm install` with the same flags has installed.",
    }
    parser = Parser(prog=f"./pcm {verb}", description=what[verb], allow_abbrev=False)
    parser.add_argument("--prefix", type=directory, default="/usr/local", metavar="DIR",
                        help="where include/ and lib/ are (default /usr/local)")
    parser.add_argument("--destdir", type=directory, default=os.environ.get("DESTDIR") or None,
                        metavar="DIR", help="put before the prefix, to make a package of what "
                        "comes to lie there (default: $DESTDIR)")
    if verb == "install":
        # For ./pcm and tests: only see whether flags and places are right; where the libraries are.
        parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
        parser.add_argument("--libraries", type=directory, default=str(TREE / "out"),
                            help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    options.verb = verb
    options.root = options.prefix
    if options.destdir:
        options.root = options.destdir / options.prefix.relative_to("/")
    return options


def version_of(header):
    """The version that a public header states, as text."""
    found = re.search(r'^#define PCMALLOC_VERSION "(\d+\.\d+\.\d+)"$',
                      header.read_text(encoding="utf-8"), re.M)
    if not found:
        raise Failure(f"{header} states no version")
    return found[1]


def major_of(version):
    return version.split(".", maxsplit=1)[0]


class File:
    """One installed file, or a link if `link` says to what."""

    def __init__(self, what, path, source=None, link=None, mode=0o644, version=None):
        self.what, self.path, self.source, self.link, self.mode = what, path, source, link, mode
        self.version = version  # to be filled into the source

    def shown(self, root):
        return f"{root / self.path}{f' -> {self.link}' if self.link else ''}"

    def put(self, root):
        path = root / self.path
        # Renamed into place: whoever has the old one open or mapped keeps it.
        new = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            if self.link:
                new.symlink_to(self.link)
            elif self.version:
                text = self.source.read_text(encoding="utf-8")
                text = text.replace("@VERSION@", self.version)
                new.write_text(text.replace("@MAJOR@", major_of(self.version)), encoding="utf-8")
            else:
                shutil.copyfile(self.source, new)
            if not self.link:
                new.chmod(self.mode)
            new.replace(path)
        except OSError as error:
            if new.is_symlink() or new.is_file():
                new.unlink()
            raise Failure(f"cannot write {path}: {error.strerror}") from error

    def is_there(self, root):
        path = root / self.path
        if self.link:
            return path.is_symlink() and os.readlink(path) == self.link
        return path.is_file()


def files(version, libraries=TREE / "out"):
    """Everything that an installation of that version consists of."""
    real = f"libpcmalloc.so.{version}"
    soname = f"libpcmalloc.so.{major_of(version)}"
    package = "lib/cmake/pcmalloc/pcmalloc-config"
    return [
        File("shared library", f"lib/{real}", libraries / "libpcmalloc.so", mode=0o755),
        File("  name to run with", f"lib/{soname}", link=real),
        File("  name to link with", "lib/libpcmalloc.so", link=soname),
        File("static library", "lib/libpcmalloc.a", libraries / "libpcmalloc.a"),
        File("header", HEADER, INCLUDE / "pcmalloc/pcmalloc.h"),
        File("pkg-config", "lib/pkgconfig/pcmalloc.pc", TEMPLATES / "pcmalloc.pc.in",
             version=version),
        File("CMake", f"{package}.cmake", TEMPLATES / "pcmalloc-config.cmake.in", version=version),
        File("  its version", f"{package}-version.cmake",
             TEMPLATES / "pcmalloc-config-version.cmake.in", version=version),
    ]


def show(done, wanted, root):
    print(f"{done}:")
    width = max(len(file.what) for file in wanted)
    for file in wanted:
        print(f"  {file.what:{width}}  {file.shown(root)}")


def check_writable(wanted, root):
    """Before anything is written: a half of an installation helps nobody."""
    for place in sorted({(root / file.path).parent for file in wanted}):
        while not os.path.lexists(place):
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise Failure(f"cannot write to {place}: {error.strerror}") from error


def install(options):
    wanted = files(version_of(INCLUDE / "pcmalloc/pcmalloc.h"), options.libraries)
    check_writable(wanted, options.root)
    if options.check:
        return
    for file in wanted:
        if file.source and not file.source.is_file():
            raise Failure(f"{file.source} is missing")
    for file in wanted:
        file.put(options.root)
    show("Installed", wanted, options.root)
    if options.destdir:
        return
    library = options.root / "lib"
    if options.root in SYSTEM:
        print("The dynamic linker knows of it after: ldconfig")
    else:
        print("To be found there:\n"
              f"  by pkg-config  PKG_CONFIG_PATH={library}/pkgconfig\n"
              f"  by CMake       CMAKE_PREFIX_PATH={options.root}\n"
              f"  by programs    -Wl,-rpath,{library}, or LD_LIBRARY_PATH")


def uninstall(options):
    header = options.root / HEADER
    version = version_of(header if header.is_file() else INCLUDE / "pcmalloc/pcmalloc.h")
    present = [file for file in files(version) if file.is_there(options.root)]
    if not present:
        raise Failure(f"nothing of pcmalloc is installed below {options.root}")
    # The header, which says what version the rest has, goes last.
    for file in sorted(present, key=lambda file: file.path == HEADER):
        try:
            (options.root / file.path).unlink()
        except OSError as error:
            raise Failure(f"cannot remove {options.root / file.path}: {error.strerror}") from error
    places = ["include/pcmalloc", "lib/cmake/pcmalloc", "lib/cmake", "lib/pkgconfig"]
    if options.root not in SYSTEM:
        places += ["include", "lib"]
    for name in places:
        try:
            (options.root / name).rmdir()
        except OSError:
            pass  # not there, or others have files in it
    show("Removed", present, options.root)


def main(argv):
    options = parse_arguments(argv)
    try:
        {"install": install, "uninstall": uninstall}[options.verb](options)
    except Failure as failure:
        print(f"pcm {options.verb}: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
