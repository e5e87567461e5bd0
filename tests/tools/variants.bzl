# SPDX-License-Identifier: Apache-2.0
"""One test program, run in every environment that an allocator has to live in."""

ALL_VARIANTS = ["linked", "preload", "locked", "enosys", "eperm", "valgrind"]

# Allocations must happen as written, and oversized requests are the point.
_COPTS = [
    "-fno-builtin",
    "-fsized-deallocation",  # clang 14 has it off
    "-Wno-deprecated-declarations",
]

def malloc_test(name, srcs, deps = [], data = [], variants = ALL_VARIANTS, filters = {}, size = "medium"):
    """Compiles `srcs` (GoogleTest cases and scenarios) once, and makes name_VARIANT for each.

    Args:
      name: prefix of the targets.
      srcs: sources; tests/support/process.cc has their main().
      deps: libraries besides tests/support.
      data: files the program opens.
      variants: see VARIANTS in run_variant.py.
      filters: variant -> --gtest_filter, where an environment cannot run everything.
      size: Bazel's test size.
    """
    native.cc_library(
        name = name + "_code",
        testonly = True,
        srcs = srcs,
        copts = _COPTS,
        deps = deps + ["//tests/support"],
        alwayslink = True,
    )
    for program, malloc in [("plain", "@bazel_tools//tools/cpp:malloc"), ("with_pcmalloc", "//:pcmalloc")]:
        native.cc_binary(
            name = "%s_%s" % (name, program),
            testonly = True,
            linkopts = ["-rdynamic", "-ldl", "-pthread"],
            malloc = malloc,
            deps = [":%s_code" % name],
        )
    for variant in variants:
        program = ":%s_%s" % (name, "with_pcmalloc" if variant == "linked" else "plain")
        native.py_test(
            name = "%s_%s" % (name, variant),
            size = size,
            srcs = ["//tests/tools:run_variant.py"],
            args = [
                variant,
                "$(rootpath //:libpcmalloc.so)",
                "$(rootpath //tests/tools:refuse_rseq)",
                "$(rootpath %s)" % program,
            ] + (["--gtest_filter=" + filters[variant]] if variant in filters else []),
            data = data + [
                program,
                "//:libpcmalloc.so",
                "//tests/tools:refuse_rseq",
            ],
            main = "run_variant.py",
            # Threads that must run at the same time, and limits of the whole process group.
            tags = ["cpu:2", "local", "no-sandbox", "no_sanitizer"],
        )
