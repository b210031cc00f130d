//! A program at a pseudo terminal: what a user types and reads.
//!
//! The terminal does not echo, so that every line read is the program's own; all else is as a user has
//! it, also that Ctrl-C is a signal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use ringmill_tests::program::{LOOK, PATIENCE};

/// The program and its terminal. Killed when dropped.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    lines: Receiver<String>,
}

impl Terminal {
    /// Starts a command whose standard streams are a terminal, which controls it.
    pub(crate) fn start(mut command: Command) -> Self {
        let pty = openpty(None, None).expect("a pseudo terminal");
        let mut settings = tcgetattr(pty.slave.as_fd()).expect("a terminal has settings");
        settings.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(pty.slave.as_fd(), SetArg::TCSANOW, &settings).expect("and takes them");
        let stream = || Stdio::from(pty.slave.try_clone().expect("a copy"));
        command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: both calls are async-signal-safe and concern only the child, which becomes the
        // leader of a session whose terminal is its standard input.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().expect("the program starts");
        drop((command, pty.slave));
        let keyboard = File::from(pty.master);
        let screen = keyboard.try_clone().expect("a copy");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || read_lines(screen, &sender));
        Self {
            child,
            keyboard,
            lines,
        }
    }

    /// Types something and presses return.
    pub(crate) fn enter(&mut self, text: &str) {
        self.press(format!("{text}\n").as_bytes());
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard
            .write_all(keys)
            .expect("the terminal takes it");
    }

    /// The next line on the screen; `None` when the program has let go of the terminal.
    pub(crate) fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no line in {PATIENCE:?}"),
        }
    }

    /// Asserts that these lines come next.
    pub(crate) fn shows(&self, lines: &str) {
        let shown: Vec<String> = lines.lines().filter_map(|_| self.line()).collect();
        let wanted: Vec<&str> = lines.lines().collect();
        assert_eq!(shown, wanted);
    }

    /// Types something and asserts what comes of it.
    pub(crate) fn says(&mut self, text: &str, lines: &str) {
        self.enter(text);
        self.shows(lines);
    }

    /// Waits for the end: exit code, and the lines that were not read yet.
    pub(crate) fn wait(mut self, patience: Duration) -> (Option<i32>, Vec<String>) {
        let deadline = Instant::now() + patience;
        let status = loop {
            match self.child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("still running after {patience:?}"),
                None => std::thread::sleep(LOOK),
            }
        };
        let rest = std::iter::from_fn(|| self.line()).collect();
        (status.code(), rest)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(mut screen: File, lines: &mpsc::Sender<String>) {
    let mut pending = Vec::new();
    let mut piece = [0; 4096];
    // The end of a terminal is an error.
    while let Ok(len @ 1..) = screen.read(&mut piece) {
        pending.extend_from_slice(&piece[..len]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if lines.send(line).is_err() {
                return;
            }
        }
    }
}
