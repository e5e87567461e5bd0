# SPDX-License-Identifier: Apache-2.0
"""libpcmalloc.so, or a program, with one deliberate fault, see percpu/sabotage.h."""

def _sabotage_impl(settings, attr):
    return {"//command_line_option:copt": settings["//command_line_option:copt"] + [
        "-DPCMALLOC_SABOTAGE_" + attr.fault.upper().replace("-", "_"),
    ]}

_sabotage = transition(
    implementation = _sabotage_impl,
    inputs = ["//command_line_option:copt"],
    outputs = ["//command_line_option:copt"],
)

def _linked(ctx, built, name):
    out = ctx.actions.declare_file(name)
    ctx.actions.symlink(output = out, target_file = built)
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles([out]))]

def _sabotaged_library_impl(ctx):
    built = ctx.attr.library[0][DefaultInfo].files.to_list()[0]
    return _linked(ctx, built, "libpcmalloc-%s.so" % ctx.attr.fault)

def _sabotaged_program_impl(ctx):
    built = ctx.attr.program[0][DefaultInfo].files_to_run.executable
    return _linked(ctx, built, ctx.label.name)

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

# Of the name that it is given.
sabotaged_program = rule(
    implementation = _sabotaged_program_impl,
    attrs = {
        "fault": attr.string(mandatory = True),
        "program": attr.label(cfg = _sabotage, mandatory = True),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
    },
)
