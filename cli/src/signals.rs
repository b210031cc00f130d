//! SIGINT and SIGTERM: the first asks for a clean end, the second ends at once, also when the program
//! itself is stuck, for instance because nobody reads its output. SIGHUP, for those who want it: look
//! at the configuration again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::Thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exit::Exit;

/// How long after the second signal the program may take to end by itself.
const FORCE_AFTER: Duration = Duration::from_secs(3);

/// Counts the signals that ask the program to end.
#[derive(Clone)]
pub struct EndRequests {
    ends: Arc<AtomicU32>,
    hangups: Arc<AtomicU32>,
}

impl EndRequests {
    /// Watches from now on. `control` is unparked at each signal.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn watch(control: Thread) -> io::Result<Self> {
        Self::watch_for(control, &[SIGINT, SIGTERM])
    }

    /// Watches for SIGHUP too, which then ends nothing.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn watch_with_hangups(control: Thread) -> io::Result<Self> {
        Self::watch_for(control, &[SIGINT, SIGTERM, SIGHUP])
    }

    fn watch_for(control: Thread, wanted: &[i32]) -> io::Result<Self> {
        let requests = Self {
            ends: Arc::default(),
            hangups: Arc::default(),
        };
        let mut signals = Signals::new(wanted)?;
        let counted = requests.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut forced = false;
                for signal in &mut signals {
                    if signal == SIGHUP {
                        counted.hangups.fetch_add(1, Ordering::SeqCst);
                    } else {
                        counted.request();
                    }
                    control.unpark();
                    if counted.count() >= 2 && !std::mem::replace(&mut forced, true) {
                        // Should the control thread be gone by then, so is the program.
                        let _ = std::thread::Builder::new().spawn(|| {
                            std::thread::sleep(FORCE_AFTER);
                            std::process::exit(Exit::Interrupted as i32);
                        });
                    }
                }
            })?;
        Ok(requests)
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.ends.load(Ordering::SeqCst)
    }

    /// Ends a run from inside the program, as the first signal would.
    pub fn request(&self) {
        self.ends.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a SIGHUP came since this was last asked.
    #[must_use]
    pub fn take_hangup(&self) -> bool {
        self.hangups.swap(0, Ordering::SeqCst) > 0
    }
}
