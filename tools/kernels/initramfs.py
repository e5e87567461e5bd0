# SPDX-License-Identifier: Apache-2.0
"""Writes an initramfs: a cpio archive in the "newc" form, uncompressed."""

import stat

_TRAILER = "TRAILER!!!"


def _entry(name, mode, data=b"", device=(0, 0), inode=0):
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, len(data), 0, 0,
              device[0], device[1], len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(data)


def _padded(data):
    return data + b"\0" * (-len(data) % 4)


def newc(files):
    """The archive of {path: bytes}, plus their directories and /dev/console; all executable.

    Paths are relative ("bin/init"). The order is that of the names, so equal input
    gives equal bytes.
    """
    directories = {"dev"}
    for path in files:
        parts = path.split("/")[:-1]
        directories.update("/".join(parts[:i + 1]) for i in range(len(parts)))
    parts = []
    inode = 1
    for name in sorted(directories):
        parts.append(_entry(name, stat.S_IFDIR | 0o755, inode=inode))
        inode += 1
    parts.append(_entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1), inode=inode))
    for name in sorted(files):
        inode += 1
        parts.append(_entry(name, stat.S_IFREG | 0o755, files[name], inode=inode))
    parts.append(_entry(_TRAILER, 0))
    archive = b"".join(parts)
    return archive + b"\0" * (-len(archive) % 512)


def entries(archive):
    """(name, mode, data) of each entry; the reverse of newc, for its test."""
    at = 0
    while archive[at:at + 6] == b"070701":
        fields = [int(archive[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110:at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name == _TRAILER:
            return
        yield name, mode, archive[at:at + size]
        at += size
        at += -at % 4
    raise ValueError("no trailer")
