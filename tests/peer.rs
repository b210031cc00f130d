//! Programs that nobody here wrote, as clients and servers, fed with bytes and read back.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::{LOOK, PATIENCE, tethered};
use crate::skipped;

/// Whether a program is there; a line says so when not.
#[must_use]
pub fn has(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|folder| folder.join(program).is_file());
    if !found {
        skipped(&format!("{program} is not installed"));
    }
    found
}

/// A peer with pipes. Killed when dropped.
pub struct Peer {
    child: Child,
    name: String,
    input: Option<ChildStdin>,
    output: Option<ChildStdout>,
}

impl Peer {
    /// Starts `arguments[0]` with the rest.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = tethered(Command::new(arguments[0]));
        let mut child = command
            .args(&arguments[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", arguments[0]));
        Self {
            name: arguments.join(" "),
            input: child.stdin.take(),
            output: child.stdout.take(),
            child,
        }
    }

    /// Feeds it `data`, closes its input, and returns what it prints until it ends.
    ///
    /// # Panics
    /// When it fails or hangs.
    #[must_use]
    pub fn exchange(mut self, data: &[u8]) -> Vec<u8> {
        let mut input = self.input.take().expect("piped");
        let mut output = self.output.take().expect("piped");
        let mut back = Vec::with_capacity(data.len());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| output.read_to_end(&mut back));
            input.write_all(data).expect("the peer takes everything");
            drop(input);
            self.wait(PATIENCE);
            reader
                .join()
                .expect("a reader does not fail")
                .expect("the peer's output can be read");
        });
        back
    }

    /// Feeds it `data`, which it is to send as one piece, and reads as many bytes from it.
    ///
    /// # Panics
    /// When they do not come; killed then.
    #[must_use]
    pub fn ask(&mut self, data: &[u8]) -> Vec<u8> {
        let mut input = self.input.as_ref().expect("piped");
        let output = self.output.as_mut().expect("piped");
        let child = &mut self.child;
        let mut back = vec![0; data.len()];
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| output.read_exact(&mut back));
            input.write_all(data).expect("the peer takes everything");
            let deadline = Instant::now() + PATIENCE;
            while !reader.is_finished() {
                if Instant::now() >= deadline {
                    let _ = child.kill();
                }
                std::thread::sleep(LOOK);
            }
            reader
                .join()
                .expect("a reader does not fail")
                .unwrap_or_else(|error| panic!("{}: {} bytes: {error}", self.name, data.len()));
        });
        back
    }

    fn wait(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                assert!(status.success(), "{} ended by {status}", self.name);
                return;
            }
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                panic!("{} hangs", self.name);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
