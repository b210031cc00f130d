//! What `-?` shows. The letters are those of OB-UDPST, the words are our own.

/// The text, for a program of this name.
#[must_use]
pub(super) fn text(program: &str) -> String {
    format!("UDP Speed Test\nUsage: {program} [OPTION]... [SERVER[:PORT]]...\n{TEXT}")
}

const TEXT: &str = "
A client tests upstream with -u or downstream with -d; without either this is a server, which may be
given the local address to serve. C: for a client, S: for a server, C/S: a client's wish and a
server's limit.

Test
  C    -u | -d       measure upstream, or downstream
  C    -C N[-MAX]    connections needed, and attempted [one for each server]
  C/S  -t SECONDS    duration, 5 to 3600 [10; server 3600]
  C    -P MS         sub-interval, 100 to 10000 [1000]
  C    -i [-]N       two modes: the first N sub-intervals, then the rest; '-' holds the rate meanwhile
  C/S  -I [@]ROW     one row of the rate table, '@' only to start there; server: the highest row
       -B MBPS       bandwidth needed in all; server: bandwidth to be had in each direction
Rate adjustment
  C    -A B|C        algorithm [B]
  C    -L MS, -U MS  low and upper delay variation threshold [30, 90]
  C    -F MS         trial interval, 5 to 250 [50]
  C    -c N          congested trials that end the fast steps [3]
  C    -h N          rows of a fast step [10]
  C    -q N          sequence errors tolerated in a trial [10]
  C    -o            by one-way delay variation instead of round-trip
  C    -R            reordering and duplicates are errors
  C    -Z N          ECN: congestion above (N-1)/255 of CE marks; needs -m with ECN bits
Datagrams
       -4, -6        IPv4 or IPv6 only
       -j            no jumbo datagrams, -T packets of 1500 bytes: as on the other end
  C/S  -X            random payload
  C/S  -m OCTET      DSCP and ECN, as 184 or 0xb8 [0; server 255]
       -b BYTES      socket buffers to ask for [receive 16777216, send 1024000]
       -n            numbers of datagrams that were not sent are not used again
Authentication
       -a KEY        key of up to 64 characters
       -K FILE       key file: a line for each, ID,KEY
  C    -y ID         which key [0]
Output
       -v, -D        more lines; with -D one for each trial
       -s            no sub-intervals
  C    -f FORMAT     json, jsonb (brief) or jsonf (formatted)
  C    -r            ratio of loss instead of percentage delivered
  C    -E NAME       rate of a network interface beside; -M it decides the maximum
       -O [+]FILE    record load PDUs that give a round-trip time, '+' all; see the names below
       -e            socket errors are shown
       -S            show the rate table (with -6, -j, -T) and end
Server
       -p PORT       control port [24601]; also the default for servers named without
  S    -1            end after one test
  S    -x            in the background; -l FILE log, -k KBYTES of log until it is started anew [1000]
  S    -G FILE       statistics file, its name with conversions of strftime
Beyond the original
       --checksum    fill the checksums of headers
       --no-gso      send datagrams one by one
       --quiet-control, --quiet-data
                     say nothing of invalid control or data PDUs
       --pacing auto|timer|busy
                     senders sleep, or spin on a CPU of their own; auto: where timers fire late
       --shards N, --cpus LIST, --driver auto|uring|epoll
                     where shards run, and how they talk to the kernel
  S    --auth-optional
                     also serve clients without a key
  S    --rate-limit  hold tests to the bandwidth that they asked for
  S    --test-ports LOW-HIGH
                     ports of tests, for a firewall
  S    --stats-record SECONDS, --stats-file SECONDS
                     between records [10], between files [300] of -G

SERVER is HOST, HOST:PORT, IPV6 or [IPV6]:PORT. In the name of a recording #i is the index of the
connection, #c their number, #I the test, #l and #r local and remote address, #s and #d remote and
local port, #M C or S, #D U or D, #H the server, #p its control port, #E the interface; then
conversions of strftime.
";
