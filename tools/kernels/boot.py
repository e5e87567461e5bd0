# SPDX-License-Identifier: Apache-2.0
"""Boots a kernel under QEMU and reads what its /init says."""

import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import tempfile
import time

MACHINES = {
    "x86_64": ["qemu-system-x86_64", "-cpu", "Nehalem", "-M", "q35"],
    "arm64": ["qemu-system-aarch64", "-cpu", "cortex-a72", "-M", "virt"],
}
CONSOLE = {"x86_64": "ttyS0 no_timer_check tsc=reliable", "arm64": "ttyAMA0"}
COMMAND_LINE = ("quiet loglevel=0 panic=-1 nokaslr mitigations=off random.trust_cpu=on "
                "rdinit=/init console=")
# What a boot takes beside what runs inside it, on a busy machine.
BOOT_SECONDS = 90


def command(arch, kernel, initrd, cpus, memory, append="", smp_more="", model=None, monitor=None,
            dtb=None):
    """The QEMU command line. model: another processor; monitor: path of a socket for QEMU's
    monitor; dtb: a device tree instead of the machine's own."""
    machine = list(MACHINES[arch])
    if model:
        machine[machine.index("-cpu") + 1] = model
    return machine + [
        "-accel", "tcg,thread=multi", "-smp", "%d%s" % (cpus, smp_more), "-m", str(memory),
        "-nodefaults", "-display", "none",
        "-monitor", "unix:%s,server=on,wait=off" % monitor if monitor else "none",
        "-serial", "stdio", "-no-reboot", "-net", "none", "-kernel", kernel, "-initrd", initrd,
        "-append", (COMMAND_LINE + CONSOLE[arch] + " " + append).strip()] + (
            ["-dtb", dtb] if dtb else [])


def tell_monitor(path, line):
    """One command for QEMU, such as device_add."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(10)
        monitor.connect(path)
        monitor.sendall(line.encode() + b"\n")
        # The prompt and the echo; the answer, if any, is an error for whoever reads the console.
        time.sleep(1)
        return monitor.recv(65536).decode("utf-8", "replace")


def tree_without_cpu(arch, cpus, memory, number, path):
    """Writes the machine's device tree with one processor that cannot be started: the kernel leaves
    its number out of the possible ones."""
    arguments = command(arch, "none", "none", cpus, memory)
    arguments = arguments[:arguments.index("-kernel")]
    arguments[arguments.index("-M") + 1] += ",dumpdtb=" + path
    subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                   stderr=subprocess.STDOUT, check=True, timeout=60)
    with open(path, "rb") as file:
        tree = bytearray(file.read())
    # The node's name, then its properties; the first "psci" behind it is its enable-method.
    node = tree.index(b"cpu@%d\0" % number)
    at = tree.index(b"psci\0", node)
    if tree.find(b"cpu@%d\0" % (number + 1), node, at) >= 0:
        raise ValueError("the device tree has no enable-method for CPU %d" % number)
    tree[at:at + 4] = b"none"
    # QEMU leaves 1 MiB of room and doubles it when it reads the file: more than a kernel accepts.
    strings, = struct.unpack_from(">I", tree, 12)
    strings_size, = struct.unpack_from(">I", tree, 32)
    del tree[(strings + strings_size + 7) & ~7:]
    struct.pack_into(">I", tree, 4, len(tree))
    with open(path, "wb") as file:
        file.write(tree)


class Result:
    """What one boot said: values by key, the rest of the console, and how it ended."""

    def __init__(self):
        self.values = {}
        self.log = []
        self.console = []
        self.seconds = 0.0
        self.late = False
        self.tries = 1

    @property
    def started(self):
        return "init" in self.values

    @property
    def complete(self):
        return "end" in self.values

    def take(self, line):
        """One line of the console."""
        self.console.append(line)
        # The firmware or the kernel may have left something in front.
        match = re.search(r"PCM ([\w.-]+)=(.*)$", line)
        if match:
            self.values[match.group(1)] = match.group(2)
            return
        match = re.search(r"LOG ([\w-]+): (.*)$", line)
        if match:
            self.log.append("%s: %s" % match.groups())

    def program(self, name):
        """{key: value} of one program of the plan."""
        return {key.split(".", 1)[1]: value for key, value in self.values.items()
                if key.startswith(name + ".")}


def _run_once(arguments, limit, progress, monitor=None, hot_add=()):
    result = Result()
    to_add = list(hot_add)
    began = time.monotonic()
    pending = b""
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True) as qemu:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(qemu.stdout, selectors.EVENT_READ)
                while True:
                    left = began + limit - time.monotonic()
                    if left <= 0:
                        result.late = True
                        break
                    if not selector.select(min(left, 1.0)):
                        progress(result, time.monotonic() - began)
                        continue
                    chunk = os.read(qemu.stdout.fileno(), 65536)
                    if not chunk:
                        break
                    pending += chunk
                    *lines, pending = pending.split(b"\n")
                    for line in lines:
                        result.take(line.decode("utf-8", "replace").rstrip("\r"))
                    if to_add and "hot_add" in result.values:
                        answer = tell_monitor(monitor, to_add.pop(0))
                        if "Error" in answer:
                            result.log.append("hot_add: " + answer.split("Error", 1)[1])
                    progress(result, time.monotonic() - began)
        finally:
            # It has a moment to end by itself, unless this is the end of the whole run.
            if qemu.poll() is None:
                try:
                    qemu.wait(0 if result.late or not result.complete else 5)
                except subprocess.TimeoutExpired:
                    os.killpg(qemu.pid, signal.SIGKILL)
    result.seconds = time.monotonic() - began
    return result


def boot(arch, kernel, archive, one, memory=512, deadline=float("inf"),
         progress=lambda result, seconds: None):
    """Boots `one` (a plan.Boot) with its initramfs (bytes) until `deadline` at most. Retries once
    if the boot did not reach its end, as emulation under load sometimes does not."""
    def limit():
        return min(BOOT_SECONDS + one.seconds, deadline - time.monotonic())
    with tempfile.TemporaryDirectory(prefix="pcmalloc-boot-") as directory:
        initrd = os.path.join(directory, "initramfs")
        monitor = os.path.join(directory, "monitor") if one.hot_add else None
        dtb = None
        with open(initrd, "wb") as file:
            file.write(archive)
        if one.without_cpu is not None:
            dtb = os.path.join(directory, "tree")
            tree_without_cpu(arch, one.cpus, memory, one.without_cpu, dtb)
        arguments = command(arch, kernel, initrd, one.cpus, memory, one.append, one.smp_more,
                            one.model, monitor, dtb)
        result = _run_once(arguments, limit(), progress, monitor, one.hot_add)
        if not result.complete and limit() > 0:
            first = result
            result = _run_once(arguments, limit(), progress, monitor, one.hot_add)
            result.tries = 2
            result.seconds += first.seconds
    return result
