#!/bin/sh
# Profile tcp-client: A host that opens very many TCP connections.
# For 50,000 connections, on this host as it is now.
# Run it as root. Nothing is recorded: `ringmill tune apply` does the same and can take it back.
set -eu

# Open files: for what is started from the shell that reads this script (. ./FILE); for a service
# set LimitNOFILE= in its unit.
ulimit -n 1048576 || echo 'open files: the hard limit is lower' >&2

# fs.file-max: 100000 now.
# Every connection is an open file of the machine, whatever a process may have. Source: tcpscaler
# handbook (12582912).
# undo: sysctl -w fs.file-max=100000
sysctl -w fs.file-max=12582912

# fs.nr_open: 1024 now.
# The most that the limit of open files of any process can be raised to. Source: tcpscaler handbook
# (ulimit -n 1048576).
# undo: sysctl -w fs.nr_open=1024
sysctl -w fs.nr_open=1048576

# net.ipv4.ip_local_port_range: 32768 60999 now.
# 64512 instead of 28232 connections from one address to one destination; a firewall that lets
# answers in by port must open as many, and services that start later may find their port taken.
# Source: tcpscaler handbook.
# undo: sysctl -w net.ipv4.ip_local_port_range='32768 60999'
sysctl -w net.ipv4.ip_local_port_range='1024 65535'

# net.ipv4.tcp_tw_reuse: 2 now.
# A port in TIME_WAIT can be used again after a second instead of a minute (timestamps keep it
# safe). Source: tcpscaler handbook.
# undo: sysctl -w net.ipv4.tcp_tw_reuse=2
sysctl -w net.ipv4.tcp_tw_reuse=1

# net.netfilter.nf_conntrack_max: 65536 now.
# A firewall that tracks connections drops new ones when its table is full. Source: tcpscaler
# handbook (1000000).
# undo: sysctl -w net.netfilter.nf_conntrack_max=65536
sysctl -w net.netfilter.nf_conntrack_max=1000000

# module/nf_conntrack/parameters/hashsize: 16384 now.
# A table with long chains costs time on every packet. Source: tcpscaler handbook (a matching hash
# size).
# undo: echo 16384 > /sys/module/nf_conntrack/parameters/hashsize
echo 250000 > /sys/module/nf_conntrack/parameters/hashsize

# devices/system/cpu/cpu0/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets sends late. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor

# devices/system/cpu/cpu1/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets sends late. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor

# devices/system/cpu/cpu2/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets sends late. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor

# devices/system/cpu/cpu3/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets sends late. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor

# /etc/sysctl.d/80-ringmill.conf: not there now.
# The sysctls again after each boot. Source: systemd's manual.
# undo: rm /etc/sysctl.d/80-ringmill.conf
mkdir -p /etc/sysctl.d
cat > /etc/sysctl.d/80-ringmill.conf <<'END_OF_FILE'
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.
# every connection is an open file of the machine, whatever a process may have
-fs.file-max = 12582912
# the most that the limit of open files of any process can be raised to
-fs.nr_open = 1048576
# 64512 instead of 28232 connections from one address to one destination; a firewall that lets answers in by port must open as many, and services that start later may find their port taken
-net.ipv4.ip_local_port_range = 1024 65535
# a port in TIME_WAIT can be used again after a second instead of a minute (timestamps keep it safe)
-net.ipv4.tcp_tw_reuse = 1
END_OF_FILE

# /etc/ringmill/tune.sh: not there now.
# The rest again after each boot, as a script. Source: systemd's manual.
# undo: rm /etc/ringmill/tune.sh
mkdir -p /etc/ringmill
cat > /etc/ringmill/tune.sh <<'END_OF_FILE'
#!/bin/sh
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.

# a firewall that tracks connections drops new ones when its table is full
sysctl -w net.netfilter.nf_conntrack_max=1000000

# a table with long chains costs time on every packet
echo 250000 > /sys/module/nf_conntrack/parameters/hashsize

# a core that clocks down between packets sends late
echo performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor

# a core that clocks down between packets sends late
echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor

# a core that clocks down between packets sends late
echo performance > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor

# a core that clocks down between packets sends late
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

# /etc/systemd/system/ringmill.service.d/50-tune.conf: not there now.
# Open files of the service ringmill.service. Source: systemd's manual.
# undo: rm /etc/systemd/system/ringmill.service.d/50-tune.conf
mkdir -p /etc/systemd/system/ringmill.service.d
cat > /etc/systemd/system/ringmill.service.d/50-tune.conf <<'END_OF_FILE'
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.
[Service]
LimitNOFILE=1048576
END_OF_FILE

# Left alone:
# - open files of a process: 20000 for this process; a limit is inherited: set LimitNOFILE=1048576
#   in the unit, or `ulimit -n 1048576` before the start

# To know:
# - one source address reaches one destination with as many connections as there are ports: use more
#   source addresses (--sources) or destination ports beyond that
