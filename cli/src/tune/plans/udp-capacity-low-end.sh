#!/bin/sh
# Profile udp-capacity-low-end: Capacity tests on small devices (Raspberry Pi 4 and the like).
# For 1 connections, on this host as it is now.
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

# class/net/eth0/queues/tx-0/xps_cpus: no CPU now.
# Hashing over the transmit queues lets some flows starve others: one CPU for each queue. Source:
# OB-UDPST handbook (tx-0 mask 1, tx-1 mask 2, tx-2 mask 4, tx-3 mask 8).
# undo: echo 0 > /sys/class/net/eth0/queues/tx-0/xps_cpus
echo a > /sys/class/net/eth0/queues/tx-0/xps_cpus

# class/net/eth0/queues/tx-1/xps_cpus: no CPU now.
# Hashing over the transmit queues lets some flows starve others: one CPU for each queue. Source:
# OB-UDPST handbook (tx-0 mask 1, tx-1 mask 2, tx-2 mask 4, tx-3 mask 8).
# undo: echo 0 > /sys/class/net/eth0/queues/tx-1/xps_cpus
echo 5 > /sys/class/net/eth0/queues/tx-1/xps_cpus

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

# To know:
# - keep off CPU 0, which serves the card (--cpus 1-3)
# - use datagrams that fill 1500 bytes (-T), no jumbo sizes (-j), and one connection
# - pacing needs a timer of 100 us or better; where the device has none, --pacing busy spends a CPU
#   instead
