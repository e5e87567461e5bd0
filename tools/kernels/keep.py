# SPDX-License-Identifier: Apache-2.0
"""Rows that a run has made, kept in a file: an interrupted run goes on where it was.

What is taken from there is what a boot would make anew: of the same kernel package, programs, C
libraries and plans, and right. Runs for different kernels may share one file at the same time.
"""

import fcntl
import hashlib
import json
import os


class Unusable(Exception):
    """The file does not hold rows."""


def digest(choice, boots, programs):
    """Of all that a row follows from; `programs` as {name: bytes}, those that no boot uses too."""
    whole = hashlib.sha256(choice.package.sha256.encode())

    def add(*parts):
        for part in parts:
            part = part if isinstance(part, bytes) else repr(part).encode()
            whole.update(b"%d:" % len(part) + part)

    for name, content in sorted(programs.items()):
        add(name, content)
    for boot in boots:
        names, more = boot.files
        add(*boot._replace(files=sorted(names)))
        for name, content in sorted(more.items()):
            add(name, content)
    return whole.hexdigest()


class Kept:
    """The rows in a file, by their digest."""

    def __init__(self, path):
        self._path = path

    def _read(self):
        if not os.path.exists(self._path):
            return []
        try:
            with open(self._path, encoding="utf-8") as file:
                rows = json.load(file)
        except ValueError as error:
            raise Unusable("%s: %s" % (self._path, error)) from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Unusable("%s is no array of rows" % self._path)
        return rows

    def find(self, of):
        """The row with that digest if it was right, or None."""
        return next((row for row in self._read() if row.get("digest") == of and row.get("ok")),
                    None)

    def add(self, row):
        """Puts a row in, in the place of one of the same kernel and boots: at once or
        not at all."""
        def key(one):
            return [one.get(name) for name in ("arch", "version", "why")]
        with open(self._path + ".lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = [one for one in self._read() if key(one) != key(row)] + [row]
            fresh = self._path + ".new"
            with open(fresh, "w", encoding="utf-8") as file:
                json.dump(rows, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
