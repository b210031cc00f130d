//! The control socket: a Unix socket that takes the console's words, one a line, and answers each
//! with one line of JSON.
//!
//! A few clients at a time, each with a thread that waits for its lines; a client that sends an endless
//! line is cut off. Only the user who started the program may connect. Nothing here touches the shards:
//! a slow client delays itself alone.

use std::fs::{self, Permissions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use super::steer::Answer;

/// Clients at a time. A script needs one.
const CLIENTS_MAX: usize = 16;
/// A word and a host name fit many times.
const LINE_BYTES_MAX: u64 = 4096;
/// After a failed accept, such as for want of files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a line does, and what is told of it.
pub type Obey = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// The socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    /// Listens at a path from now on.
    ///
    /// # Errors
    /// When the path is in use by a program that answers, or cannot be bound.
    pub fn start(path: &Path, obey: Obey) -> io::Result<Self> {
        remove_dead(path)?;
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &obey))?;
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody answers: a program that was killed leaves its own behind.
fn remove_dead(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn accept(listener: &UnixListener, obey: &Obey) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            std::thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        if clients.fetch_add(1, SeqCst) >= CLIENTS_MAX {
            clients.fetch_sub(1, SeqCst);
            let full = Answer::failed(None, "too many clients: close one first");
            // It is refused either way.
            let _ = writeln!(stream, "{}", full.json);
            continue;
        }
        let (obey, serving) = (Arc::clone(obey), Arc::clone(&clients));
        let thread = std::thread::Builder::new().name("control-client".into());
        let started = thread.spawn(move || {
            // A client that goes away is its own business.
            let _ = serve(&stream, &obey);
            serving.fetch_sub(1, SeqCst);
        });
        if started.is_err() {
            clients.fetch_sub(1, SeqCst);
        }
    }
}

fn serve(stream: &UnixStream, obey: &Obey) -> io::Result<()> {
    let mut input = BufReader::new(stream);
    let mut output = stream;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let ended = line.ends_with(b"\n");
        let answer = match std::str::from_utf8(&line) {
            _ if !ended && read as u64 == LINE_BYTES_MAX => {
                let long = format!("the line is longer than {LINE_BYTES_MAX} bytes");
                writeln!(output, "{}", Answer::failed(None, &long).json)?;
                return Ok(());
            }
            Ok(text) => obey(text.trim()),
            Err(_) => Answer::failed(None, "the line is not UTF-8"),
        };
        writeln!(output, "{}", answer.json)?;
        if answer.exit {
            return Ok(());
        }
    }
}
