#!/bin/sh
# Profile tcp-server: A server that holds very many TCP connections.
# For 100,000 connections, on this host as it is now.
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

# net.core.somaxconn: 4096 now.
# Connections that wait for accept; when the queue is full they are dropped (ListenOverflows).
# Source: tcpscaler handbook (8192).
# undo: sysctl -w net.core.somaxconn=4096
sysctl -w net.core.somaxconn=8192

# net.ipv4.tcp_max_syn_backlog: 4096 now.
# Half-open connections; past it the kernel sends SYN cookies or drops. Source: own research: as
# somaxconn, or the smaller of the two decides.
# undo: sysctl -w net.ipv4.tcp_max_syn_backlog=4096
sysctl -w net.ipv4.tcp_max_syn_backlog=8192

# net.ipv4.tcp_mem: 95000 126000 190000 now.
# Pages that the queues of all connections may take together; past it every socket is squeezed.
# Source: own research: a page each way for each connection, in the kernel's own proportions.
# undo: sysctl -w net.ipv4.tcp_mem='95000 126000 190000'
sysctl -w net.ipv4.tcp_mem='100000 133333 200000'

# net.ipv4.tcp_max_tw_buckets: 65536 now.
# Connections that this end closed stay for 60 s; past it they are cut short (TCPTimeWaitOverflow).
# Source: own research: a table of 131072 fills in seconds when connections are closed by FIN.
# undo: sysctl -w net.ipv4.tcp_max_tw_buckets=65536
sysctl -w net.ipv4.tcp_max_tw_buckets=100000

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

# net.core.netdev_max_backlog: 1000 now.
# Packets that wait for a CPU (loopback, veth, RPS); what does not fit is dropped. Source: own
# research: what arrives in 10 ms.
# undo: sysctl -w net.core.netdev_max_backlog=1000
sysctl -w net.core.netdev_max_backlog=10000

# eth0 rx-ring: 256 now.
# Packets that the card may hold while the CPU is busy. Source: OB-UDPST handbook (10G and above).
# undo: ethtool -G eth0 rx 256
ethtool -G eth0 rx 4096

# eth0 tx-ring: 256 now.
# Packets that the CPU may hand over while the wire is busy. Source: OB-UDPST handbook (10G and
# above).
# undo: ethtool -G eth0 tx 256
ethtool -G eth0 tx 4096

# eth0 channels: 2 now.
# Fewer queues than shards leave cores without packets of their own. Source: own research.
# undo: ethtool -L eth0 combined 2
ethtool -L eth0 combined 3

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

# class/net/eth0/queues/rx-0/rps_cpus: no CPU now.
# A card with fewer queues than shards has its packets spread over the shards' CPUs. Source: own
# research; Documentation/networking/scaling.rst.
# undo: echo 0 > /sys/class/net/eth0/queues/rx-0/rps_cpus
echo e > /sys/class/net/eth0/queues/rx-0/rps_cpus

# class/net/eth0/queues/rx-1/rps_cpus: no CPU now.
# A card with fewer queues than shards has its packets spread over the shards' CPUs. Source: own
# research; Documentation/networking/scaling.rst.
# undo: echo 0 > /sys/class/net/eth0/queues/rx-1/rps_cpus
echo e > /sys/class/net/eth0/queues/rx-1/rps_cpus

# /etc/systemd/system/irqbalance.service.d/50-ringmill.conf: not there now.
# A running irqbalance undoes the placement of interrupts. Source: OB-UDPST handbook
# (IRQBALANCE_BANNED_CPULIST).
# undo: rm /etc/systemd/system/irqbalance.service.d/50-ringmill.conf
mkdir -p /etc/systemd/system/irqbalance.service.d
cat > /etc/systemd/system/irqbalance.service.d/50-ringmill.conf <<'END_OF_FILE'
# Written by `ringmill tune apply --persist`; `ringmill tune revert` removes it.
[Service]
Environment=IRQBALANCE_BANNED_CPULIST=1-3
END_OF_FILE

# devices/system/cpu/cpu0/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets answers late. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor

# devices/system/cpu/cpu1/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets answers late. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor

# devices/system/cpu/cpu2/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets answers late. Source: own research.
# undo: echo powersave > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor
echo performance > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor

# devices/system/cpu/cpu3/cpufreq/scaling_governor: powersave now.
# A core that clocks down between packets answers late. Source: own research.
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
# connections that wait for accept; when the queue is full they are dropped (ListenOverflows)
-net.core.somaxconn = 8192
# half-open connections; past it the kernel sends SYN cookies or drops
-net.ipv4.tcp_max_syn_backlog = 8192
# pages that the queues of all connections may take together; past it every socket is squeezed
-net.ipv4.tcp_mem = 100000 133333 200000
# connections that this end closed stay for 60 s; past it they are cut short (TCPTimeWaitOverflow)
-net.ipv4.tcp_max_tw_buckets = 100000
# packets that wait for a CPU (loopback, veth, RPS); what does not fit is dropped
-net.core.netdev_max_backlog = 10000
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

# packets that the card may hold while the CPU is busy
ethtool -G eth0 rx 4096

# packets that the CPU may hand over while the wire is busy
ethtool -G eth0 tx 4096

# fewer queues than shards leave cores without packets of their own
ethtool -L eth0 combined 3

# a CPU that always uses the same transmit queue waits for no other
echo a > /sys/class/net/eth0/queues/tx-0/xps_cpus

# a CPU that always uses the same transmit queue waits for no other
echo 5 > /sys/class/net/eth0/queues/tx-1/xps_cpus

# a card with fewer queues than shards has its packets spread over the shards' CPUs
echo e > /sys/class/net/eth0/queues/rx-0/rps_cpus

# a card with fewer queues than shards has its packets spread over the shards' CPUs
echo e > /sys/class/net/eth0/queues/rx-1/rps_cpus

# a core that clocks down between packets answers late
echo performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor

# a core that clocks down between packets answers late
echo performance > /sys/devices/system/cpu/cpu1/cpufreq/scaling_governor

# a core that clocks down between packets answers late
echo performance > /sys/devices/system/cpu/cpu2/cpufreq/scaling_governor

# a core that clocks down between packets answers late
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
