#!/bin/sh
# Profile udp-capacity-no-jumbo: Capacity tests with datagrams that fit a path of 1500 bytes.
# For 16 connections, on this host as it is now.
# Run it as root. Nothing is recorded: `ringmill tune apply` does the same and can take it back.
set -eu

# net.core.rmem_max: 212992 now.
# Less loss while the reader is away; sockets ask for the maximum and are granted twice what they
# ask. Source: OB-UDPST handbook (16777216).
# undo: sysctl -w net.core.rmem_max=212992
sysctl -w net.core.rmem_max=16777216

# net.core.wmem_max: 212992 now.
# A whole row of the rate table fits the send buffer; granted twice, as with rmem_max. Source:
# OB-UDPST handbook (16777216).
# undo: sysctl -w net.core.wmem_max=212992
sysctl -w net.core.wmem_max=16777216

# net.core.netdev_max_backlog: 1000 now.
# Packets that wait for a CPU (loopback, veth, RPS); what does not fit is dropped. Source: own
# research: what arrives in 10 ms.
# undo: sysctl -w net.core.netdev_max_backlog=1000
sysctl -w net.core.netdev_max_backlog=10000

# net.core.netdev_budget: 300 now.
# Packets that one round of receiving may take from all cards; time_squeeze counts where it was too
# few. Source: own research: twice the kernel's default.
# undo: sysctl -w net.core.netdev_budget=300
sysctl -w net.core.netdev_budget=600

# eth0 rx-ring: 256 now.
# Packets that the card may hold while the CPU is busy; must be made again after each boot
# (--persist). Source: OB-UDPST handbook (10G and above).
# undo: ethtool -G eth0 rx 256
ethtool -G eth0 rx 4096

# eth0 tx-ring: 256 now.
# Packets that the CPU may hand over while the wire is busy. Source: OB-UDPST handbook (10G and
# above).
# undo: ethtool -G eth0 tx 256
ethtool -G eth0 tx 4096

# class/net/eth0/queues/tx-0/xps_cpus: no CPU now.
# A CPU that always uses the same transmit queue waits for no other. Source: OB-UDPST handbook (XPS,
# one CPU per queue).
# undo: echo 0 > /sys/class/net/eth0/queues/tx-0/xps_cpus
echo a > /sys/class/net/eth0/queues/tx-0/xps_cpus

# class/net/eth0/queues/tx-1/xps_cpus: no CPU now.
# A CPU that always uses the same transmit queue waits for no other. Source: OB-UDPST handbook (XPS,
# one CPU per queue).
# undo: echo 0 > /sys/class/net/eth0/queues/tx-1/xps_cpus
echo 5 > /sys/class/net/eth0/queues/tx-1/xps_cpus

# /run/systemd/system/irqbalance.service.d/50-ringmill.conf: not there now.
# A running irqbalance undoes the placement of interrupts. Source: OB-UDPST handbook
# (IRQBALANCE_BANNED_CPULIST).
# undo: rm /run/systemd/system/irqbalance.service.d/50-ringmill.conf
mkdir -p /run/systemd/system/irqbalance.service.d
cat > /run/systemd/system/irqbalance.service.d/50-ringmill.conf <<'END_OF_FILE'
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.
[Service]
Environment=IRQBALANCE_BANNED_CPULIST=1-3
END_OF_FILE

# devices/system/cpu/cpu0/cpufreq/scaling_governor: powersave now.
# Pacing at 100 us needs a core that is awake. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor

# devices/system/cpu/cpu1/cpufreq/scaling_governor: powersave now.
# Pacing at 100 us needs a core that is awake. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor

# devices/system/cpu/cpu2/cpufreq/scaling_governor: powersave now.
# Pacing at 100 us needs a core that is awake. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor

# devices/system/cpu/cpu3/cpufreq/scaling_governor: powersave now.
# Pacing at 100 us needs a core that is awake. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor

# eth0 feature:tx-udp-segmentation: off now.
# Small datagrams need segmentation (GSO) to leave at rate; the card does it for nothing. Source:
# OB-UDPST handbook: GSO goes with datagrams below the path's MTU.
# undo: ethtool -K eth0 tx-udp-segmentation off
ethtool -K eth0 tx-udp-segmentation on

# To know:
# - name the card with --interface: shards then run on its NUMA node, and memory of another node
#   costs rate and CPU
# - use 10 or more flows below 1 Gbit/s and 2 to 4 above (-c); with one flow above 1 Gbit/s start at
#   10 to 20 % of the expected maximum, more gives a false one
# - behind a firewall open the control port and the range of test ports
#   (net.ipv4.ip_local_port_range)
# - record every datagram only to a memory file system: writing files costs datagrams
# - use the sizes without jumbo frames (-j) on both ends: GSO and fragments exclude each other
#   (EMSGSIZE)
