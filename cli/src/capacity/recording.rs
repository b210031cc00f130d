//! The recording of what came to a client, as CSV: a thread of its own with bounded queues before it.
//! A disk that is too slow costs rows, which are counted, and never disturbs a test.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ringmill_protocols::capacity::batch::LoadRecord;
use ringmill_protocols::capacity::client::RecordBatch;
use ringmill_protocols::capacity::intervals::InterfaceRate;
use ringmill_protocols::capacity::time::WallTime;

/// Batches that wait for the disk: some 100 MB at the most.
const BATCHES_MAX: usize = 1024;
/// Batches of a connection whose file is not yet open: it is opened some 10 ms after activation.
const UNOPENED_BATCHES_MAX: usize = 256;
/// Bytes written at once.
const WRITE_BYTES: usize = 256 << 10;
/// How often the writer looks whether a file was opened for what it keeps.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The columns, as OB-UDPST names them.
pub const HEADER: &str = "SeqNo,PayLoad,ECNValue,SrcTxTime,DstRxTime,OWD,IntfMbps,IntfMbpsAlt,\
                          RTTTxTime,RTTRxTime,RTTRespDelay,RTT,StatusLoss";

type Files = Arc<Mutex<HashMap<u8, File>>>;

/// The recorder of one test.
pub struct Recorder {
    files: Files,
    shown: Arc<[AtomicU64; 2]>,
    dropped: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Recorder {
    /// Starts the writer. `ecn` has the ECN bits shown; without a threshold they are no news.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(ecn: bool) -> io::Result<(Self, SyncSender<RecordBatch>)> {
        let (sender, receiver) = sync_channel(BATCHES_MAX);
        let files = Files::default();
        let shown: Arc<[AtomicU64; 2]> = Arc::default();
        let dropped: Arc<AtomicU64> = Arc::default();
        let mut writer = Writer {
            opened: Arc::clone(&files),
            shown: Arc::clone(&shown),
            dropped: Arc::clone(&dropped),
            files: HashMap::new(),
            kept: Vec::new(),
            ecn,
        };
        let thread = std::thread::Builder::new()
            .name("recording".into())
            .spawn(move || writer.run(&receiver))?;
        let recorder = Self {
            files,
            shown,
            dropped,
            thread,
        };
        Ok((recorder, sender))
    }

    /// Opens the file of a connection and writes its header.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(&self, connection: u8, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        writeln!(file, "{HEADER}")?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(connection, file);
        Ok(())
    }

    /// The interface's rate from now on.
    pub fn interface(&self, rate: InterfaceRate) {
        for (shown, mbps) in self.shown.iter().zip([rate.test_mbps, rate.other_mbps]) {
            shown.store(mbps.to_bits(), Ordering::Relaxed);
        }
    }

    /// Waits until all is written, once every sender is gone. Returns how many records had no file.
    ///
    /// # Errors
    /// The first write that failed.
    pub fn finish(self) -> io::Result<u64> {
        match self.thread.join() {
            Ok(written) => written?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(self.dropped.load(Ordering::Relaxed))
    }
}

struct Writer {
    opened: Files,
    shown: Arc<[AtomicU64; 2]>,
    dropped: Arc<AtomicU64>,
    files: HashMap<u8, BufWriter<File>>,
    kept: Vec<RecordBatch>,
    ecn: bool,
}

impl Writer {
    fn run(&mut self, batches: &Receiver<RecordBatch>) -> io::Result<()> {
        let mut text = String::new();
        let mut failed = Ok(());
        loop {
            let batch = match batches.recv_timeout(LOOK_INTERVAL) {
                Ok(batch) => Some(batch),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.take_opened();
            let kept = std::mem::take(&mut self.kept);
            for batch in kept.into_iter().chain(batch) {
                if failed.is_ok() {
                    failed = self.write(batch, &mut text);
                }
            }
        }
        self.take_opened();
        for batch in std::mem::take(&mut self.kept) {
            if failed.is_ok() {
                failed = self.write(batch, &mut text);
            }
        }
        for file in self.files.values_mut() {
            if failed.is_ok() {
                failed = file.flush();
            }
        }
        for batch in &self.kept {
            self.drop_batch(batch);
        }
        failed
    }

    fn take_opened(&mut self) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        for (connection, file) in opened.drain() {
            let file = BufWriter::with_capacity(WRITE_BYTES, file);
            self.files.insert(connection, file);
        }
    }

    fn drop_batch(&self, batch: &RecordBatch) {
        let count = batch.records.len() as u64;
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    fn write(&mut self, batch: RecordBatch, text: &mut String) -> io::Result<()> {
        let Some(file) = self.files.get_mut(&batch.connection) else {
            if self.kept.len() < UNOPENED_BATCHES_MAX {
                self.kept.push(batch);
            } else {
                self.drop_batch(&batch);
            }
            return Ok(());
        };
        let [test, other] = [0, 1].map(|index| {
            let bits: &AtomicU64 = &self.shown[index];
            f64::from_bits(bits.load(Ordering::Relaxed))
        });
        let rate = InterfaceRate {
            test_mbps: test,
            other_mbps: other,
        };
        text.clear();
        for record in &batch.records {
            row(text, record, rate, self.ecn);
        }
        file.write_all(text.as_bytes())
    }
}

/// Appends the line of one load PDU.
pub fn row(text: &mut String, record: &LoadRecord, interface: InterfaceRate, ecn: bool) {
    let time = |time: WallTime| format!("{}.{:06}", time.sec, time.nsec / 1_000);
    let load = &record.load;
    let ecn = if ecn { record.ecn } else { 0 };
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "{},{},{ecn},{},{},{},{:.2},{:.2},",
        load.lpdu_seq_no,
        load.udp_payload,
        time(load.lpdu_time),
        time(record.received),
        record.one_way_ms,
        interface.test_mbps,
        interface.other_mbps,
    );
    let _ = match record.rtt_ms {
        Some(rtt_ms) => writeln!(
            text,
            "{},{},{},{rtt_ms},{}",
            time(load.spdu_time),
            time(record.received),
            load.rtt_resp_delay,
            load.spdu_seq_err
        ),
        None => writeln!(text, ",,,,"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmill_protocols::capacity::pdu::Load;

    #[test]
    fn rows_with_and_without_a_round_trip() {
        let mut record = LoadRecord {
            load: Load {
                lpdu_seq_no: 2,
                udp_payload: 222,
                lpdu_time: WallTime {
                    sec: 1_795_211_038,
                    nsec: 115_157_999,
                },
                spdu_time: WallTime {
                    sec: 1_795_211_038,
                    nsec: 81_068_000,
                },
                rtt_resp_delay: 34,
                ..Load::default()
            },
            ecn: 2,
            received: WallTime {
                sec: 1_795_211_038,
                nsec: 115_228_000,
            },
            one_way_ms: -1,
            rtt_ms: Some(0),
            out_of_order: false,
        };
        let start = "1795211038.115157,1795211038.115228,-1,0.00,0.00";
        for (rtt_ms, ecn, want) in [
            (
                Some(0),
                false,
                format!("2,222,0,{start},1795211038.081068,1795211038.115228,34,0,0\n"),
            ),
            (None, true, format!("2,222,2,{start},,,,,\n")),
        ] {
            record.rtt_ms = rtt_ms;
            let mut text = String::new();
            row(&mut text, &record, InterfaceRate::default(), ecn);
            assert_eq!(text, want);
            assert_eq!(text.matches(',').count(), HEADER.matches(',').count());
        }
    }

    #[test]
    fn what_comes_before_its_file_is_open_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("record.csv");
        let (recorder, sender) = Recorder::start(false).expect("a thread");
        let record = |number| LoadRecord {
            load: Load {
                lpdu_seq_no: number,
                ..Load::default()
            },
            ecn: 0,
            received: WallTime::NONE,
            one_way_ms: 0,
            rtt_ms: None,
            out_of_order: false,
        };
        for (connection, number) in [(0, 1), (1, 1), (0, 2)] {
            let records = vec![record(number)];
            let batch = RecordBatch {
                connection,
                records,
            };
            sender.send(batch).expect("a writer");
        }
        recorder.open(0, &path).expect("a file");
        drop(sender);
        assert_eq!(recorder.finish().expect("written"), 1, "no file for one");
        let text = std::fs::read_to_string(path).expect("the file");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], HEADER);
        let numbers: Vec<_> = lines[1..].iter().map(|line| &line[..2]).collect();
        assert_eq!(numbers, ["1,", "2,"]);
    }
}
