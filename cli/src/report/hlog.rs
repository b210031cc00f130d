//! HdrHistogram interval logs (`.hlog`, V2 compressed), written while a run lasts and read back.
//!
//! The log is the full distribution, interval by interval, for HdrHistogram's tools in any
//! language. Values are nanoseconds. Nothing here keeps an interval: what was written is gone.

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, IntervalLogWriterError, LogEntry,
    LogIteratorError, Tag,
};
use hdrhistogram::serialization::{
    DeserializeError, Deserializer, Serializer as _, V2DeflateSerializeError, V2DeflateSerializer,
};

/// Which latency a histogram holds; its tag in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LatencyKind {
    /// From the intended send.
    Response,
    /// From the actual send.
    Service,
}

impl LatencyKind {
    /// All of them.
    pub const ALL: [Self; 2] = [LatencyKind::Response, LatencyKind::Service];

    /// The tag in the log.
    pub fn tag(self) -> &'static str {
        match self {
            LatencyKind::Response => "response",
            LatencyKind::Service => "service",
        }
    }
}

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HlogError {
    /// The file refused.
    #[error("cannot write the histogram log: {0}; check the space left and the permissions")]
    Write(#[from] io::Error),
    /// The histogram could not be encoded.
    #[error("cannot encode a histogram for the log: {0}")]
    Encode(V2DeflateSerializeError),
    /// A line is not of the format.
    #[error("not an HdrHistogram interval log: byte {offset} starts a line of another form")]
    Format {
        /// Where the line starts.
        offset: usize,
    },
    /// A line's histogram is not base64.
    #[error("interval {index} of the histogram log is damaged: {source}")]
    Base64 {
        /// Which one, from 0.
        index: usize,
        /// What is wrong.
        source: base64::DecodeError,
    },
    /// A line's histogram cannot be decoded.
    #[error("interval {index} of the histogram log holds no V2 histogram: {source}")]
    Decode {
        /// Which one, from 0.
        index: usize,
        /// What is wrong.
        source: DeserializeError,
    },
}

impl From<IntervalLogWriterError<V2DeflateSerializeError>> for HlogError {
    fn from(error: IntervalLogWriterError<V2DeflateSerializeError>) -> Self {
        match error {
            IntervalLogWriterError::IoError(error) => HlogError::Write(error),
            IntervalLogWriterError::SerializeError(error) => HlogError::Encode(error),
        }
    }
}

/// One histogram as text: the V2 compressed format in base64, as in a line of a log.
///
/// # Errors
/// [`HlogError::Encode`]; an empty histogram has no text.
pub fn encode(histogram: &Histogram<u64>) -> Result<Option<String>, HlogError> {
    if histogram.is_empty() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(HlogError::Encode)?;
    Ok(Some(BASE64.encode(bytes)))
}

/// Reads what [`encode`] writes.
///
/// # Errors
/// When it is not in the format.
pub fn decode(text: &str) -> Result<Histogram<u64>, HlogError> {
    let bytes = BASE64
        .decode(text)
        .map_err(|source| HlogError::Base64 { index: 0, source })?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|source| HlogError::Decode { index: 0, source })
}

/// Writes one log. Give it a buffered writer and call [`LogWriter::finish`] at the end.
pub struct LogWriter<W: Write> {
    out: W,
    serializer: V2DeflateSerializer,
}

impl<W: Write> LogWriter<W> {
    /// Writes the head. `started` is the wall clock at the start of the measured part; every
    /// comment becomes a line of its own.
    ///
    /// # Errors
    /// [`HlogError::Write`].
    pub fn begin(mut out: W, started: SystemTime, comments: &[&str]) -> Result<Self, HlogError> {
        let mut serializer = V2DeflateSerializer::new();
        let mut head = IntervalLogWriterBuilder::new();
        for comment in comments {
            head.add_comment(comment);
        }
        head.add_comment("[Values and Interval_Max in nanoseconds]")
            .add_comment("[Histogram log format version 1.3]")
            .with_start_time(started)
            .with_base_time(started)
            .begin_log_with(&mut out, &mut serializer)?;
        // The line that HdrHistogram's own writer puts above the data.
        out.write_all(
            b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
        )?;
        Ok(LogWriter { out, serializer })
    }

    /// Writes one interval; `start` counts from the start of the measured part.
    ///
    /// # Errors
    /// [`HlogError::Write`] or [`HlogError::Encode`].
    pub fn interval(
        &mut self,
        kind: LatencyKind,
        start: Duration,
        length: Duration,
        histogram: &Histogram<u64>,
    ) -> Result<(), HlogError> {
        // The crate's writer borrows its output for good; one with an empty head per line costs
        // nothing and leaves the output ours.
        IntervalLogWriterBuilder::new()
            .begin_log_with(&mut self.out, &mut self.serializer)?
            .write_histogram(histogram, start, length, Tag::new(kind.tag()))?;
        Ok(())
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    /// [`HlogError::Write`].
    pub fn finish(mut self) -> Result<W, HlogError> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// One line of a log.
#[derive(Clone)]
pub struct LogInterval {
    /// Its tag; `None` without one.
    pub tag: Option<String>,
    /// Since the base time.
    pub start: Duration,
    /// Length.
    pub length: Duration,
    /// Values, nanoseconds in our logs.
    pub histogram: Histogram<u64>,
}

impl fmt::Debug for LogInterval {
    /// Without the thousands of buckets of the histogram.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogInterval")
            .field("tag", &self.tag)
            .field("start", &self.start)
            .field("length", &self.length)
            .field("count", &self.histogram.len())
            .field("max", &self.histogram.max())
            .finish_non_exhaustive()
    }
}

/// A log as read.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// Wall clock at the start of the run, since 1970.
    pub start_time: Option<Duration>,
    /// What the intervals count from, since 1970.
    pub base_time: Option<Duration>,
    /// In the order of the file.
    pub intervals: Vec<LogInterval>,
}

impl Log {
    /// All intervals of one tag added up.
    pub fn total(&self, tag: &str) -> Option<Histogram<u64>> {
        let mut total: Option<Histogram<u64>> = None;
        for interval in self
            .intervals
            .iter()
            .filter(|it| it.tag.as_deref() == Some(tag))
        {
            match &mut total {
                None => {
                    let mut first = interval.histogram.clone();
                    first.auto(true);
                    total = Some(first);
                }
                // Adding to a resizable histogram has no value that it could refuse.
                Some(total) => total.add(&interval.histogram).ok()?,
            }
        }
        total
    }
}

/// Reads a log of any writer.
///
/// # Errors
/// [`HlogError`] says which line is not as it should be.
pub fn read(bytes: &[u8]) -> Result<Log, HlogError> {
    let mut log = Log::default();
    let (start_time, base_time) = scan(bytes, |line, histogram| {
        log.intervals.push(LogInterval {
            tag: line.tag.map(str::to_owned),
            start: line.start,
            length: line.length,
            histogram,
        });
    })?;
    (log.start_time, log.base_time) = (start_time, base_time);
    Ok(log)
}

/// A line of a log as it stands there.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Its tag; `None` without one.
    pub tag: Option<&'a str>,
    /// Since the base time.
    pub start: Duration,
    /// Length.
    pub length: Duration,
    /// The histogram, for [`decode`].
    pub encoded: &'a str,
}

/// Reads a log line by line, so that a day of histograms need not be in memory at once; gives the
/// start time and the base time.
///
/// # Errors
/// [`HlogError`] says which line is not as it should be.
pub fn scan(
    bytes: &[u8],
    mut each: impl FnMut(&Line<'_>, Histogram<u64>),
) -> Result<(Option<Duration>, Option<Duration>), HlogError> {
    let (mut start_time, mut base_time) = (None, None);
    let mut deserializer = Deserializer::new();
    let mut index = 0;
    for entry in IntervalLogIterator::new(bytes) {
        match entry {
            Ok(LogEntry::StartTime(time)) => start_time = Some(time),
            Ok(LogEntry::BaseTime(time)) => base_time = Some(time),
            Ok(LogEntry::Interval(line)) => {
                let encoded = BASE64
                    .decode(line.encoded_histogram())
                    .map_err(|source| HlogError::Base64 { index, source })?;
                let histogram = deserializer
                    .deserialize(&mut encoded.as_slice())
                    .map_err(|source| HlogError::Decode { index, source })?;
                let tag = line.tag();
                let line = Line {
                    tag: tag.as_ref().map(|tag| tag.as_str()),
                    start: line.start_timestamp(),
                    length: line.duration(),
                    encoded: line.encoded_histogram(),
                };
                each(&line, histogram);
                index += 1;
            }
            Err(LogIteratorError::ParseError { offset }) => {
                return Err(HlogError::Format { offset });
            }
        }
    }
    Ok((start_time, base_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[u64]) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap();
        for value in values {
            histogram.record(*value).unwrap();
        }
        histogram
    }

    fn written() -> String {
        let started = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let mut log =
            LogWriter::begin(Vec::new(), started, &["ringmill 0.1.0", "two\nlines"]).unwrap();
        let second = Duration::from_secs(1);
        for (index, values) in [&[1_000_u64, 2_000][..], &[3_000, 9_000_000], &[]]
            .iter()
            .enumerate()
        {
            let start = second * u32::try_from(index).unwrap();
            for (kind, factor) in [(LatencyKind::Response, 2), (LatencyKind::Service, 1)] {
                let values: Vec<_> = values.iter().map(|value| value * factor).collect();
                log.interval(kind, start, second, &histogram(&values))
                    .unwrap();
            }
        }
        String::from_utf8(log.finish().unwrap()).unwrap()
    }

    #[test]
    fn a_log_looks_as_the_format_says() {
        let text = written();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..8],
            [
                "#ringmill 0.1.0",
                "#two",
                "#lines",
                "#[Values and Interval_Max in nanoseconds]",
                "#[Histogram log format version 1.3]",
                "#[StartTime: 1700000000.250 (seconds since epoch)]",
                "#[BaseTime: 1700000000.250 (seconds since epoch)]",
                "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"",
            ]
        );
        assert!(
            lines[8].starts_with("Tag=response,0.000,1.000,4"),
            "{}",
            lines[8]
        );
        // Base64 of the compressed V2 cookie 0x1c849314, as in every V2 log.
        assert!(lines[9].contains(",HISTFAA"), "{}", lines[9]);
        assert!(
            lines[11].starts_with("Tag=service,1.000,1.000,9"),
            "{}",
            lines[11]
        );
        assert_eq!(lines.len(), 14);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let log = read(written().as_bytes()).unwrap();
        assert_eq!(
            log.start_time,
            Some(Duration::from_millis(1_700_000_000_250))
        );
        assert_eq!(log.base_time, log.start_time);
        let tags: Vec<_> = log
            .intervals
            .iter()
            .map(|it| it.tag.as_deref().unwrap())
            .collect();
        assert_eq!(tags, ["response", "service"].repeat(3));
        let second = &log.intervals[3];
        assert_eq!(
            (second.start, second.length),
            (Duration::from_secs(1), Duration::from_secs(1))
        );
        assert_eq!(second.histogram, histogram(&[3_000, 9_000_000]));
        assert_eq!(
            log.total("service").unwrap(),
            histogram(&[1_000, 2_000, 3_000, 9_000_000])
        );
        assert_eq!(log.total("response").unwrap().len(), 4);
        assert!(log.total("other").is_none());
        let text = encode(&second.histogram).unwrap().unwrap();
        assert_eq!(decode(&text).unwrap(), second.histogram);
        assert_eq!(encode(&histogram(&[])).unwrap(), None);
        assert!(decode("*").is_err() && decode("AAAA").is_err());
    }

    #[test]
    fn damage_is_named() {
        let good = written();
        // Another cookie: neither V2 nor V2 compressed.
        let other_cookie = good.replacen("HISTF", "HISSF", 1);
        for (text, words) in [
            ("hello\n".to_owned(), "byte 0 starts a line"),
            (
                "0.1,1.0,2.0,*not base64*\n".to_owned(),
                "interval 0 of the histogram log is damaged",
            ),
            ("0.1,1.0,2.0,AAAA\n".to_owned(), "holds no V2 histogram"),
            (
                other_cookie,
                "interval 0 of the histogram log holds no V2 histogram",
            ),
        ] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?} gave {error:?}");
        }
        assert!(read(b"").unwrap().intervals.is_empty());
    }

    #[test]
    fn a_full_disk_is_an_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = LogWriter::begin(Full, SystemTime::UNIX_EPOCH, &[])
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("check the space left"),
            "{error}"
        );
    }
}
