#!/bin/sh
# Asks an original udpst which command lines it accepts, and compares with the table that
# `cargo test -p ringmill udpst::options` holds ours to. Usage: scripts/udpst-options.sh UDPST
set -u
peer=${1:?path of an original udpst 9.0.0}
table=$(dirname "$0")/../cli/src/commands/udpst/options/accepted.tsv
set -f
differ=0
while IFS="$(printf '\t')" read -r status line; do
    case $status in '#'*) continue ;; esac
    # -S makes it show its rate table and end once it has accepted the rest.
    # shellcheck disable=SC2086
    timeout 5 "$peer" -S $line >/dev/null 2>&1 </dev/null
    found=$?
    if [ "$found" != "$status" ]; then
        echo "udpst $line: $found, the table says $status"
        differ=$((differ + 1))
    fi
done <"$table"
echo "$differ differ"
[ "$differ" = 0 ]
