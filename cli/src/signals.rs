//! SIGINT and SIGTERM: the first asks for a clean end, the second ends at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::Thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Counts the signals that ask the program to end.
#[derive(Clone)]
pub struct EndRequests(Arc<AtomicU32>);

impl EndRequests {
    /// Watches from now on. `control` is unparked at each signal.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn watch(control: Thread) -> io::Result<Self> {
        let count = Arc::new(AtomicU32::new(0));
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let counted = Arc::clone(&count);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in &mut signals {
                    counted.fetch_add(1, Ordering::SeqCst);
                    control.unpark();
                }
            })?;
        Ok(Self(count))
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Ends a run from inside the program, as the first signal would.
    pub fn request(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
