#!/usr/bin/env python3
"""Runs a command under a seccomp profile of containers, without a container.

    scripts/under-seccomp.py deploy/seccomp-ringmill.json ./target/release/ringmill doctor

Proves that a profile is complete for this machine's kernel and C library, and shows what ringmill
does where one is not: `--without NAME` refuses a call that the profile allows, with the error that
`--errno` gives, by default the profile's own. Needs libseccomp (Debian: libseccomp2), nothing else.
"""

import argparse
import ctypes
import ctypes.util
import json
import os
import sys

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
EPERM = 1
COMPARE = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
UNKNOWN_CALL = -1


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp."""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def action(name, errno):
    if name == "SCMP_ACT_ALLOW":
        return ALLOW
    if name == "SCMP_ACT_ERRNO":
        return ERRNO | errno
    sys.exit(f"under-seccomp: unknown action {name}")


def load(profile, without, answer):
    path = ctypes.util.find_library("seccomp")
    if path is None:
        sys.exit("under-seccomp: libseccomp is missing; apt-get install libseccomp2")
    library = ctypes.CDLL(path)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(Compare),
    ]
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet", EPERM))
    context = library.seccomp_init(default)
    refused = action("SCMP_ACT_ERRNO", answer or profile.get("defaultErrnoRet", EPERM))
    unknown = []
    for rule in profile["syscalls"] + [{"names": without, "action": None}]:
        leaves_out = rule["action"] is None
        verdict = refused if leaves_out else action(rule["action"], rule.get("errnoRet", EPERM))
        arguments = [
            Compare(a["index"], COMPARE[a["op"]], a["value"], a.get("valueTwo", 0))
            for a in rule.get("args", [])
        ]
        for name in rule["names"]:
            if verdict == default or (name in without and not leaves_out):
                continue
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == UNKNOWN_CALL:
                unknown.append(name)
                continue
            error = library.seccomp_rule_add_array(
                context, verdict, number, len(arguments), (Compare * len(arguments))(*arguments)
            )
            if error < 0:
                sys.exit(f"under-seccomp: {name}: {os.strerror(-error)}")
    if unknown:
        print(f"under-seccomp: unknown to this libseccomp: {' '.join(unknown)}", file=sys.stderr)
    error = library.seccomp_load(context)
    if error < 0:
        sys.exit(f"under-seccomp: the filter was refused: {os.strerror(-error)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    parser.add_argument("--errno", type=int, help="answer of the calls of --without, for example 1 (EPERM)")
    parser.add_argument("profile")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("no command")
    with open(options.profile, encoding="utf-8") as file:
        profile = json.load(file)
    load(profile, options.without, options.errno)
    os.execvp(options.command[0], options.command)


main()
