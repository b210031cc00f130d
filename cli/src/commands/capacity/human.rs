//! A capacity test for people: two lines of what is tested, a line for each sub-interval, and what it
//! came to. What goes wrong is said in words, at once.

use std::io::Write as _;

use ringmill_protocols::capacity::client::Happened;
use ringmill_protocols::capacity::event::End;
use ringmill_protocols::capacity::intervals::Interval;
use ringmill_protocols::capacity::parameters::{Algorithm, Direction, Rate, TestParameters};

use super::figures::{ModeFigures, TestFigures, way};
use super::options::late_timers;
use crate::capacity::network::NetworkLosses;
use crate::capacity::{FrontEnd, Said, TestPlan};
use crate::units;

/// A server without the extension, or of another make.
const ROWS_NOT_GRANTED: &str = "the server has not granted rows past the table's end (1152): it \
     goes no higher. A ringmill server grants them with --extended-rows";

/// What helps flows that starve.
const STARVED_ADVICE: &str = "  flows may share a queue of a network card while others have one each: \
     give each transmit queue CPUs of its own (XPS), spread what arrives over queues and CPUs (RSS, \
     RPS), or use fewer connections; see docs/capacity.md\n";

/// Prints to standard output; what goes wrong to standard error.
pub(super) struct Human<'a> {
    plans: &'a [TestPlan],
    header: Vec<bool>,
    columns: bool,
}

impl<'a> Human<'a> {
    pub(super) fn new(plans: &'a [TestPlan]) -> Self {
        Self {
            plans,
            header: vec![false; plans.len()],
            columns: false,
        }
    }

    /// Which test, where there are several.
    fn which(&self, test: usize) -> &'static str {
        match self.plans.len() {
            1 => "",
            _ => way(self.plans[test].settings.parameters.direction),
        }
    }

    fn complain(&self, test: usize, connection: Option<u8>, words: &str) {
        let mut place = String::new();
        if self.plans.len() > 1 {
            place = format!("{}: ", self.which(test));
        }
        if let Some(index) = connection {
            let plan = &self.plans[test];
            let server = &plan.servers[usize::from(index) % plan.servers.len()];
            if plan.settings.connections > 1 {
                place += &format!("connection {index}, ");
            }
            place += &format!("{}: ", server.name);
        }
        eprintln!("ringmill: {place}{words}");
    }

    fn interval(&mut self, test: usize, interval: &Interval) {
        if !std::mem::replace(&mut self.columns, true) {
            println!(
                "{:>5} {:>7} {:>11} {:>10} {:>8} {:>8} {:>8}  {:>14}  {:>14}",
                "",
                "s",
                "Mbit/s",
                "delivered",
                "lost",
                "late",
                "twice",
                "one-way +ms",
                "round trip +ms"
            );
        }
        let delivery = &interval.delivery;
        let spread = |spread: ringmill_protocols::capacity::intervals::Spread| {
            format!("{}/{}/{}", spread.min_ms, spread.avg_ms, spread.max_ms)
        };
        let mut line = format!(
            "{:>5} {:>7.1} {:>11.2} {:>9.2}% {:>8} {:>8} {:>8}  {:>14}  {:>14}",
            self.which(test),
            f64::from(interval.accumulated_ms) / 1000.0,
            interval.rates.ip,
            delivery.delivered_percent(),
            delivery.lost,
            delivery.reordered,
            delivery.replicated,
            spread(interval.delay_var.spread()),
            spread(interval.rtt_var.spread()),
        );
        if self.plans[test].settings.parameters.ecn_ce_thresh > 0 {
            line += &format!("  {} marked", delivery.ce);
        }
        if let Some(rate) = interval.interface {
            line += &format!("  interface {:.2}", rate.test_mbps);
        }
        println!("{line}");
        let _ = std::io::stdout().flush();
    }
}

impl FrontEnd for Human<'_> {
    fn said(&mut self, said: &Said<'_>) {
        match said {
            Said::Note(words) => eprintln!("ringmill: {words}"),
            Said::Interval { test, interval, .. } => self.interval(*test, interval),
            // Of a single connection it is said why it failed.
            Said::TooFew { test, active } if self.plans[*test].settings.connections > 1 => {
                let wanted = self.plans[*test].connections_min;
                let words =
                    format!("connections left: {active}, wanted: {wanted}; so the test ends");
                self.complain(*test, None, &words);
            }
            Said::TooFew { .. } => {}
            Said::HostLoses { test, losses } => {
                for words in losses.words() {
                    self.complain(*test, None, &words);
                }
            }
            Said::Event { test, event } => {
                let connection = Some(event.connection);
                match &event.happened {
                    Happened::Activated(activated) if !self.header[*test] => {
                        self.header[*test] = true;
                        let plan = &self.plans[*test];
                        println!("{}", header(plan, activated));
                        println!("{}", method(plan, &activated.parameters));
                        let granted = activated.parameters.extended_rows;
                        if plan.settings.parameters.extended_rows && !granted {
                            self.complain(*test, connection, ROWS_NOT_GRANTED);
                        }
                    }
                    Happened::FellBack { server } => self.complain(
                        *test,
                        connection,
                        &format!("the server speaks version {server} only: going on with 11"),
                    ),
                    Happened::Warning(warning) => {
                        self.complain(*test, connection, &warning.to_string());
                    }
                    Happened::Failed(failure) => {
                        self.complain(*test, connection, &failure.to_string());
                    }
                    // What the user wanted is no surprise.
                    Happened::Ended(ended)
                        if !ended.end.is_complete() && ended.end != End::Stopped =>
                    {
                        self.complain(*test, connection, &ended.end.to_string());
                    }
                    Happened::GsoRefused => self.complain(*test, connection, super::GSO_REFUSED),
                    Happened::BusyPacing { late } => {
                        self.complain(*test, None, &late_timers(*late));
                    }
                    Happened::SocketError { errno } => self.complain(
                        *test,
                        connection,
                        &format!("the socket says: {}", ringmill_engine::error_name(*errno)),
                    ),
                    _ => {}
                }
            }
        }
    }
}

fn header(plan: &TestPlan, activated: &ringmill_protocols::capacity::client::Activated) -> String {
    let parameters = &activated.parameters;
    let (word, preposition) = match parameters.direction {
        Direction::Upstream => ("Upstream", "to"),
        Direction::Downstream => ("Downstream", "from"),
    };
    let names: Vec<_> = plan.servers.iter().map(|server| &*server.name).collect();
    let connections = match plan.settings.connections {
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    };
    let signed = match &plan.settings.key {
        Some((id, _)) => format!(", signed with key {id}"),
        None => String::new(),
    };
    format!(
        "{word} {preposition} {} (test port {}), {} s, {connections}, protocol {}{signed}, ID {}",
        names.join(", "),
        activated.peer.port(),
        parameters.test_time_s,
        activated.wire_version,
        plan.settings.ident,
    )
}

fn method(plan: &TestPlan, parameters: &TestParameters) -> String {
    let algorithm = match parameters.algorithm {
        Algorithm::B => "B",
        Algorithm::C => "C",
    };
    let judged = if parameters.use_ow_del_var {
        "one-way"
    } else {
        "round-trip"
    };
    let mut words = match parameters.rate {
        Rate::Fixed(0) => "Monitoring by row 0".to_owned(),
        Rate::Fixed(row) => format!("Fixed rate of row {row}"),
        Rate::Search { start } => {
            let from = match start {
                0 => String::new(),
                row => format!(" from row {row}"),
            };
            format!(
                "Search{from} by algorithm {algorithm}: {judged} variation {} to {} ms, {} errors in \
                 {} ms",
                parameters.low_thresh_ms,
                parameters.upper_thresh_ms,
                parameters.seq_err_thresh,
                parameters.trial_int_ms
            )
        }
    };
    let sizes = plan.settings.sizes;
    words += match (sizes.jumbo, sizes.traditional) {
        (true, false) => ", jumbo datagrams",
        (true, true) => ", jumbo and 1500-byte packets",
        (false, false) => ", 1250-byte packets",
        (false, true) => ", 1500-byte packets",
    };
    if parameters.random_payload {
        words += ", random payload";
    }
    if parameters.dscp_ecn != 0 {
        words += &format!(", TOS {:#04x}", parameters.dscp_ecn);
    }
    if parameters.ecn_ce_thresh > 0 {
        words += &format!(", CE threshold {}", parameters.ecn_ce_thresh);
    }
    words
}

/// What a test came to.
pub(super) fn report(figures: &TestFigures, several: bool) -> String {
    let mut text = String::new();
    let title = match (several, figures.direction) {
        (false, _) => "",
        (true, "up") => "Upstream ",
        (true, _) => "Downstream ",
    };
    for mode in &figures.modes {
        let of = match figures.modes.len() {
            1 => String::new(),
            _ => format!(" [{}-{}]", mode.first, mode.last),
        };
        text += &format!("\n{}", mode_report(mode, &format!("{title}capacity{of}")));
    }
    if figures.modes.is_empty() {
        text += "\nNothing was measured.\n";
    }
    if figures.sender_limited {
        text += &format!(
            "  sender limited: {} sent {} datagrams less than the rate wanted, so the path may \
             carry more\n",
            match figures.direction {
                "up" => "this host",
                _ => "the server",
            },
            units::format_count(figures.datagrams_not_sent)
        );
    }
    for flow in &figures.starved {
        text += &format!(
            "  connection {} starved: {:.2} Mbit/s, where half of all connections had {:.2} or more, \
             in {} sub-intervals\n",
            flow.index, flow.ip_mbps, flow.median_ip_mbps, flow.sub_intervals
        );
    }
    if !figures.starved.is_empty() {
        text += STARVED_ADVICE;
    }
    if figures.records_dropped > 0 {
        text += &format!(
            "  {} records were dropped: the disk is too slow\n",
            units::format_count(figures.records_dropped)
        );
    }
    for words in figures.network.iter().flat_map(NetworkLosses::words) {
        text += &format!("  {words}\n");
    }
    if figures.verdict != "complete" {
        text += &format!("  {}\n", figures.verdict);
    }
    text
}

fn mode_report(mode: &ModeFigures, title: &str) -> String {
    let (most, mean) = (&mode.maximum.rates, &mode.mean);
    let mut title = title.to_owned();
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let interface =
        |rate: Option<f64>| rate.map_or_else(String::new, |mbps| format!(", interface {mbps:.2}"));
    let delivery = &mode.delivery;
    let (one_way, round_trip) = (&mode.one_way_variation, &mode.round_trip_variation);
    format!(
        "{title} {:.2} Mbit/s at the IP layer, reached at {:.1} s ({:.2} Ethernet, {:.2} with FCS, \
         {:.2} with VLAN{})\n\
         \x20 mean {:.2} Mbit/s over {} sub-intervals{}\n\
         \x20 delivered {:.2} %: {} datagrams, {} lost, {} late, {} twice{}\n\
         \x20 one-way variation {}/{}/{} ms, least delay {} ms (clocks may differ)\n\
         \x20 round trip from {} ms, variation {}/{}/{} ms\n",
        most.ip_mbps,
        mode.maximum.end_s,
        most.ethernet_mbps,
        most.ethernet_fcs_mbps,
        most.ethernet_fcs_vlan_mbps,
        interface(most.interface_mbps),
        mean.ip_mbps,
        mode.last - mode.first + 1,
        interface(mean.interface_mbps),
        delivery.delivered_percent,
        units::format_count(delivery.datagrams),
        delivery.lost,
        delivery.reordered,
        delivery.duplicated,
        match delivery.congestion_marked {
            0 => String::new(),
            marked => format!(", {marked} marked for congestion"),
        },
        one_way.min_ms,
        one_way.avg_ms,
        one_way.max_ms,
        mode.one_way_min_ms,
        mode.round_trip_min_ms,
        round_trip.min_ms,
        round_trip.avg_ms,
        round_trip.max_ms,
    )
}
