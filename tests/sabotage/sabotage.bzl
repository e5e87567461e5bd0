# SPDX-License-Identifier: Apache-2.0
"""libpcmalloc.so with one deliberate fault, see percpu/sabotage.h."""

def _sabotage_impl(settings, attr):
    return {"//command_line_option:copt": settings["//command_line_option:copt"] + [
        "-DPCMALLOC_SABOTAGE_" + attr.fault.upper().replace("-", "_"),
    ]}

_sabotage = transition(
    implementation = _sabotage_impl,
    inputs = ["//command_line_option:copt"],
    outputs = ["//command_line_option:copt"],
)

def _sabotaged_library_impl(ctx):
    built = ctx.attr.library[0][DefaultInfo].files.to_list()[0]
    out = ctx.actions.declare_file("libpcmalloc-%s.so" % ctx.attr.fault)
    ctx.actions.symlink(output = out, target_file = built)
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles([out]))]

# bazel-bin/tests/sabotage/libpcmalloc-FAULT.so
sabotaged_library = rule(
    implementation = _sabotaged_library_impl,
    attrs = {
        "fault": attr.string(mandatory = True),
        "library": attr.label(cfg = _sabotage, default = "//:libpcmalloc.so"),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
    },
)
