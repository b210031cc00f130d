#!/bin/sh
# tuning/udp-capacity-fragmented.sh [INTERFACE]
#
# Profile udp-capacity-fragmented: Capacity tests with jumbo datagrams over a path of 1500 bytes, in
# fragments.
# For 16 connections and 16 GiB of memory. `ringmill tune plan --profile udp-capacity-fragmented`
# computes it for your host and prints only what is to be changed there; `ringmill tune apply` also
# records the old values and can take it back.
# Made from tuning/profiles/udp-capacity-fragmented.toml by `make tuning`; edit that instead.
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

# Packets that wait for a CPU (loopback, veth, RPS); what does not fit is dropped. Source: own
# research: what arrives in 10 ms.
at_least net.core.netdev_max_backlog 10000

# Packets that one round of receiving may take from all cards; time_squeeze counts where it was too
# few. Source: own research: twice the kernel's default.
at_least net.core.netdev_budget 600

# A running irqbalance undoes the placement of interrupts. Source: OB-UDPST handbook
# (IRQBALANCE_BANNED_CPULIST).
# `ringmill topology` shows the CPUs of the shards.
if pgrep -x irqbalance >/dev/null; then
    echo 'irqbalance runs: set IRQBALANCE_BANNED_CPULIST to the CPUs of the shards, or stop it' >&2
fi

# Pacing at 100 us needs a core that is awake. Source: own research.
for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do
    [ ! -w "$file" ] || echo performance > "$file"
done

# 2 forbids io_uring to everyone; with 1 the group of kernel.io_uring_group may use it. Whoever set
# it had a reason, so it is only shown; epoll works without. Source: own research.
sysctl kernel.io_uring_disabled 2>/dev/null || true  # should be at most 1; never changed

# Memory for datagrams of which fragments are missing; raise it further while IpReasmFails grows.
# Source: OB-UDPST handbook (25 times the usual default).
at_least net.ipv4.ipfrag_high_thresh 104857600

# Memory for datagrams of which fragments are missing; raise it further while Ip6ReasmFails grows.
# Source: OB-UDPST handbook (25 times the usual default).
at_least net.ipv6.ip6frag_high_thresh 104857600

# Seconds that the fragments of an incomplete datagram keep their memory. Source: OB-UDPST handbook.
at_most net.ipv4.ipfrag_time 3

# Seconds that the fragments of an incomplete datagram keep their memory. Source: OB-UDPST handbook.
at_most net.ipv6.ip6frag_time 3

[ -n "$IF" ] || { echo 'no INTERFACE named: the card is left alone' >&2; exit 0; }

# Packets that the card may hold while the CPU is busy; must be made again after each boot
# (--persist). Source: OB-UDPST handbook (10G and above).
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

# Some CPUs of the card's node stay free of interrupts, and the shards run there. Source: OB-UDPST
# handbook.
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

# To know:
# - name the card with --interface: shards then run on its NUMA node, and memory of another node
#   costs rate and CPU. Source: OB-UDPST handbook.
# - use 10 or more flows below 1 Gbit/s and 2 to 4 above (-c); with one flow above 1 Gbit/s start at
#   10 to 20 % of the expected maximum, more gives a false one. Source: OB-UDPST handbook.
# - behind a firewall open the control port and the range of test ports
#   (net.ipv4.ip_local_port_range). Source: OB-UDPST handbook.
# - record every datagram only to a memory file system: writing files costs datagrams. Source:
#   OB-UDPST handbook.
# - fragments and GSO exclude each other (EMSGSIZE): run without GSO, or without jumbo sizes (-j,
#   profile udp-capacity-no-jumbo). Source: OB-UDPST handbook.
