//! Standard output of a server: printed by a thread of its own, so that nobody who reads it slowly,
//! or not at all, holds up the control thread, which hears signals and follows the clock.
//!
//! What waits is bounded. What finds no room is dropped and counted, and the count is printed where
//! the lines are missing. A server never waits here but for a moment at its end.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// What may wait: some seconds of the most events that a server tells.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How long the end of a server waits for a reader.
const END_PATIENCE: Duration = Duration::from_secs(1);

static STANDARD_OUTPUT: OnceLock<Printer> = OnceLock::new();

/// Prints a text to standard output, soon. A reader that no longer reads does not end the server.
pub fn print(json: bool, text: String) {
    STANDARD_OUTPUT
        .get_or_init(|| Printer::start(io::stdout()))
        .print(json, text);
}

/// Prints an event as a line of JSON, or words for people; [`Value::Null`] is an event that is not
/// told in JSON.
pub(crate) fn say(json: bool, event: &Value, words: impl Display) {
    match (json, event) {
        (true, Value::Null) => {}
        (true, event) => print(json, format!("{event}\n")),
        (false, _) => print(json, format!("{words}\n")),
    }
}

/// Waits until all of it is printed, or for a second when nobody reads.
pub fn finish() {
    if let Some(printer) = STANDARD_OUTPUT.get() {
        printer.finish(END_PATIENCE);
    }
}

/// A queue of texts and the thread that writes them.
struct Printer {
    shared: Arc<Shared>,
    bytes_max: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Something waits.
    work: Condvar,
    /// Nothing waits and nothing is being written.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<String>,
    /// Of all that waits or is being written.
    bytes: usize,
    /// Texts that found no room, not told yet; and whether in JSON.
    dropped: u64,
    json: bool,
}

impl State {
    fn push(&mut self, text: String) {
        self.bytes += text.len();
        self.waiting.push_back(text);
    }

    /// Says how many are missing here.
    fn tell_dropped(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            let words = "standard output was not read in time";
            let text = if self.json {
                let line = json!({ "type": "dropped", "lines": dropped, "reason": words });
                format!("{line}\n")
            } else {
                format!("{dropped} lines dropped: {words}\n")
            };
            self.push(text);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics with it, and texts are whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Printer {
    fn start(out: impl Write + Send + 'static) -> Self {
        let shared = Arc::<Shared>::default();
        let threads = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("printer".into());
        // Without a thread all is dropped, as it is without a reader.
        let _ = thread.spawn(move || write_all(&threads, out));
        Self {
            shared,
            bytes_max: WAITING_BYTES_MAX,
        }
    }

    fn print(&self, json: bool, text: String) {
        let mut state = self.shared.state();
        if state.bytes + text.len() > self.bytes_max {
            state.dropped += 1;
            state.json = json;
            return;
        }
        state.tell_dropped();
        state.push(text);
        self.shared.work.notify_one();
    }

    fn finish(&self, patience: Duration) {
        let mut state = self.shared.state();
        state.tell_dropped();
        self.shared.work.notify_one();
        let idle = &self.shared.idle;
        let _ = idle.wait_timeout_while(state, patience, |state| state.bytes > 0);
    }
}

fn write_all(shared: &Shared, mut out: impl Write) {
    let mut state = shared.state();
    loop {
        while state.waiting.is_empty() {
            let work = shared.work.wait(state);
            state = work.unwrap_or_else(PoisonError::into_inner);
        }
        let texts = std::mem::take(&mut state.waiting);
        drop(state);
        let mut written = 0;
        for text in texts {
            written += text.len();
            let _ = out.write_all(text.as_bytes());
        }
        let _ = out.flush();
        state = shared.state();
        state.bytes -= written;
        if state.bytes == 0 {
            shared.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes a write each time that it is allowed one.
    struct Slow {
        allowed: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.allowed.recv();
            let _ = self
                .written
                .send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_said_where_it_is_missing() {
        for (json, said) in [
            (
                true,
                "{\"lines\":2,\"reason\":\"standard output was not read in time\",\"type\":\"dropped\"}\n",
            ),
            (
                false,
                "2 lines dropped: standard output was not read in time\n",
            ),
        ] {
            let (allow, allowed) = channel();
            let (sender, written) = channel();
            let slow = Slow {
                allowed,
                written: sender,
            };
            let printer = Printer {
                bytes_max: 10,
                ..Printer::start(slow)
            };
            for text in ["12345", "67890", "more", "m"] {
                printer.print(json, text.into());
            }
            // Nobody reads: the end waits no longer than it is told to.
            printer.finish(Duration::from_millis(1));
            for _ in 0..3 {
                allow.send(()).expect("the printer writes");
            }
            let lines: Vec<_> = (0..3).map(|_| written.recv().expect("a text")).collect();
            assert_eq!(lines, ["12345", "67890", said]);
            printer.finish(Duration::from_secs(60));
            printer.print(json, "next".into());
            allow.send(()).expect("the printer writes");
            assert_eq!(written.recv().as_deref(), Ok("next"));
        }
    }
}
