# SPDX-License-Identifier: Apache-2.0
"""Touches free memory before it is measured, so that a virtual machine's host has backed it.

The first touch of a page that the host has not backed costs a fault there, ten times what the guest
does for it. It is paid once where the host keeps what it gave. Where the guest reports its free
pages back (virtio-balloon, Hyper-V) it is paid again some seconds after a page was freed: there a
little is touched before each run instead.

Run as a program it is the child that touches: `warm.py BYTES SECONDS`.
"""

import dataclasses
import json
import mmap
import os
import subprocess
import sys
import time

STEP = 256 << 20
MODES = ("auto", "always", "never")
# The one touch at the start ends after so many seconds, with --quick the second; each before a run
# after the third.
LIMIT_SECONDS, LIMIT_SECONDS_QUICK, LIMIT_SECONDS_RUN = 300, 20, 60
# Before the first run of a row, when it is not known yet what it needs.
FIRST_GUESS = 256 << 20
MOST_BEFORE_RUN = 2 << 30  # more would have gone again before the run gets there
PEAKS = ("peak_rss_bytes", "max_rss_bytes", "rss_bytes")

# Makers of virtual machines by DMI; for those who also let real ones, what the product is called.
VENDORS = {"QEMU": "", "KVM": "", "Xen": "", "VMware, Inc.": "", "innotek GmbH": "", "Bochs": "",
           "Parallels": "", "Amazon EC2": "!.metal", "Google": "Google Compute Engine",
           "Microsoft Corporation": "Virtual Machine", "OpenStack Foundation": "",
           "DigitalOcean": "", "Hetzner": "vServer", "Alibaba Cloud": "Alibaba Cloud ECS",
           "Apple Inc.": "Apple Virtualization"}


def read(root, *path):
    """Text of a file under `root`, or an empty string."""
    try:
        with open(os.path.join(root, *path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def under_hypervisor(root="/"):
    """Whether this is a virtual machine, as far as it tells."""
    for line in read(root, "proc/cpuinfo").splitlines():
        if line.startswith("flags") and "hypervisor" in line.split():
            return True
    if read(root, "sys/hypervisor/type").strip():
        return True
    # aarch64 has no such flag: device tree, or DMI.
    if os.path.isdir(os.path.join(root, "proc/device-tree/hypervisor")):
        return True
    if "linux,dummy-virt" in read(root, "proc/device-tree/compatible"):
        return True
    vendor = read(root, "sys/class/dmi/id/sys_vendor").strip()
    product = read(root, "sys/class/dmi/id/product_name").strip()
    wanted = VENDORS.get(vendor)
    if wanted is None:
        return False
    return wanted[1:] not in product if wanted.startswith("!") else wanted in product


def reports_free_pages(root="/"):
    """Whether the guest hands free pages back to the host while it runs.

    The kernel sets the order when a driver asks for it; until then it is -1, unsigned.
    """
    order = read(root, "sys/module/page_reporting/parameters/page_reporting_order").strip()
    return order.isdigit() and int(order) < 64


def meminfo(root="/"):
    """/proc/meminfo in bytes."""
    fields = {}
    for line in read(root, "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if value.split()[1:] == ["kB"]:
            fields[name] = int(value.split()[0]) * 1024
    return fields


def cgroup_left(root="/"):
    """Bytes until a memory limit of this process' control group or one above it; None: no limit."""
    left = []
    for line in read(root, "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = "sys/fs/cgroup", (("memory.max", "memory.current"),
                                            ("memory.high", "memory.current"))
        elif "memory" in controllers.split(","):
            base, names = "sys/fs/cgroup/memory", (
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),)
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            place = os.path.join(base, *parts[:depth])
            for limit, usage in names:
                most, used = (read(root, place, name).strip() for name in (limit, usage))
                # v1 writes "none" as a number near 2^63.
                if most.isdigit() and used.isdigit() and int(most) < 1 << 60:
                    left.append(max(0, int(most) - int(used)))
    return min(left) if left else None


def margin(available):
    """What is left alone of so many bytes: 15 % and 1 GiB."""
    return available * 15 // 100 + (1 << 30)


def amount(root="/"):
    """Bytes that may be touched now.

    Of what is free, not of the page cache, whose pages the host has backed already.
    """
    fields = meminfo(root)
    free, available = fields.get("MemFree", 0), fields.get("MemAvailable", 0)
    most = min(free, available) - margin(available)
    left = cgroup_left(root)
    if left is not None:
        most = min(most, left - margin(left))
    return max(0, most)


@dataclasses.dataclass
class Touched:
    """What children touched; seconds a page of 4 KiB in the quickest and the slowest step."""

    bytes: int = 0
    seconds: float = 0.0
    quickest: float = 0.0
    slowest: float = 0.0
    stopped: str = ""

    def add(self, size, seconds):
        per_page = seconds / (size / 4096)
        self.quickest = min(self.quickest, per_page) if self.bytes else per_page
        self.slowest = max(self.slowest, per_page)
        self.bytes += size

    def __str__(self):
        if not self.bytes:
            return "none" + (" (%s)" % self.stopped if self.stopped else "")
        return "%.1f GB in %.0f s, %.2f to %.2f us a page of 4 KiB%s" % (
            self.bytes / 1e9, self.seconds, self.quickest * 1e6, self.slowest * 1e6,
            " (%s)" % self.stopped if self.stopped else "")


def touch_in_child(size, limit_seconds, touched, progress=lambda text: None):
    """Adds to `touched` what a child touched, which has ended when this returns."""
    begin, done = time.monotonic(), 0
    child = subprocess.Popen([sys.executable, "-I", "-S", os.path.abspath(__file__), str(size),
                              str(limit_seconds)], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, text=True,
                             env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"})
    try:
        for line in child.stdout:
            entry = json.loads(line)
            if "stopped" in entry:
                touched.stopped = entry["stopped"]
                continue
            touched.add(entry["bytes"], entry["seconds"])
            done += entry["bytes"]
            progress("touching free memory: %.1f of %.1f GB" % (done / 1e9, size / 1e9))
    finally:
        child.kill()
        child.stdout.close()
        status = child.wait()
        touched.seconds += time.monotonic() - begin
    if done < size and not touched.stopped:
        touched.stopped = "ended early, status %d" % status


def touch(size, limit_seconds):
    """The child's work: one line of JSON a step on stdout. Ending releases it all."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # the first to go, should memory become scarce after all
    begin, kept, done = time.monotonic(), [], 0
    while done < size:
        if time.monotonic() - begin > limit_seconds:
            print(json.dumps({"stopped": "stopped after %d s" % limit_seconds}), flush=True)
            return
        step = min(STEP, size - done)
        if amount() < step:
            print(json.dumps({"stopped": "others took memory meanwhile"}), flush=True)
            return
        start = time.monotonic()
        try:
            block = mmap.mmap(-1, step, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            print(json.dumps({"stopped": "mmap: %s" % error}), flush=True)
            return
        try:
            block.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without hugepages
        count = -(-step // mmap.PAGESIZE)
        block[0:step:mmap.PAGESIZE] = b"\1" * count
        kept.append(block)
        done += step
        print(json.dumps({"bytes": step, "seconds": time.monotonic() - start}), flush=True)


class Warmer:
    """What --warm-memory does: start() once, then before() each run; facts() tell of it."""

    def __init__(self, mode, quick, progress, say, root="/"):
        self.mode, self.quick, self.progress, self.say, self.root = mode, quick, progress, say, root
        self.wanted = mode == "always" or (mode == "auto" and under_hypervisor(root))
        self.each_run = self.wanted and reports_free_pages(root)
        self.touched = Touched()
        self.peaks = {}  # of each row, by what its runs told

    def start(self, jobs):
        """The one touch, if that lasts and some row asks for new memory."""
        if not self.wanted:
            return
        if (self.mode == "auto" or self.each_run) and not any(map(needs_memory, jobs)):
            self.wanted = self.each_run = False
            return
        if self.each_run:
            self.say("free memory goes back to the host: some is touched before each run")
            return
        size = amount(self.root)
        if size == 0:
            self.touched.stopped = "too little is free"
        else:
            self.say("touching %.1f GB of free memory once, so that the host has backed it" %
                     (size / 1e9))
            touch_in_child(size, LIMIT_SECONDS_QUICK if self.quick else LIMIT_SECONDS,
                           self.touched, self.progress)
        self.say("memory touched before: %s" % self.touched)

    def size_for(self, job):
        """A quarter more than the largest run of the row so far."""
        peak = self.peaks.get((job.suite, job.row))
        size = job.memory or FIRST_GUESS if peak is None else peak * 5 // 4 + (4 << 20)
        return min(size, MOST_BEFORE_RUN, amount(self.root))

    def before(self, job):
        if self.each_run and needs_memory(job):
            size = self.size_for(job)
            if size:
                touch_in_child(size, LIMIT_SECONDS_RUN, self.touched)

    def after(self, job, results):
        peaks = [int(value) for _, metric, _, value in results if metric in PEAKS]
        if peaks:
            key = (job.suite, job.row)
            self.peaks[key] = max(self.peaks.get(key, 0), *peaks)

    def facts(self):
        if not self.wanted:
            return []
        name = "memory touched before"
        if self.each_run:
            name += " each run, as free memory goes back to the host"
        return [(name, str(self.touched))]


def needs_memory(job):
    """Whether the row measures the time in which new memory is touched.

    Of micro and memory few rows do: the others run for long in a small heap, or measure RSS.
    """
    if job.suite == "micro":
        return job.row.startswith("first-touch/")
    if job.suite == "memory":
        return job.row.startswith("realloc-")
    return True


if __name__ == "__main__":
    touch(int(sys.argv[1]), float(sys.argv[2]))
