//! What the kernel counted on TCP connections, read by `ss`: how many bytes left and arrived, whatever
//! program has the connections. It looks only, and costs the connections nothing between two looks.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};

/// The connections to one port at one moment, this end's sockets only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// In the middle of the look.
    pub(crate) at: Instant,
    /// Connections.
    pub(crate) connections: u64,
    /// Bytes that the other end's kernel has confirmed.
    pub(crate) acked: u64,
    /// Bytes that arrived and were read by the program.
    pub(crate) read: u64,
}

impl Look {
    /// Looks at the connections to `port`.
    ///
    /// # Errors
    /// `ss` is missing or fails.
    pub(crate) fn take(port: u16) -> anyhow::Result<Look> {
        let before = Instant::now();
        let output = Command::new("ss")
            .args(["-tinHO", "dport", "=", &format!(":{port}")])
            .output()
            .context("cannot start ss (Debian: apt install iproute2)")?;
        let at = before + before.elapsed() / 2;
        ensure!(
            output.status.success(),
            "ss: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let (connections, acked, read) = sum(&String::from_utf8_lossy(&output.stdout));
        Ok(Look {
            at,
            connections,
            acked,
            read,
        })
    }

    /// Per second from `self` to a later look: bytes confirmed, bytes read.
    pub(crate) fn rates_until(&self, later: &Look) -> (f64, f64) {
        let seconds = (later.at - self.at).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        (rate(later.acked, self.acked), rate(later.read, self.read))
    }
}

/// Connections, bytes confirmed and bytes read in the lines of `ss -tinHO`.
fn sum(text: &str) -> (u64, u64, u64) {
    let mut sum = (0, 0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        // State, then what waits to be read; the rest has names.
        let waiting: u64 = words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let named = |name: &str| -> u64 {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.parse().ok())
                .unwrap_or(0)
        };
        sum.0 += 1;
        sum.1 += named("bytes_acked:");
        sum.2 += named("bytes_received:").saturating_sub(waiting);
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn lines_of_ss() {
        let text = "ESTAB 31 0 127.0.0.1:5 127.0.0.1:7 cubic rto:200 bytes_sent:62 bytes_acked:62 \
                    bytes_received:93 segs_out:3\n\
                    ESTAB 0 0 127.0.0.1:6 127.0.0.1:7 cubic rto:200\n";
        assert_eq!(sum(text), (2, 62, 62));
        assert_eq!(sum(""), (0, 0, 0));
    }

    #[test]
    fn a_connection_of_our_own() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(address).expect("listening");
        let (mut server, _) = listener.accept().expect("connected");
        let Ok(before) = Look::take(address.port()) else {
            println!("skipped: ss is not installed");
            return;
        };
        client.write_all(&[7; 31]).expect("room");
        server.read_exact(&mut [0; 31]).expect("sent");
        server.write_all(&[7; 40]).expect("room");
        client.read_exact(&mut [0; 30]).expect("sent");
        // What was sent is confirmed by the answer that came back.
        let after = Look::take(address.port()).expect("as before");
        assert_eq!(after.connections, 1);
        assert_eq!(after.acked - before.acked, 31);
        assert_eq!(after.read - before.read, 30);
    }
}
