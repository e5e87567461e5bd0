# SPDX-License-Identifier: Apache-2.0
"""Boots a kernel under QEMU and reads what its /init says."""

import os
import re
import selectors
import signal
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


def command(arch, kernel, initrd, cpus, memory, append="", smp_more=""):
    """The QEMU command line."""
    return MACHINES[arch] + [
        "-accel", "tcg,thread=multi", "-smp", "%d%s" % (cpus, smp_more), "-m", str(memory),
        "-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
        "-net", "none", "-kernel", kernel, "-initrd", initrd,
        "-append", (COMMAND_LINE + CONSOLE[arch] + " " + append).strip()]


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


def _run_once(arguments, limit, progress):
    result = Result()
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
                    progress(result, time.monotonic() - began)
        finally:
            if qemu.poll() is None:
                try:
                    qemu.wait(5 if not result.late else 0)
                except subprocess.TimeoutExpired:
                    os.killpg(qemu.pid, signal.SIGKILL)
    result.seconds = time.monotonic() - began
    return result


def boot(arch, kernel, archive, cpus=2, memory=512, append="", smp_more="", seconds=60,
         deadline=float("inf"), progress=lambda result, seconds: None):
    """Boots with an initramfs (bytes); `seconds` is what the plan may take, `deadline` when all must
    be over. Retries once if the boot did not reach its end, as emulation under load sometimes does
    not."""
    def limit():
        return min(BOOT_SECONDS + seconds, deadline - time.monotonic())
    with tempfile.NamedTemporaryFile(prefix="pcmalloc-initramfs-") as file:
        file.write(archive)
        file.flush()
        arguments = command(arch, kernel, file.name, cpus, memory, append, smp_more)
        result = _run_once(arguments, limit(), progress)
        if not result.complete and limit() > 0:
            first = result
            result = _run_once(arguments, limit(), progress)
            result.tries = 2
            result.seconds += first.seconds
    return result
