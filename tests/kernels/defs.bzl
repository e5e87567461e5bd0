# SPDX-License-Identifier: Apache-2.0
"""Programs for an initramfs: one file each, nothing to load at run time."""

def static_binary(name, deps = [], linkopts = [], **kwargs):
    """A cc_binary that is linked statically, C library included."""
    native.cc_binary(
        name = name,
        testonly = True,
        linkopts = [
            "-static",
            "-no-pie",
            "-pthread",
        ] + linkopts,
        tags = ["no_sanitizer"],
        deps = deps,
        **kwargs
    )
