# SPDX-License-Identifier: Apache-2.0
"""What runs inside the boots of a kernel, and what each of it must answer."""

import collections
import fnmatch

import catalogue

# One boot: its plan as text, and how many seconds the plan may take at most. model: a processor
# other than the usual one; hot_add: what QEMU's monitor is told when the plan asks for a CPU;
# without_cpu: the number of one that the device tree has but that cannot be started.
Boot = collections.namedtuple("Boot", "name text seconds cpus append smp_more files model hot_add "
                              "without_cpu", defaults=(None, (), None))

OWN_AREA = "GLIBC_TUNABLES=glibc.pthread.rseq=0"
# The layers' own tests: name, program and its arguments. Without the cases that measure time, fill
# the emulated CPUs with spinning threads or the process with mappings.
UNITS = (("lock", ("lock_unit",)), ("move", ("move_unit", "--gtest_filter=-*AtTheLimit*")),
         ("probe", ("probe_unit", "--gtest_filter=-*TakesMilliseconds:*UnderLoad")),
         ("slabs_cpu", ("slabs_unit", "--mode=cpu")), ("slabs_cid", ("slabs_unit", "--mode=cid")),
         ("slabs_locked", ("slabs_unit", "--mode=locked")))
# These force sections, or expect them to be aborted.
NEED_ABORTS = ("probe", "slabs_cpu", "slabs_cid")
# The program whose sections have a fault, and the operation that the fault is in.
SABOTAGED_INSTRUCTIONS = "instructions_two_commits"
SABOTAGED_OPERATION = "Push"
# Emulation on a busy machine is slow: a limit only ends what hangs.
PATIENCE = 60

EXPECTED_MODE = {"CACHE_OK": "v2safe-cpu", "NO_CACHE": "v2safe-cpu", "V2": "v2safe-cpu",
                 "NO_RSEQ": "locked"}


# A processor that knows pages of 16 KiB and addresses of 52 bits, which the usual one does not.
WIDE = "max"
# Runs while the CPUs change have one of these in their names.
CHANGES_CPUS = ("toggle", "cpuset", "hotadd")


def legacy_mode(expected):
    """The mode that must come of rseq:legacy on x86_64, with an area of the library's own."""
    return "v2safe-cpu" if expected == "NO_CACHE" else "legacy"


def stress_modes(expected, release):
    """The modes that must be safe there."""
    if expected == "NO_RSEQ":
        return ["locked"]
    modes = ["v2safe-cpu", "locked"]
    if release >= catalogue.FIRST_WITH_LENGTHS:
        modes.insert(1, "v2safe-cid")
    return modes


class _Plan:
    """Collects the lines of /plan."""

    def __init__(self, mounted=True):
        self.lines = ["mount"] if mounted else []
        self.seconds = 0

    def run(self, name, seconds, *words, flags="-"):
        self.lines.append("run %s %d %s %s" % (name, seconds + PATIENCE, flags, " ".join(words)))
        self.seconds += seconds + PATIENCE

    def stress(self, name, seconds, *words, program=("/bin/stress",), flags="-", extra=()):
        # Forks and thread ends are the slowest part under emulation; signals storm enough at 200.
        self.run(name, seconds, *words, *program, "--seconds=%d" % seconds, "--json",
                 "--signal_rate=200", "--migrate_rate=200", "--fork_rate=1", *extra, flags=flags)

    def boot(self, name, files, cpus=2, append="", smp_more=""):
        text = "\n".join(self.lines) + "\n"
        return Boot(name, text, self.seconds, cpus, append, smp_more, files)


def boots_for(choice, programs, libcs, quick, seconds):
    """The boots of one kernel.

    programs: names of what was built for the architecture; libcs: {directory in the initramfs:
    files} of the C libraries to run dynamic programs with; seconds: length of each stress run.
    """
    release = choice.package.release
    plan = _Plan()
    plan.run("probe", 10, OWN_AREA, "/bin/probe")
    plan.run("detect", 10, "/bin/detect")
    plan.run("same_core", 10, OWN_AREA, "/bin/same_core_test", "2")
    plan.run("mode", 10, "/bin/mode")
    plan.run("mode_own", 10, OWN_AREA, "/bin/mode")
    wanted = {"init", "probe", "detect", "same_core_test", "mode", "stress"}
    files = {}
    for mode in stress_modes(choice.expected, release):
        plan.stress("stress_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode)
    if choice.expected != "NO_RSEQ":
        # Registered by the library itself, at the length that the kernel advertises.
        plan.stress("stress_own", seconds, OWN_AREA, "PCMALLOC_CONF=rseq:v2safe-cpu")
    if choice.arch == "x86_64":
        # Asked for the legacy scheme: granted only where the kernel rewrites.
        plan.stress("stress_legacy", seconds, OWN_AREA, "PCMALLOC_CONF=rseq:legacy")
    if "stress_legacy_unproved" in programs:
        # The legacy scheme without proof: safe only where the kernel rewrites.
        wanted.add("stress_legacy_unproved")
        plan.stress("sabotage_legacy", seconds, OWN_AREA, "PCMALLOC_CONF=rseq:legacy",
                    program=("/bin/stress_legacy_unproved",))
    if "musl" in programs:
        wanted.add("musl")
        plan.run("musl", seconds, "/bin/musl", str(seconds))
    for name, words in UNITS:
        if name == "slabs_cid" and release < catalogue.FIRST_WITH_LENGTHS:
            continue
        if name in NEED_ABORTS and choice.expected == "NO_RSEQ":
            continue
        wanted.add(words[0])
        plan.run("unit_" + name, 60, "TMPDIR=/tmp", "/bin/" + words[0], *words[1:])
    if not quick and "instructions" in programs and choice.expected != "NO_RSEQ":
        wanted |= {"instructions", "instructions.listing"}
        # QEMU translates all code anew when a breakpoint changes, 20 ms each on arm64,
        # several times that on a busy machine.
        plan.run("preempt", 1200, "TMPDIR=/tmp", "/bin/instructions")
        if SABOTAGED_INSTRUCTIONS in programs:
            wanted |= {SABOTAGED_INSTRUCTIONS, SABOTAGED_INSTRUCTIONS + ".listing"}
            plan.run("sabotage_preempt", 300, "TMPDIR=/tmp", "PCM_INSTRUCTIONS_FIRST_ONLY=1",
                     "/bin/" + SABOTAGED_INSTRUCTIONS, "--gtest_filter=*EveryOneOfEverySection")
    if libcs and "stress_dynamic" in programs and not quick:
        wanted |= {"stress_dynamic", "libpcmalloc.so"}
        wanted |= {name for name in programs if name.startswith("/lib/")}
        for directory, contents in sorted(libcs.items()):
            files.update(contents)
            loader = next(path for path in contents if "/ld-linux" in path)
            plan.stress("stress_libc_" + directory.replace(".", "_"), seconds,
                        program=("/" + loader, "--library-path", "/%s:/lib" % directory,
                                 "--preload", "/bin/libpcmalloc.so", "/bin/stress_dynamic"))
    large_pages = catalogue.has_16k_pages(choice.package)
    boots = [plan.boot("plain", _files(wanted, files))]
    if not quick and catalogue.modern_enough_for_debug(release):
        boots.append(_debug_boot(choice, seconds))
    return [one._replace(model=WIDE) for one in boots] if large_pages else boots


def _debug_boot(choice, seconds):
    """Four CPUs, and a kernel that kills whoever writes a field that is not his."""
    plan = _Plan()
    if choice.expected != "NO_RSEQ":
        # arm64 7.0.10 to 7.0.13 kill even a section that writes nothing there.
        plan.run("probe", 10, OWN_AREA, "/bin/probe")
    plan.run("mode", 10, "/bin/mode")
    for mode in stress_modes(choice.expected, choice.package.release):
        plan.stress("stress_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode)
    if choice.expected != "NO_RSEQ":
        plan.stress("stress_own", seconds, OWN_AREA, "PCMALLOC_CONF=rseq:v2safe-cpu")
    return plan.boot("rseq_debug", _files({"init", "probe", "mode", "stress"}), cpus=4,
                     append="rseq_debug=1")


def _gap_boot(seconds):
    """arm64: possible CPUs 0, 2 and 3. (On x86_64 the kernel numbers them without gaps.)"""
    plan = _Plan()
    plan.run("detect", 10, "/bin/detect")
    plan.lines.append("show /sys/devices/system/cpu/possible")
    plan.run("mode", 10, "/bin/mode")
    for mode in ("v2safe-cpu", "v2safe-cid"):
        plan.stress("stress_possible_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode)
    plan.stress("stress_toggle_v2safe-cpu", seconds, "PCMALLOC_CONF=rseq:v2safe-cpu",
                flags="toggle")
    return plan.boot("gap in possible", _files({"init", "detect", "mode", "stress"}),
                     cpus=4)._replace(without_cpu=1)


def _hot_add_boot(seconds):
    """x86_64: a third CPU is plugged in while a program runs, which then must have a slab there."""
    plan = _Plan()
    plan.run("detect", 10, "/bin/detect")
    plan.run("mode", 10, "/bin/mode")
    plan.lines.append("show /sys/devices/system/cpu/present")
    plan.run("mode_hotadd", 20, "/bin/mode", "6", "20", flags="hotadd")
    plan.lines.append("show /sys/devices/system/cpu/present")
    for mode in ("v2safe-cpu", "v2safe-cid"):
        plan.stress("stress_after_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode)
    device = "device_add Nehalem-x86_64-cpu,socket-id=2,core-id=0,thread-id=0"
    return plan.boot("hot-add", _files({"init", "detect", "mode", "stress"}), cpus=2,
                     smp_more=",sockets=4,maxcpus=4")._replace(hot_add=(device,))


def _wide_boot(seconds):
    """arm64: a processor with all that QEMU has, addresses of 52 bits among it."""
    plan = _Plan()
    plan.run("mode", 10, "/bin/mode")
    plan.run("mode_own", 10, OWN_AREA, "/bin/mode")
    for mode in ("v2safe-cpu", "v2safe-cid", "locked"):
        plan.stress("stress_wide_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode)
    return plan.boot("wide addresses", _files({"init", "mode", "stress"}))._replace(model=WIDE)


def topology_boots(choice, seconds):
    """Boots of one kernel with odd sets of CPUs."""
    if choice.arch == "arm64":
        return [_gap_boot(seconds), _wide_boot(seconds)]
    if choice.expected == "CACHE_OK":
        # 7.3.4 sees no CPUs to come on such a machine, 6.18.15 does.
        return [_hot_add_boot(seconds)]
    wanted = _files({"init", "mode", "stress"})
    boots = []

    plan = _Plan()
    plan.run("detect", 10, "/bin/detect")
    plan.lines.append("offline 1")
    plan.run("mode", 10, "/bin/mode")
    for mode in ("v2safe-cpu", "v2safe-cid"):
        plan.stress("stress_gap_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode)
        plan.stress("stress_toggle_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode, flags="toggle")
        plan.stress("stress_cpuset_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode, flags="cpuset")
    boots.append(plan.boot("hotplug", _files({"init", "detect", "mode", "stress"}), cpus=4))

    plan = _Plan(mounted=False)
    plan.run("mode", 10, "/bin/mode")
    plan.stress("stress_v2safe-cpu", seconds, "PCMALLOC_CONF=rseq:v2safe-cpu", extra=("--notrim",))
    boots.append(plan.boot("nothing mounted", wanted))

    plan = _Plan()
    plan.run("mode", 10, "/bin/mode")
    for mode in ("v2safe-cpu", "v2safe-cid"):
        plan.stress("stress_" + mode, seconds, "PCMALLOC_CONF=rseq:" + mode)
    boots.append(plan.boot("one CPU", wanted, cpus=1))

    plan = _Plan()
    plan.run("mode_cid", 60, "PCMALLOC_CONF=rseq:v2safe-cid", "/bin/mode", "3")
    plan.run("mode", 60, "/bin/mode", "3")
    boots.append(plan.boot("64 CPUs", _files({"init", "mode"}), cpus=64))
    return boots


def only(boots, patterns):
    """The same boots with those of their programs whose names match a pattern; none without any."""
    found = []
    for boot in boots:
        lines = boot.text.split("\n")
        left = [line for line in lines if not line.startswith("run ")
                or any(fnmatch.fnmatch(line.split()[1], pattern) for pattern in patterns)]
        if any(line.startswith("run ") for line in left):
            found.append(boot._replace(text="\n".join(left)))
    return found


def _files(names, more=None):
    return (frozenset(names), dict(more or {}))
