#!/bin/sh
# tuning/udp-capacity-low-end.sh [INTERFACE]
#
# Profile udp-capacity-low-end: Capacity tests on small devices (Raspberry Pi 4 and the like).
# For 1 connections and 16 GiB of memory. `ringmill tune plan --profile udp-capacity-low-end`
# computes it for your host and prints only what is to be changed there; `ringmill tune apply` also
# records the old values and can take it back.
# Made from tuning/profiles/udp-capacity-low-end.toml by `make tuning`; edit that instead.
set -eu
IF=${1:-}

# Raises each number of a sysctl to the wanted one; what is higher stays.
at_least() {
    name=$1; shift
    now=$(sysctl -n "$name" 2>/dev/null) || { echo "left alone: $name (not on this host)" >&2; return 0; }
    wanted=
    for number in $now; do
        [ $# -eq 0 ] || { [ "$number" -ge "$1" ] || number=$1; shift; }
        wanted="$wanted${wanted:+ }$number"
    done
    sysctl -w "$name=$wanted"
}
# Lowers a sysctl to the wanted number; what is lower stays.
at_most() {
    now=$(sysctl -n "$1" 2>/dev/null) || { echo "left alone: $1 (not on this host)" >&2; return 0; }
    [ "$now" -le "$2" ] || sysctl -w "$1=$2"
}

# Less loss while the reader is away; sockets ask for the maximum and are granted twice what they
# ask. Source: OB-UDPST handbook (16777216).
at_least net.core.rmem_max 16777216

# A whole row of the rate table fits the send buffer; granted twice, as with rmem_max. Source:
# OB-UDPST handbook (16777216).
at_least net.core.wmem_max 16777216

# Pacing at 100 us needs a core that is awake. Source: own research.
for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do
    [ ! -w "$file" ] || echo performance > "$file"
done

[ -n "$IF" ] || { echo 'no INTERFACE named: the card is left alone' >&2; exit 0; }

# Hashing over the transmit queues lets some flows starve others: one CPU for each queue. Source:
# OB-UDPST handbook (tx-0 mask 1, tx-1 mask 2, tx-2 mask 4, tx-3 mask 8).
# CPU n uses transmit queue n modulo the number of queues (up to 32 CPUs).
queues=$(ls -d /sys/class/net/"$IF"/queues/tx-* | wc -l)
queue=0
while [ "$queues" -gt 1 ] && [ $queue -lt "$queues" ]; do
    mask=0
    cpu=$queue
    while [ $cpu -lt "$(nproc --all)" ] && [ $cpu -lt 32 ]; do
        mask=$((mask | 1 << cpu))
        cpu=$((cpu + queues))
    done
    printf '%x\n' $mask > /sys/class/net/"$IF"/queues/tx-$queue/xps_cpus
    queue=$((queue + 1))
done

# To know:
# - keep off CPU 0, which serves the card (--cpus 1-3). Source: OB-UDPST handbook.
# - use datagrams that fill 1500 bytes (-T), no jumbo sizes (-j), and one connection. Source:
#   OB-UDPST handbook.
# - pacing needs a timer of 100 us or better; where the device has none, --pacing busy spends a CPU
#   instead. Source: OB-UDPST handbook.
