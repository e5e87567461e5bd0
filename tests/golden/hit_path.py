# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of a function's hit path in a disassembly (x86_64, objdump).

The hit path is what runs when no conditional jump is taken: compilers lay out what is expected in a
straight line, and everything that is not expected is a jump away from it. Unconditional jumps
inside the function are followed; a jump out of it (a tail call) or a ret ends the path. So does a
call of memset, whose cost is another matter and which only some compilers make a tail call.
"""

import dataclasses
import re
import subprocess

COLUMNS = ("instructions", "loads", "stores", "branches", "calls", "got_loads", "stack_uses")

_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(.*?)\s*$")
_FUNCTION = re.compile(r"^([0-9a-f]+) <(.+)>:$")
_PREFIXES = {"lock", "rep", "repz", "repnz", "notrack", "bnd", "data16", "cs", "fs"}
_NO_ACCESS = {"lea", "nop", "endbr64"}
_READ_ONLY = {"cmp", "test", "bt", "ucomiss", "ucomisd", "comiss", "comisd"}


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True,
                          timeout=120).stdout


@dataclasses.dataclass
class Instruction:
    address: int
    text: str

    def __post_init__(self):
        code, _, comment = self.text.partition("#")
        words = code.split(None, 1)
        while words and words[0] in _PREFIXES and len(words) > 1:
            words = words[1].split(None, 1)
        self.mnemonic = words[0] if words else ""
        self.operands = self._split(words[1].strip() if len(words) > 1 else "")
        found = re.match(r"\s*([0-9a-f]+)\b", comment)
        self.referenced = int(found.group(1), 16) if found else None

    @staticmethod
    def _split(text):
        """Operands are separated by commas outside of parentheses."""
        parts, depth, start = [], 0, 0
        for i, c in enumerate(text):
            depth += (c == "(") - (c == ")")
            if c == "," and depth == 0:
                parts.append(text[start:i])
                start = i + 1
        return [p for p in parts + [text[start:]] if p]

    @staticmethod
    def _is_memory(operand):
        return "(" in operand or re.match(r"^\*?%[cdefgs]s:", operand) is not None

    def is_a(self, *names):
        """Whether the mnemonic is one of the names, with or without a suffix for its width."""
        return any(re.fullmatch(name + "[bwlq]?", self.mnemonic) for name in names)

    def is_jump(self):
        return self.mnemonic.startswith("j")

    def is_return(self):
        return self.is_a("ret")

    def is_call(self):
        return self.is_a("call")

    def target(self):
        found = re.match(r"([0-9a-f]+) <", self.operands[0] if self.operands else "")
        return int(found.group(1), 16) if found else None

    def accesses(self):
        """(loads, stores) of data memory that the instruction names."""
        if self.is_a(*_NO_ACCESS) or (self.is_jump() and self.target() is not None):
            return 0, 0
        memory = [i for i, operand in enumerate(self.operands) if self._is_memory(operand)]
        if not memory:
            return 0, 0
        last = len(self.operands) - 1
        if memory[-1] != last or self.is_a(*_READ_ONLY) or self.is_jump() or self.is_call():
            return 1, 0
        if self.mnemonic.startswith(("mov", "set")) or self.is_a("pop"):
            return 0, 1
        if self.is_a("mul", "imul", "div", "idiv", "push"):
            return 1, 0
        return 1, 1

    def uses_stack(self):
        if self.is_a("push", "pop", "enter", "leave"):
            return True
        return any("%rsp" in operand or "%esp" in operand for operand in self.operands)


class Disassembly:
    """All functions of a file."""

    def __init__(self, path):
        self.functions = {}  # start address -> instructions
        self.starts = {}     # name -> start address
        self._got = [(int(address, 16), int(address, 16) + int(size, 16))
                     for address, size in re.findall(
                         r"\] \.got(?:\.plt)?\s+PROGBITS\s+([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)",
                         output("readelf", "--wide", "--sections", path))]
        current = None
        for line in output("objdump", "--disassemble", "--no-show-raw-insn", path).splitlines():
            if function := _FUNCTION.match(line):
                current = self.functions.setdefault(int(function.group(1), 16), [])
            elif (instruction := _INSTRUCTION.match(line)) and current is not None:
                current.append(Instruction(int(instruction.group(1), 16), instruction.group(2)))
        # Several names may share one address, of which objdump shows only one.
        for line in output("nm", "--defined-only", path).splitlines():
            fields = line.split()
            if len(fields) == 3 and fields[1] in "TtWw":
                self.starts[fields[2]] = int(fields[0], 16)

    def _reads_got(self, instruction):
        where = instruction.referenced
        return where is not None and any(begin <= where < end for begin, end in self._got)

    def hit_path(self, name):
        """The instructions of the path, in the order of execution."""
        body = self.functions[self.starts[name]]
        at = {instruction.address: i for i, instruction in enumerate(body)}
        path, i = [], 0
        while True:
            if i >= len(body):
                raise ValueError(f"{name}: the path runs off the end of the function")
            instruction = body[i]
            path.append(instruction)
            tail_memset = instruction.is_call() and "<memset@" in instruction.text
            if instruction.is_return() or tail_memset:
                return path
            if instruction.is_a("jmp"):
                if instruction.target() not in at:
                    return path
                i = at[instruction.target()]
                if len(path) > 4 * len(body):
                    raise ValueError(f"{name}: the path is a loop")
            else:
                i += 1

    def counts(self, name):
        """COLUMNS of the function's hit path, and how it ends."""
        path = self.hit_path(name)
        accesses = [instruction.accesses() for instruction in path]
        numbers = dict(zip(COLUMNS, (
            len(path),
            sum(loads for loads, _ in accesses),
            sum(stores for _, stores in accesses),
            sum(i.is_jump() for i in path),
            sum(i.is_call() for i in path),
            sum(self._reads_got(i) for i in path),
            sum(i.uses_stack() for i in path))))
        last = path[-1]
        numbers["end"] = "ret" if last.is_return() else re.sub(r".*<(.*)>.*", r"\1", last.text)
        return numbers


def compiler_of(path):
    """"gcc12" or "clang14": who made the code. The start files are gcc's in either case."""
    comment = output("readelf", "--string-dump=.comment", path)
    clang = re.search(r"clang version (\d+)", comment)
    gcc = re.search(r"GCC: \(.*?\) (\d+)", comment)
    if clang:
        return f"clang{clang.group(1)}"
    return f"gcc{gcc.group(1)}" if gcc else "unknown"
