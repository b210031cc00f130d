#!/bin/sh
# tuning/tcp-client.sh [INTERFACE]
#
# Profile tcp-client: A host that opens very many TCP connections.
# For 50,000 connections and 16 GiB of memory. `ringmill tune plan --profile tcp-client` computes it
# for your host and prints only what is to be changed there; `ringmill tune apply` also records the
# old values and can take it back.
# Made from tuning/profiles/tcp-client.toml by `make tuning`; edit that instead.
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

# 64512 instead of 28232 connections from one address to one destination; a firewall that lets
# answers in by port must open as many, and services that start later may find their port taken.
# Source: tcpscaler handbook.
sysctl -w net.ipv4.ip_local_port_range='1024 65535'

# A port in TIME_WAIT can be used again after a second instead of a minute (timestamps keep it
# safe). Source: tcpscaler handbook.
sysctl -w net.ipv4.tcp_tw_reuse='1'

# Pages that the queues of all connections may take together; past it every socket is squeezed.
# Source: own research: a page each way for each connection, in the kernel's own proportions.
at_least net.ipv4.tcp_mem 50000 66666 100000

# Connections that this end closed stay for 60 s; past it they are cut short (TCPTimeWaitOverflow).
# Source: own research: a table of 131072 fills in seconds when connections are closed by FIN.
at_least net.ipv4.tcp_max_tw_buckets 50000

# A firewall that tracks connections drops new ones when its table is full. Source: tcpscaler
# handbook (1000000).
at_least net.netfilter.nf_conntrack_max 1000000

# A table with long chains costs time on every packet. Source: tcpscaler handbook (a matching hash
# size).
file=/sys/module/nf_conntrack/parameters/hashsize
if [ -w $file ] && [ "$(cat $file)" -lt 250000 ]; then echo 250000 > $file; fi

# A core that clocks down between packets sends late. Source: own research.
for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do
    [ ! -w "$file" ] || echo performance > "$file"
done

# 2 forbids io_uring to everyone; with 1 the group of kernel.io_uring_group may use it. Whoever set
# it had a reason, so it is only shown; epoll works without. Source: own research.
sysctl kernel.io_uring_disabled 2>/dev/null || true  # should be at most 1; never changed

# To know:
# - one source address reaches one destination with as many connections as there are ports: use more
#   source addresses (--sources) or destination ports beyond that. Source: tcpscaler handbook.
