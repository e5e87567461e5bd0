# SPDX-License-Identifier: Apache-2.0
"""Rules of the allocator's own code and of its two artefacts."""

# No exceptions, no RTTI, no thread-safe statics: nothing that would need libstdc++ at run time.
# initial-exec: the dynamic model's __tls_get_addr may call malloc.
LIBRARY_COPTS = [
    "-fPIC",
    "-fvisibility=hidden",
    "-ftls-model=initial-exec",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-builtin-malloc",
    "-fno-builtin-calloc",
    "-fno-builtin-realloc",
    "-fno-builtin-free",
    # Imported functions through the GOT: an address is there or it is not (api/boot.cc asks).
    "-fno-plt",
    "-fno-stack-protector",
    "-fomit-frame-pointer",  # Bazel's default keeps it: two instructions on every hit path
    "-U_FORTIFY_SOURCE",
]

# By which a program that was linked with the shared library looks for it. The number is
# PCMALLOC_VERSION_MAJOR of the public header; //tests/artifacts:version_test compares.
SONAME = "libpcmalloc.so.0"

def pcm_library(name, copts = [], cold = False, **kwargs):
    """A layer of the allocator: cc_library with the flags that every layer shares.

    Args:
      name: of the library.
      copts: more flags.
      cold: nothing in it runs often, so it is compiled to be small: in a small process the pages of
        the library's text are a part of its memory that shows.
      **kwargs: of cc_library.
    """
    native.cc_library(
        name = name,
        copts = LIBRARY_COPTS + (["-Os"] if cold else []) + copts,
        linkstatic = True,
        **kwargs
    )

def _static_archive_impl(ctx):
    objects = []
    for dep in ctx.attr.deps:
        for linker_input in dep[CcInfo].linking_context.linker_inputs.to_list():
            for library in linker_input.libraries:
                objects.extend(library.pic_objects or library.objects)
    out = ctx.outputs.out
    args = ctx.actions.args()
    args.add("qcsD", out)  # q: objects of one name stay side by side, r would replace them
    args.add_all(objects)
    ctx.actions.run(
        executable = "/usr/bin/ar",
        arguments = [args],
        inputs = objects,
        outputs = [out],
        mnemonic = "StaticArchive",
        progress_message = "Archiving %{output}",
    )
    return [DefaultInfo(files = depset([out]))]

# Every object of the libraries in `deps` and of what they depend on, in one archive, so that a
# plain `cc program.c libpcmalloc.a` links.
static_archive = rule(
    implementation = _static_archive_impl,
    attrs = {
        "deps": attr.label_list(providers = [CcInfo]),
        "out": attr.output(mandatory = True),
    },
)

def preload_library(name, malloc):
    """A shared object that exports what libpcmalloc.lds lists and needs libc alone."""
    native.cc_binary(
        name = name,
        additional_linker_inputs = [
            "//:libpcmalloc.lds",
            "//tools/build:layout.lds",
        ],
        # gold rounds thread-local storage up to its alignment, 72 bytes to 128; GNU ld does not, but
        # knows no --start-lib.
        features = [
            "-static_link_cpp_runtimes",
            "-supports_start_end_lib",
        ],
        linkopts = [
            "-fuse-ld=bfd",
            "-Wl,--as-needed",
            "-Wl,-z,defs,-z,now,-z,relro",
            # One segment for all that is only read, and the order of what lies in it.
            "-Wl,-z,noseparate-code",
            "-Wl,-T,$(location //tools/build:layout.lds)",
            "-Wl,--version-script=$(location //:libpcmalloc.lds)",
            "-Wl,-soname," + SONAME,
        ],
        linkshared = True,
        deps = [
            malloc,
            "//allocator/api:interposed",
        ],
    )
