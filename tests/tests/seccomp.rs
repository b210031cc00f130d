//! io_uring refused by a real seccomp filter, as containers do: epoll instead, or a clear error.

use ringmill_tests::net::{assert_datagram_echo, assert_stream_echo};
use ringmill_tests::net::{connect, datagram_socket, random_bytes};
use ringmill_tests::program::{Load, PATIENCE, Running, Server, command};
use ringmill_tests::restrict::without_io_uring;
use ringmill_tests::{drivers, skipped};

/// How a filter refuses, and the word by which the message must name it.
const REFUSALS: [(i32, &str); 2] = [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")];

#[test]
fn auto_falls_back_to_epoll_and_says_why_in_one_line() {
    if !drivers().contains(&"epoll") {
        return;
    }
    for (errno, name) in REFUSALS {
        let refused = || without_io_uring(command(), errno);
        let (served, loaded) = match (refused(), refused()) {
            (Ok(server), Ok(load)) => (server, load),
            (Err(reason), _) | (_, Err(reason)) => return skipped(&reason),
        };
        let server = Server::start_as(served, &["tcp://:0", "udp://:0"], &[]);
        for line in &server.listening {
            assert_eq!(line["driver"], "epoll", "{line}");
        }
        assert_stream_echo(connect(server.address("tcp")), &random_bytes(1_000_003));
        let socket = datagram_socket("127.0.0.1:0");
        assert_datagram_echo(&socket, server.address("udp"), &random_bytes(1222));

        let load = Load::run_as(loaded, server.endpoint(0), &["-c", "10", "-d", "500ms"]);
        load.assert_clean();
        assert_eq!(load.report["settings"]["driver"], "epoll");
        let stopped = server.stop();
        assert_eq!(stopped.code, 0, "{}", stopped.stderr);
        for said in [&stopped.stderr, &load.stderr] {
            let lines: Vec<_> = said.lines().collect();
            assert_eq!(lines.len(), 1, "{said}");
            assert!(said.contains("epoll") && said.contains(name), "{said}");
        }
    }
}

#[test]
fn uring_alone_is_refused_with_the_reason() {
    for (errno, name) in REFUSALS {
        for arguments in [
            &["serve", "echo", "tcp://127.0.0.1:0"][..],
            &["load", "echo", "tcp://127.0.0.1:9"],
        ] {
            let mut refused = match without_io_uring(command(), errno) {
                Ok(command) => command,
                Err(reason) => return skipped(&reason),
            };
            refused.args(arguments);
            let mut running = Running::start(&mut refused, &["--json", "--driver", "uring"]);
            let (code, lines) = running.wait(PATIENCE);
            let said = running.stderr();
            assert_eq!((code, lines.len()), (2, 0), "{said}");
            assert!(said.contains("uring") && said.contains(name), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}
