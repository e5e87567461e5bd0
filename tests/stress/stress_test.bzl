# SPDX-License-Identifier: Apache-2.0
"""double_alloc_stress as a test, with any shared library preloaded."""

def double_alloc_stress_test(
        name,
        preload = None,
        env = {},
        args = [],
        binary = "//tests/stress:double_alloc_stress",
        tags = [],
        **kwargs):
    """Runs double_alloc_stress and expects exit status 0.

    Args:
      name: of the test.
      preload: label of the shared library to preload; None for what is linked into `binary`.
      env: environment of the run, such as {"PCMALLOC_CONF": "rseq:legacy"}.
      args: options of double_alloc_stress.
      binary: label of the program, for one that has an allocator linked in.
      tags: besides "exclusive": a run wants the CPUs for itself.
      **kwargs: size, timeout, ...
    """
    native.py_test(
        name = name,
        srcs = ["//tools/stress:stress.py"],
        main = "//tools/stress:stress.py",
        args = [
            "--binary",
            "$(location %s)" % binary,
            "--malloc",
            "$(location %s)" % preload if preload else "glibc",
        ] + args,
        data = [binary] + ([preload] if preload else []),
        env = env,
        python_version = "PY3",
        tags = tags + ["exclusive"],
        **kwargs
    )

def thread_counts_test(
        name,
        preload = None,
        env = {},
        binary = "//tests/stress:double_alloc_stress",
        tags = [],
        **kwargs):
    """Runs double_alloc_stress with 1, 2, 16 and 200 threads on two CPUs, memory checked: 20 s."""
    native.py_test(
        name = name,
        srcs = ["//tests/stress:thread_counts_test.py"],
        main = "//tests/stress:thread_counts_test.py",
        args = ["$(location %s)" % binary] + (["$(location %s)" % preload] if preload else []),
        data = [binary] + ([preload] if preload else []),
        env = env,
        python_version = "PY3",
        tags = tags + ["exclusive"],
        **kwargs
    )
