//! The end of a server: everything queued arrives, a deadline holds, a second signal ends at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ringmill_tests::drivers;
use ringmill_tests::net::{assert_message_echo, connect, random_bytes};
use ringmill_tests::program::{PATIENCE, Server, command, signal, until};
use socket2::{Domain, Socket, Type};

/// More than socket buffers hold once the client's is small, less than a connection may queue.
const QUEUED_BYTES: usize = 700_000;

/// A connection whose receive buffer is small, so that what is not read waits in the server.
fn slow_reader(to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&to.into()).expect("the server listens");
    let stream: TcpStream = socket.into();
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket takes timeouts");
    stream
}

/// A connection that the server has accepted.
fn served(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    assert_message_echo(&mut stream, b"here");
    stream
}

/// Sends data that the server has then received, of which nothing has been read back.
fn fill(server: &mut Server, reader: &mut TcpStream) -> Vec<u8> {
    let data = random_bytes(QUEUED_BYTES);
    reader.write_all(&data).expect("the server takes it");
    server.running.line_where("all bytes received", |line| {
        line["counters"]["received_bytes"].as_u64() >= Some(QUEUED_BYTES as u64)
    });
    data
}

/// Waits until the server has begun to stop: an idle connection hears its end.
fn until_stopping(idle: &mut TcpStream) {
    let end = idle.read(&mut [0; 1]).expect("an end, not an error");
    assert_eq!(end, 0, "nothing was sent, so nothing comes back");
}

#[test]
fn sigterm_sends_what_is_queued() {
    for driver in drivers() {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let mut server = Server::start(&["tcp://127.0.0.1:0"], &["--driver", driver]);
            let address = server.address("tcp");
            let mut reader = slow_reader(address);
            let data = fill(&mut server, &mut reader);
            let mut idle = served(address);
            server.running.signal(signal);
            until_stopping(&mut idle);
            drop(idle);
            // Slowly: in small pieces, while the server drains.
            let mut back = Vec::new();
            let mut piece = [0; 5000];
            loop {
                match reader.read(&mut piece) {
                    Ok(0) => break,
                    Ok(len) => back.extend_from_slice(&piece[..len]),
                    Err(error) => panic!("{driver}: after {} bytes: {error}", back.len()),
                }
            }
            assert!(
                back == data,
                "{driver}: {} of {} bytes",
                back.len(),
                data.len()
            );
            drop(reader);
            let stopped = server.wait(PATIENCE);
            assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
            assert_eq!(stopped.counter("open"), 0, "{driver}");
            assert_eq!(stopped.counter("failed"), 0, "{driver}");
        }
    }
}

#[test]
fn idle_connections_do_not_hold_up_a_stop() {
    for driver in drivers() {
        let flags = ["--driver", driver, "--drain-timeout", "10m"];
        let server = Server::start(&["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], &flags);
        let mut idle = served(server.address("tcp"));
        server.running.signal(libc::SIGTERM);
        // The server's end arrives; then the client leaves as well.
        until_stopping(&mut idle);
        drop(idle);
        let stopped = server.wait(PATIENCE);
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
    }
}

/// Who comes then must hear at once that nobody serves here, or reach another process that shares
/// the port: a connection in the queue of a listener that accepts nothing would wait in vain.
#[test]
fn a_stopping_server_closes_its_port() {
    for driver in drivers() {
        let flags = ["--driver", driver, "--drain-timeout", "10m"];
        let mut server = Server::start(&["tcp://127.0.0.1:0"], &flags);
        let address = server.address("tcp");
        let mut reader = slow_reader(address);
        fill(&mut server, &mut reader);
        let mut idle = served(address);
        server.running.signal(libc::SIGTERM);
        until_stopping(&mut idle);
        until("a closed port", || TcpStream::connect(address).err());
        drop((idle, reader));
        assert_eq!(server.wait(PATIENCE).code, 0, "{driver}");
    }
}

#[test]
fn a_second_signal_ends_at_once_with_130() {
    for driver in drivers() {
        let flags = ["--driver", driver, "--drain-timeout", "10m"];
        let mut server = Server::start(&["tcp://127.0.0.1:0"], &flags);
        let address = server.address("tcp");
        let mut reader = slow_reader(address);
        fill(&mut server, &mut reader);
        let mut idle = served(address);
        server.running.signal(libc::SIGTERM);
        until_stopping(&mut idle);
        server.running.signal(libc::SIGTERM);
        let stopped = server.wait(PATIENCE);
        assert_eq!(stopped.code, 130, "{driver}: {}", stopped.stderr);
        drop(reader);
    }
}

#[test]
fn the_deadline_of_a_stop_holds() {
    for driver in drivers() {
        let flags = ["--driver", driver, "--drain-timeout", "1s"];
        let mut server = Server::start(&["tcp://127.0.0.1:0"], &flags);
        let mut reader = slow_reader(server.address("tcp"));
        fill(&mut server, &mut reader);
        let asked = Instant::now();
        server.running.signal(libc::SIGTERM);
        let stopped = server.wait(PATIENCE);
        assert_eq!(stopped.code, 0, "{driver}: {}", stopped.stderr);
        // Not before: the client might still have read. (After it, PATIENCE is the hang guard.)
        assert!(asked.elapsed() >= Duration::from_millis(900), "{driver}");
        drop(reader);
    }
}

/// Bytes that wait to be read in a pipe.
fn waiting_bytes(pipe: &impl AsRawFd) -> i32 {
    let mut bytes = 0;
    // SAFETY: the pointer is to a live value of the right type.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    bytes
}

/// The first signal is heard although nobody reads what the server says.
#[test]
fn sigterm_ends_a_server_whose_output_nobody_reads() {
    /// The smallest pipe there is.
    const PIPE_BYTES: i32 = 4096;
    let kinds: [&[&str]; 3] = [
        &["serve", "echo", "tcp://127.0.0.1:0"],
        &["capacity", "server", "--listen", ":0"],
        &["nat", "127.0.0.1:0", "127.0.0.1:9"],
    ];
    // All at once.
    let servers = kinds.map(|kind| {
        let (pipe, mut end) = std::io::pipe().expect("a pipe");
        // SAFETY: fcntl takes numbers; the pipe is open.
        let result = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        assert_eq!(result, PIPE_BYTES, "{}", std::io::Error::last_os_error());
        let mut server = command();
        server.args(kind).arg("--json").stdin(Stdio::null());
        server.stdout(end.try_clone().expect("a second end"));
        let child = server.spawn().expect("it starts");
        until("its first line", || {
            (waiting_bytes(&pipe) > 0).then_some(())
        });
        // What is left of the page: nothing more finds room.
        let left = (PIPE_BYTES - waiting_bytes(&pipe)).max(0) as usize;
        end.write_all(&vec![b' '; left]).expect("it fits");
        (kind, child, pipe)
    });
    // Each of them has an event to tell in every second.
    std::thread::sleep(Duration::from_millis(1500));
    for (kind, mut child, pipe) in servers {
        assert_eq!(waiting_bytes(&pipe), PIPE_BYTES, "{kind:?}");
        signal(child.id(), libc::SIGTERM);
        let status = until("its end", || child.try_wait().expect("our own child"));
        assert_eq!(status.code(), Some(0), "{kind:?}");
    }
}
