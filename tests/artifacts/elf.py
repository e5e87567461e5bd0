# SPDX-License-Identifier: Apache-2.0
"""What readelf and nm say about a file, for tests."""

import re
import subprocess


def output(*command):
    """Standard output of a command that must succeed."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=True, timeout=60).stdout


class Elf:
    """One shared object or program."""

    def __init__(self, path):
        self.path = path

    def dynamic(self):
        """The dynamic section as (tag, value) pairs, in order."""
        return re.findall(r"^ 0x[0-9a-f]+ \((\w+)\)\s+(.*?)\s*$",
                          output("readelf", "--wide", "--dynamic", self.path), re.M)

    def needed(self):
        return [re.search(r"\[(.*)\]", value).group(1)
                for tag, value in self.dynamic() if tag == "NEEDED"]

    def flags(self):
        """The words of FLAGS and FLAGS_1."""
        return {word for tag, value in self.dynamic() if tag in ("FLAGS", "FLAGS_1")
                for word in value.replace("Flags:", "").split()}

    def segments(self):
        """(type, file size, memory size, flags) of each program header."""
        return [(kind, int(file_size, 16), int(memory_size, 16), flags.replace(" ", ""))
                for kind, file_size, memory_size, flags in re.findall(
                    r"^  (\w+)\s+0x\w+ 0x\w+ 0x\w+ (0x\w+) (0x\w+) (.{3})",
                    output("readelf", "--wide", "--segments", self.path), re.M)]

    def exports(self):
        """Names that other objects can bind to, without their versions."""
        return {line.split()[-1].split("@")[0]
                for line in output("nm", "--dynamic", "--defined-only", "--extern-only",
                                   self.path).splitlines()}

    def imports(self):
        return {line.split()[-1].split("@")[0]
                for line in output("nm", "--dynamic", "--undefined-only", self.path).splitlines()}
