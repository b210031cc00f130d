#!/usr/bin/env python3
"""Runs an original udpst and ringmill's in all four pairings of client and server, and compares what
the clients print and how they exit.

usage: scripts/udpst-compare.py ORIGINAL OURS [--port N] [--only TEXT]

ORIGINAL is a built udpst 9.0.0, OURS a ringmill binary reachable by the name udpst (a link will do).
Numbers may differ, what is around them must not; where a test runs at a fixed row the rate must be
near it, and both ends must agree. Rates are low: this is about form, not about speed.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time

# Name, options of the server, options of the client (None: no server runs), expected exit status,
# rate in Mbit/s where it is fixed.
KEY = ["-a", "secret"]
CASES = [
    ("down, fixed row", [], ["-d", "-t5", "-I20"], 0, 20),
    ("up, fixed row", [], ["-u", "-t5", "-I20"], 0, 20),
    ("down, search", [], ["-d", "-t5"], 0, None),
    ("up, algorithm C", [], ["-u", "-t5", "-A", "C", "-o"], 0, None),
    ("row 0", [], ["-d", "-t5", "-I0"], 0, None),
    ("starting row", [], ["-u", "-t5", "-I@10", "-R"], 0, None),
    ("json", [], ["-d", "-t5", "-I5", "-f", "json"], 0, 5),
    ("jsonb, bimodal", [], ["-d", "-t5", "-I5", "-i2", "-f", "jsonb"], 0, None),
    ("jsonf, two connections", [], ["-u", "-t5", "-I5", "-C2", "-f", "jsonf"], 0, 10),
    ("bimodal text", [], ["-u", "-t5", "-I5", "-i", "3"], 0, None),
    ("dual phase", [], ["-d", "-t5", "-I5", "-i", "-2", "-f", "json"], 0, None),
    ("summary only, loss ratio", [], ["-d", "-t5", "-I5", "-s", "-r"], 0, 5),
    ("loss ratio", [], ["-u", "-t5", "-I5", "-r"], 0, 5),
    ("ECN", [], ["-d", "-t5", "-I5", "-m", "2", "-Z", "3"], 0, 5),
    ("ECN, json", [], ["-u", "-t5", "-I5", "-m1", "-Z3", "-f", "json"], 0, 5),
    ("interface", [], ["-d", "-t5", "-I5", "-E", "lo", "-M"], 0, 5),
    ("interface, json", [], ["-u", "-t5", "-I5", "-E", "lo", "-f", "json"], 0, 5),
    ("three connections", [], ["-d", "-t5", "-I5", "-C", "2-3"], 0, 15),
    ("sub-intervals of 500 ms", [], ["-d", "-t5", "-I5", "-P500", "-F100"], 0, 5),
    ("-j -T", ["-jT"], ["-d", "-t5", "-I5", "-jT", "-f", "json"], 0, 5),
    ("random payload", ["-X"], ["-u", "-t5", "-I5", "-X", "-f", "json"], 0, 5),
    ("key", KEY, ["-d", "-t5", "-I5"] + KEY, 0, 5),
    ("key and id", KEY, ["-u", "-t5", "-I5", "-y", "7"] + KEY, 0, 5),
    ("bandwidth", ["-B", "100"], ["-d", "-t5", "-I5", "-B", "50", "-f", "json"], 0, 5),
    ("limits of the server", ["-t5", "-I", "5", "-m", "0"], ["-u", "-t9", "-I", "50", "-m", "4"], 0, 5),
    ("no server", None, ["-d", "-t5"], 200, None),
    ("no server, json", None, ["-u", "-t5", "-f", "json"], 200, None),
    ("jumbo differs", ["-j"], ["-d", "-t5", "-f", "json"], 103, None),
    ("key not configured", [], ["-d", "-t5"] + KEY, 107, None),
    ("key required", KEY, ["-d", "-t5"], 105, None),
    ("key wrong", KEY, ["-d", "-t5", "-a", "other"], 107, None),
    ("bandwidth missing", ["-B", "10"], ["-d", "-t5"], 109, None),
    ("bandwidth exceeded", ["-B", "10"], ["-d", "-t5", "-B", "20"], 110, None),
    ("traditional differs", ["-T"], ["-u", "-t5", "-f", "jsonf"], 111, None),
    ("name not known", None, ["-d", "-t5", "no-such-host.invalid"], 75, None),
    ("name not known, json", None, ["-d", "-t5", "-f", "json", "no-such-host.invalid"], 255, None),
]


def skeleton(text):
    """What is around the numbers."""
    try:
        return keys(json.loads(text))
    except ValueError:
        pass
    lines = []
    for line in text.splitlines():
        line = re.sub(r", Built: .*", "", line)
        line = re.sub(r"-?\d+(\.\d+)?(E[+-]\d+)?", "#", line)
        # Messages are in words of their own; a line has its kind, and its place in the whole.
        line = re.sub(r"ERROR: (?!Minimum).*", "ERROR", line)
        line = re.sub(r"^GETADDRINFO ERROR.*", "ERROR", line)
        lines.append(re.sub(r" +", " ", line))
    return lines


def keys(value, path=""):
    """Every key in its place, with the kind of its value."""
    if isinstance(value, dict):
        return list(itertools.chain(*(keys(v, f"{path}.{k}") for k, v in value.items())))
    if isinstance(value, list):
        return list(itertools.chain(*(keys(v, path + "[]") for v in value))) or [path + "[]"]
    if path.startswith(".ErrorMessage") and value:
        return [f"{path}: {'ERROR' if 'ERROR' in value else value.split(':')[0]}"]
    return [f"{path}: {'number' if isinstance(value, (int, float)) else 'text'}"]


def rate(text):
    """The mean rate that a client shows."""
    found = re.search(r"Summary .*Mbps\(L3/IP\): ([\d.]+)", text)
    found = found or re.search(r'IPLayerCapacitySummary":\s*([\d.]+)', text)
    return float(found.group(1)) if found else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("original")
    parser.add_argument("ours")
    parser.add_argument("--port", type=int, default=24900)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    programs = {"original": args.original, "ours": args.ours}
    pairs = [(c, s) for c in programs for s in programs]
    bad = 0
    for name, server, client, status, mbps in CASES:
        if args.only not in name:
            continue
        servers, clients = [], {}
        for number, (c, s) in enumerate(pairs):
            port = args.port + number
            if server is not None:
                command = [programs[s], "-1", "-p", str(port), *server, "127.0.0.1"]
                if "-C" in " ".join(client):
                    command.remove("-1")
                servers.append(
                    subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
                )
        time.sleep(0.7 if servers else 0)
        for number, (c, s) in enumerate(pairs):
            if server is None and s == "ours":
                continue
            port = args.port + number
            command = [programs[c], "-p", str(port), *client]
            if not client[-1].endswith(".invalid"):
                command.append("127.0.0.1")
            clients[c, s] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        results = {}
        for pair, process in clients.items():
            try:
                out, err = process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = "", "timed out"
            results[pair] = (process.returncode, out, err)
        for process in servers:
            process.terminate()
            process.wait()
        problems = []
        expected = skeleton(results["original", "original"][1])
        for (c, s), (code, out, err) in results.items():
            who = f"{c} client, {s} server"
            if code != status:
                problems.append(f"{who}: exit status {code} instead of {status}")
            if err:
                problems.append(f"{who}: standard error: {err.strip()}")
            found = skeleton(out)
            if found != expected:
                for a, b in itertools.zip_longest(expected, found):
                    if a != b:
                        problems.append(f"{who}: {b!r} instead of {a!r}")
                        break
            if mbps and abs((rate(out) or 0) - mbps) > mbps * 0.1 and "ours" in (c, s):
                problems.append(f"{who}: {rate(out)} instead of {mbps} Mbit/s")
        rates = ", ".join(str(rate(out)) for _, out, _ in results.values())
        print(f"{'FAIL' if problems else 'ok  '} {name}: {rates}", flush=True)
        for problem in problems:
            print(f"     {problem}", flush=True)
        bad += bool(problems)
    print(f"{bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
