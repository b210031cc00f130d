#!/bin/sh
# Builds the benchmarks and runs them; flags go to the harness, e.g.
#   benches/run.sh --quick tcp-echo
# ringmill itself must be built before: cargo build --release -p ringmill
set -eu
cd "$(dirname "$0")"
cargo=${CARGO:-cargo}

$cargo build --release --locked -p ringmill-bench -p peer-bare -p peer-udp-relay -p chat-load
# One by one: a runtime that does not build here is left out of the tables,
# with the reason, and the others are measured.
for peer in echo-tokio echo-monoio echo-compio echo-glommio chat-tokio chat-monoio multicast-tokio; do
    $cargo build --release --locked -p "peer-$peer" ||
        echo "peer-$peer does not build here: it will be missing from the results" >&2
done
for tool in taskset stdbuf iperf3 sockperf ip tc ss setpriv; do
    command -v "$tool" >/dev/null ||
        echo "$tool is not installed: what needs it will be missing from the results" >&2
done
exec "${CARGO_TARGET_DIR:-target}/release/ringmill-bench" "$@"
