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

    def typed_functions(self):
        """Names of the functions defined here whose return type the debug information tells."""
        entries, entry = {}, {}
        for line in output("readelf", "--debug-dump=info", self.path).splitlines():
            if found := re.match(r" <\d+><([0-9a-f]+)>: Abbrev Number: \d+ \((DW_TAG_\w+)\)", line):
                entry = entries[int(found[1], 16)] = {"tag": found[2]}
            elif found := re.match(r"    <[0-9a-f]+>   DW_AT_(\w+)\s*: (.*?)\s*$", line):
                entry[found[1]] = re.sub(r"^\((?:indirect|indexed)[^)]*\): ", "", found[2])
        typed = set()
        for function in entries.values():
            if function["tag"] != "DW_TAG_subprogram" or "low_pc" not in function:
                continue
            # What was declared or inlined before is told there.
            told = dict(function)
            while origin := function.get("specification") or function.get("abstract_origin"):
                function = entries[int(re.search(r"<0x([0-9a-f]+)", origin)[1], 16)]
                told = {**function, **told}
            if "type" in told:
                typed.update({told.get("name"), told.get("linkage_name")} - {None})
        return typed
