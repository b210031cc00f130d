//! What a DNS run reports beside what every run does: what was asked for, what left and how late,
//! what came back and of which kind.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Latency;

/// The part of a [`Report`](super::Report) that is about queries.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Dns {
    /// Queries that the rate or the plan asked for in the measured part.
    pub offered: u64,
    /// `offered` / `duration_s`.
    pub offered_per_s: f64,
    /// Queries sent / `duration_s`.
    pub sent_per_s: f64,
    /// Queries that were due and did not leave.
    pub unsent: u64,
    /// The same by cause.
    pub unsent_causes: BTreeMap<String, u64>,
    /// How long after its instant each query left; `None` when none did.
    pub lateness: Option<Latency>,
    /// Queries without an answer within the time limit, or whose connection closed.
    pub lost: u64,
    /// `lost` / queries sent, 0 to 1; `None` when nothing was sent.
    pub loss_ratio: Option<f64>,
    /// Answers to queries that had been given up as lost.
    pub late: u64,
    /// Answers beyond the first to one query.
    pub duplicated: u64,
    /// Answers with the id of no query.
    pub unknown: u64,
    /// What is no answer to its query: no header, or another question.
    pub malformed: u64,
    /// Answers by response code, for example `NOERROR`.
    pub response_codes: BTreeMap<String, u64>,
    /// Queries that came back as they were, from an echo server; they count as answers.
    pub echoed: u64,
    /// Answers that were cut for the transport.
    pub truncated: u64,
    /// How long the opening of the connections took, in seconds.
    pub opening_s: f64,
    /// Connections that it opened; those opened again later are in `connections.opened` only.
    pub opened: u64,
    /// `opened` / `opening_s`.
    pub opened_per_s: f64,
    /// Lines of queries and answers written; `None` without `--record`.
    pub recorded: Option<u64>,
    /// Lines that were not written because the writer was behind; `None` without `--record`.
    pub records_dropped: Option<u64>,
}
