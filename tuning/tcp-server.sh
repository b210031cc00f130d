#!/bin/sh
# tuning/tcp-server.sh [INTERFACE]
#
# Profile tcp-server: A server that holds very many TCP connections.
# For 100,000 connections and 16 GiB of memory. `ringmill tune plan --profile tcp-server` computes
# it for your host and prints only what is to be changed there; `ringmill tune apply` also records
# the old values and can take it back.
# Made from tuning/profiles/tcp-server.toml by `make tuning`; edit that instead.
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

# Every connection is an open file of the machine, whatever a process may have. Source: tcpscaler
# handbook (12582912).
at_least fs.file-max 12582912

# The most that the limit of open files of any process can be raised to. Source: tcpscaler handbook
# (ulimit -n 1048576).
at_least fs.nr_open 1048576

# Every connection is a file, and a ring's table of descriptors holds no more than this. Source:
# tcpscaler handbook (ulimit -n 1048576); the kernel's io_uring checks RLIMIT_NOFILE for each table.
# For what this shell starts; for a service set LimitNOFILE=1048576 in its unit.
ulimit -n 1048576 || echo 'open files: the hard limit is lower' >&2

# Connections that wait for accept; when the queue is full they are dropped (ListenOverflows).
# Source: tcpscaler handbook (8192).
at_least net.core.somaxconn 8192

# Half-open connections; past it the kernel sends SYN cookies or drops. Source: own research: as
# somaxconn, or the smaller of the two decides.
at_least net.ipv4.tcp_max_syn_backlog 8192

# Pages that the queues of all connections may take together; past it every socket is squeezed.
# Source: own research: a page each way for each connection, in the kernel's own proportions.
at_least net.ipv4.tcp_mem 100000 133333 200000

# Connections that this end closed stay for 60 s; past it they are cut short (TCPTimeWaitOverflow).
# Source: own research: a table of 131072 fills in seconds when connections are closed by FIN.
at_least net.ipv4.tcp_max_tw_buckets 100000

# A firewall that tracks connections drops new ones when its table is full. Source: tcpscaler
# handbook (1000000).
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

# Fewer queues than shards leave cores without packets of their own. Source: own research.
# `ringmill tune plan` compares the queues with the shards.
ethtool -l "$IF" || true

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
