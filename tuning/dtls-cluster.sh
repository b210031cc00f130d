#!/bin/sh
# tuning/dtls-cluster.sh [INTERFACE]
#
# Profile dtls-cluster: A node that holds very many DTLS sessions.
# For 100,000 connections and 16 GiB of memory. `ringmill tune plan --profile dtls-cluster` computes
# it for your host and prints only what is to be changed there; `ringmill tune apply` also records
# the old values and can take it back.
# Made from tuning/profiles/dtls-cluster.toml by `make tuning`; edit that instead.
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

# All sessions share the sockets of the shards: a burst of handshakes must fit. Source: OB-UDPST
# handbook (16777216).
at_least net.core.rmem_max 16777216

# Answers to a burst must fit. Source: OB-UDPST handbook (16777216).
at_least net.core.wmem_max 16777216

# A firewall tracks each peer's address and port as a connection, and drops new ones when its table
# is full. Source: tcpscaler handbook (1000000).
at_least net.netfilter.nf_conntrack_max 1000000

# A table with long chains costs time on every packet. Source: tcpscaler handbook (a matching hash
# size).
file=/sys/module/nf_conntrack/parameters/hashsize
if [ -w $file ] && [ "$(cat $file)" -lt 250000 ]; then echo 250000 > $file; fi

# Packets that wait for a CPU (loopback, veth, RPS); what does not fit is dropped. Source: own
# research: what arrives in 10 ms.
at_least net.core.netdev_max_backlog 10000

# A running irqbalance undoes the placement of interrupts. Source: OB-UDPST handbook
# (IRQBALANCE_BANNED_CPULIST).
# `ringmill topology` shows the CPUs of the shards.
if pgrep -x irqbalance >/dev/null; then
    echo 'irqbalance runs: set IRQBALANCE_BANNED_CPULIST to the CPUs of the shards, or stop it' >&2
fi

# A core that clocks down between packets answers late. Source: own research.
for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do
    [ ! -w "$file" ] || echo performance > "$file"
done

# 2 forbids io_uring to everyone; with 1 the group of kernel.io_uring_group may use it. Whoever set
# it had a reason, so it is only shown; epoll works without. Source: own research.
sysctl kernel.io_uring_disabled 2>/dev/null || true  # should be at most 1; never changed

[ -n "$IF" ] || { echo 'no INTERFACE named: the card is left alone' >&2; exit 0; }

# Packets that the card may hold while the CPU is busy. Source: OB-UDPST handbook (10G and above).
most=$(ethtool -g "$IF" 2>/dev/null | awk '$1 == "RX:" { print $2; exit }')
case $most in
    '' | *[!0-9]*) echo "left alone: rx of $IF" >&2 ;;
    *) ethtool -G "$IF" rx "$most" || true ;;  # ethtool says so when it is that already
esac

# Packets that the CPU may hand over while the wire is busy. Source: OB-UDPST handbook (10G and
# above).
most=$(ethtool -g "$IF" 2>/dev/null | awk '$1 == "TX:" { print $2; exit }')
case $most in
    '' | *[!0-9]*) echo "left alone: tx of $IF" >&2 ;;
    *) ethtool -G "$IF" tx "$most" || true ;;  # ethtool says so when it is that already
esac

# Interrupts off the shards' CPUs where there is room, else each on the CPU of one shard. Source:
# OB-UDPST handbook (CPUs of the node free of interrupts).
# `ringmill tune plan` names the CPU of each interrupt; here they stay where they are.
grep "$IF" /proc/interrupts || true

# A CPU that always uses the same transmit queue waits for no other. Source: OB-UDPST handbook (XPS,
# one CPU per queue).
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

# A card with fewer queues than shards has its packets spread over the shards' CPUs. Source: own
# research; Documentation/networking/scaling.rst.
# Where there are fewer receive queues than CPUs, all CPUs process what arrives (up to 32).
cpus=$(nproc --all)
queues=$(ls -d /sys/class/net/"$IF"/queues/rx-* | wc -l)
if [ "$queues" -lt "$cpus" ] && [ "$cpus" -le 32 ]; then
    for file in /sys/class/net/"$IF"/queues/rx-*/rps_cpus; do
        printf '%x\n' $(((1 << cpus) - 1)) > "$file"
    done
fi

# To know:
# - nodes behind a balancer need the port of the cluster open between them, beside that of the
#   clients. Source: own research.
