//! The writer of every query and answer: one thread that takes what the shards leave and makes lines
//! of it.
//!
//! The shards never wait for it. Lines of one shard are in the order of time; those of several are
//! mixed as they come.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use ringmill_engine::time::monotonic_now;
use ringmill_protocols::dns::{RECORD_HEADER, Records};

/// Between two looks when there was nothing: the shards' queues hold far more than comes in it.
const LOOK: Duration = Duration::from_millis(5);
/// Records taken from one shard before the next one has its turn.
const TURN: usize = 4096;
/// Lines are written in pieces of this size.
const BUFFER_BYTES: usize = 1 << 18;

/// See the [module's page](self).
pub(super) struct Recording {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    writer: JoinHandle<io::Result<u64>>,
}

impl Recording {
    /// Begins to write what the shards record to a file, or to standard output for `-`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn begin(path: &Path, records: Vec<Records>) -> Result<Self> {
        let out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = File::create(path);
            Box::new(file.with_context(|| format!("cannot write {}", path.display()))?)
        };
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let writer = std::thread::Builder::new()
            .name("record".into())
            .spawn(move || {
                write(
                    BufWriter::with_capacity(BUFFER_BYTES, out),
                    &records,
                    &until,
                )
            })?;
        Ok(Self {
            path: path.to_owned(),
            ended,
            writer,
        })
    }

    /// Writes what is left, when no shard records any more. How many lines there are, the header not
    /// counted.
    ///
    /// # Errors
    /// When not all could be written; a reader who has gone is no error.
    pub(super) fn finish(self) -> Result<u64> {
        self.ended.store(true, Ordering::Release);
        self.writer.thread().unpark();
        let written = self.writer.join();
        let written = written.map_err(|_| anyhow!("the writer of the record panicked"))?;
        written.with_context(|| format!("cannot write the record to {}", self.path.display()))
    }
}

fn write(mut out: impl Write, records: &[Records], ended: &AtomicBool) -> io::Result<u64> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let wall = since_1970.map_or(0, |since| since.as_nanos() as i128);
    let offset = wall - i128::from(monotonic_now());
    let mut lines = 0;
    let mut result = writeln!(out, "{RECORD_HEADER}");
    loop {
        let over = ended.load(Ordering::Acquire);
        let mut found = false;
        for queue in records {
            for _ in 0..TURN {
                let Some(record) = queue.pop() else { break };
                found = true;
                if result.is_ok() {
                    result = record.write_line(offset, &mut out);
                    lines += u64::from(result.is_ok());
                }
            }
        }
        if !found {
            if result.is_ok() {
                result = out.flush();
            }
            if over {
                break;
            }
            std::thread::park_timeout(LOOK);
        }
    }
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(lines),
    }
}
