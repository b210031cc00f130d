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

# /etc/sysctl.d/80-ringmill.conf: not there now.
# The sysctls again after each boot. Source: systemd's manual.
# undo: rm /etc/sysctl.d/80-ringmill.conf
mkdir -p /etc/sysctl.d
cat > /etc/sysctl.d/80-ringmill.conf <<'END_OF_FILE'
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.
# less loss while the reader is away; sockets ask for the maximum and are granted twice what they ask
-net.core.rmem_max = 16777216
# a whole row of the rate table fits the send buffer; granted twice, as with rmem_max
-net.core.wmem_max = 16777216
END_OF_FILE

# /etc/ringmill/tune.sh: not there now.
# The rest again after each boot, as a script. Source: systemd's manual.
# undo: rm /etc/ringmill/tune.sh
mkdir -p /etc/ringmill
cat > /etc/ringmill/tune.sh <<'END_OF_FILE'
#!/bin/sh
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.

# hashing over the transmit queues lets some flows starve others: one CPU for each queue
echo a > /sys/class/net/eth0/queues/tx-0/xps_cpus

# hashing over the transmit queues lets some flows starve others: one CPU for each queue
echo 5 > /sys/class/net/eth0/queues/tx-1/xps_cpus

# pacing at 100 us needs a core that is awake
echo performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor

# pacing at 100 us needs a core that is awake
echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor

# pacing at 100 us needs a core that is awake
echo performance > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor

# pacing at 100 us needs a core that is awake
echo performance > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor
END_OF_FILE

# /etc/systemd/system/ringmill-tune.service: not there now.
# Runs that script. Source: systemd's manual.
# undo: rm /etc/systemd/system/ringmill-tune.service
mkdir -p /etc/systemd/system
cat > /etc/systemd/system/ringmill-tune.service <<'END_OF_FILE'
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.
[Unit]
Description=Host tuning of ringmill
After=network.target nftables.service

[Service]
Type=oneshot
RemainAfterExit=no
ExecStart=/bin/sh /etc/ringmill/tune.sh

[Install]
WantedBy=multi-user.target
END_OF_FILE

# /etc/systemd/system/multi-user.target.wants/ringmill-tune.service: not there now.
# Switches that unit on (systemctl enable). Source: systemd's manual.
# undo: rm /etc/systemd/system/multi-user.target.wants/ringmill-tune.service
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf /etc/systemd/system/ringmill-tune.service /etc/systemd/system/multi-user.target.wants/ringmill-tune.service

# /etc/udev/rules.d/90-ringmill.rules: not there now.
# Runs it again when the card appears. Source: systemd's manual.
# undo: rm /etc/udev/rules.d/90-ringmill.rules
mkdir -p /etc/udev/rules.d
cat > /etc/udev/rules.d/90-ringmill.rules <<'END_OF_FILE'
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.
ACTION=="add|move", SUBSYSTEM=="net", KERNEL=="eth0", TAG+="systemd", ENV{SYSTEMD_WANTS}+="ringmill-tune.service"
ACTION=="add|move", SUBSYSTEM=="net", NAME=="eth0", TAG+="systemd", ENV{SYSTEMD_WANTS}+="ringmill-tune.service"
END_OF_FILE

# To know:
# - keep off CPU 0, which serves the card (--cpus 1-3)
# - use datagrams that fill 1500 bytes (-T), no jumbo sizes (-j), and one connection
# - pacing needs a timer of 100 us or better; where the device has none, --pacing busy spends a CPU
#   instead
