//! Runs OB-UDPST and ringmill against each other in many combinations of options, and compares what
//! the two ends say: `udpst-matrix --peer PATH [--ringmill PATH] [--role client|server|both] [--old]
//! [--cells N] [--only TEXT]`.
//!
//! The cells cover every pair of values of any two options, and more up to `--cells`. A cell passes when
//! the client exits with 0, each connection of the server came to its end time, and the mean rates of
//! the two ends differ by 2 % at most. It prints a Markdown table and exits with 1 when a cell fails.

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Options and their values, in the words of the table.
const OPTIONS: [(&str, &[&str]); 7] = [
    ("direction", &["up", "down"]),
    ("family", &["IPv4", "IPv6"]),
    ("authentication", &["none", "key", "key file"]),
    ("sizes", &["default", "-j", "-T"]),
    ("rate", &["B", "C", "fixed", "row 0"]),
    ("connections", &["1", "3"]),
    ("ECN", &["none", "threshold"]),
];
const CELLS: usize = 40;
/// Cells tried for each that is taken.
const TRIES: usize = 200;
/// Between what the two ends say.
const DIFFERENCE_PERCENT_MAX: f64 = 2.0;
const KEY: &str = "a key of the test";
const FIXED_ROW: &str = "200";
const FIXED_SECONDS: u64 = 5;
const SEARCH_SECONDS: u64 = 10;
/// Beyond the test's own time.
const PATIENCE: Duration = Duration::from_secs(15);

type Cell = [usize; OPTIONS.len()];

struct Flags {
    peer: PathBuf,
    ringmill: PathBuf,
    roles: Vec<Role>,
    /// The peer speaks version 11 only.
    old: bool,
    cells: usize,
    only: Option<String>,
}

/// Of ringmill.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Client,
    Server,
}

fn main() -> ExitCode {
    let flags = match flags() {
        Ok(flags) => flags,
        Err(words) => {
            eprintln!("udpst-matrix: {words}");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    for role in &flags.roles {
        let title = match role {
            Role::Client => "ringmill is the client",
            Role::Server => "ringmill is the server",
        };
        println!("\n## {title}\n");
        let heads: Vec<_> = OPTIONS.iter().map(|(name, _)| *name).collect();
        println!(
            "| {} | client Mbit/s | server Mbit/s | verdict |",
            heads.join(" | ")
        );
        println!("|{}", "---|".repeat(OPTIONS.len() + 3));
        for cell in cells(&flags) {
            let values = words(&cell);
            if let Some(only) = &flags.only
                && !values.join(" ").contains(only.as_str())
            {
                continue;
            }
            let outcome = run(&flags, *role, &cell);
            let (client, server) = (outcome.client, outcome.server);
            let verdict = outcome.verdict();
            failed += u32::from(verdict != "pass");
            println!(
                "| {} | {client:.2} | {server:.2} | {verdict} |",
                values.join(" | ")
            );
        }
    }
    println!("\n{failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn flags() -> Result<Flags, String> {
    let mut peer = None;
    let mut ringmill = PathBuf::from("target/release/ringmill");
    let mut roles = vec![Role::Client, Role::Server];
    let (mut old, mut cells, mut only) = (false, CELLS, None);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or(format!("{flag}: value missing"));
        match flag.as_str() {
            "--peer" => peer = Some(PathBuf::from(value()?)),
            "--ringmill" => ringmill = PathBuf::from(value()?),
            "--role" => {
                roles = match value()?.as_str() {
                    "client" => vec![Role::Client],
                    "server" => vec![Role::Server],
                    "both" => roles,
                    other => return Err(format!("--role {other}: client, server or both")),
                }
            }
            "--old" => old = true,
            "--cells" => cells = value()?.parse().map_err(|_| "--cells: a number")?,
            "--only" => only = Some(value()?),
            other => return Err(format!("unknown flag {other}")),
        }
    }
    Ok(Flags {
        peer: peer.ok_or("--peer PATH: the udpst program to compare with")?,
        ringmill,
        roles,
        old,
        cells,
        only,
    })
}

/// Numbers that look random and are the same in every run.
fn next(state: &mut u64) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

fn pairs(cell: &Cell) -> impl Iterator<Item = (usize, usize, usize, usize)> + '_ {
    (0..cell.len()).flat_map(move |a| (a + 1..cell.len()).map(move |b| (a, cell[a], b, cell[b])))
}

/// Each cell covers as many new pairs as were found in some tries.
fn cells(flags: &Flags) -> Vec<Cell> {
    let mut state = 1;
    let mut covered = BTreeSet::new();
    let mut cells: Vec<Cell> = Vec::new();
    let ecn = OPTIONS.len() - 1;
    while cells.len() < flags.cells {
        let tries = (0..TRIES).map(|_| {
            let mut cell = [0; OPTIONS.len()];
            for (place, (_, values)) in cell.iter_mut().zip(OPTIONS) {
                *place = next(&mut state) % values.len();
            }
            if flags.old {
                // Version 11 has no ECN.
                cell[ecn] = 0;
            }
            cell
        });
        let best = tries
            .max_by_key(|cell| pairs(cell).filter(|pair| !covered.contains(pair)).count())
            .expect("there are tries");
        covered.extend(pairs(&best));
        if !cells.contains(&best) {
            cells.push(best);
        }
    }
    cells
}

fn words(cell: &Cell) -> Vec<&'static str> {
    cell.iter()
        .zip(OPTIONS)
        .map(|(value, (_, values))| values[*value])
        .collect()
}

struct Outcome {
    /// Mean rate over the sub-intervals, Mbit/s.
    client: f64,
    server: f64,
    fault: Option<String>,
}

impl Outcome {
    fn verdict(&self) -> String {
        if let Some(fault) = &self.fault {
            return fault.clone();
        }
        let larger = self.client.max(self.server);
        let percent = (self.client - self.server).abs() / larger * 100.0;
        if larger == 0.0 {
            "no rate".into()
        } else if percent > DIFFERENCE_PERCENT_MAX {
            format!("differ by {percent:.1} %")
        } else {
            "pass".into()
        }
    }
}

fn program(flags: &Flags, ours: bool) -> Command {
    let mut command = if ours {
        let mut command = Command::new(&flags.ringmill);
        command.arg("udpst");
        command
    } else {
        Command::new(&flags.peer)
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(flags: &Flags, role: Role, cell: &Cell) -> Outcome {
    let value = words(cell);
    let [
        direction,
        family,
        authentication,
        sizes,
        rate,
        connections,
        ecn,
    ] = value[..]
    else {
        unreachable!("one word for each option");
    };
    let folder = std::env::temp_dir().join(format!("udpst-matrix-{}", std::process::id()));
    let key_file = folder.join("keys");
    if let Err(error) = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&key_file, "7,the seventh\n9,the ninth\n"))
    {
        return fault(format!("cannot write {}: {error}", key_file.display()));
    }
    let port = free_port().to_string();
    let address = if family == "IPv6" { "::1" } else { "127.0.0.1" };

    let mut server = program(flags, role == Role::Server);
    server.args(["-v", "-p", &port, address]);
    let mut client = program(flags, role == Role::Client);
    client.args([
        "-v",
        "-p",
        &port,
        address,
        if direction == "up" { "-u" } else { "-d" },
    ]);
    let single = connections == "1";
    if single {
        // Its exit status is that of the test.
        server.arg("-1");
    } else {
        client.args(["-C", connections]);
    }
    match authentication {
        "key" => {
            server.args(["-a", KEY]);
            client.args(["-a", KEY]);
        }
        "key file" => {
            server.arg("-K").arg(&key_file);
            client.arg("-K").arg(&key_file).args(["-y", "9"]);
        }
        _ => {}
    }
    if sizes != "default" {
        server.arg(sizes);
        client.arg(sizes);
    }
    let seconds = match rate {
        "fixed" | "row 0" => FIXED_SECONDS,
        _ => SEARCH_SECONDS,
    };
    match rate {
        "fixed" => client.args(["-I", FIXED_ROW]),
        "row 0" => client.args(["-I", "0"]),
        algorithm => client.args(["-A", algorithm]),
    };
    client.args(["-t", &seconds.to_string()]);
    if ecn != "none" {
        client.args(["-m", "2", "-Z", "10"]);
    }

    let mut serving = match Serving::start(server) {
        Ok(serving) => serving,
        Err(words) => return fault(words),
    };
    let client = match client.spawn() {
        Ok(child) => finish(child, Duration::from_secs(seconds) + PATIENCE),
        Err(error) => return fault(format!("the client cannot be started: {error}")),
    };
    let server = serving.end(single);
    let _ = std::fs::remove_dir_all(&folder);
    let wanted: usize = connections.parse().expect("a number");
    let fault = match (&client, &server) {
        (Err(words), _) => Some(format!("client: {words}")),
        (_, Err(words)) => Some(format!("server: {words}")),
        (Ok((code, text)), _) if *code != 0 => Some(format!(
            "client: exit {code}: {}",
            text.lines().last().unwrap_or("")
        )),
        (_, Ok((code, text))) if single && *code != 0 => Some(format!(
            "server: exit {code}: {}",
            text.lines().last().unwrap_or("")
        )),
        (_, Ok((_, text))) if text.matches("End time reached").count() < wanted => {
            Some("server: not every connection came to its end time".into())
        }
        _ => None,
    };
    let text = |side: Result<(i32, String), String>| side.map_or(String::new(), |(_, text)| text);
    Outcome {
        client: mean_mbps(&text(client)),
        server: mean_mbps(&text(server)),
        fault,
    }
}

fn fault(words: String) -> Outcome {
    Outcome {
        client: 0.0,
        server: 0.0,
        fault: Some(words),
    }
}

/// The sum over connections of the rates of each connection's sub-intervals, averaged. Aggregates, which
/// a client of several connections prints too, are those of connection 0.
fn mean_mbps(text: &str) -> f64 {
    let mut sum = 0.0;
    let mut highest = 0_u32;
    for line in text.lines().filter(|line| line.contains("Sub-Interval[")) {
        if line.starts_with("[0]") {
            continue;
        }
        let number = line.split("Sub-Interval[").nth(1);
        let number = number.and_then(|rest| rest.split(']').next()?.parse::<u32>().ok());
        let rate = line.split("Mbps(L3/IP): ").nth(1);
        let rate = rate.and_then(|rest| rest.split([' ', ',']).next()?.parse::<f64>().ok());
        if let (Some(number), Some(rate)) = (number, rate) {
            sum += rate;
            highest = highest.max(number);
        }
    }
    if highest == 0 {
        0.0
    } else {
        sum / f64::from(highest)
    }
}

/// A server process, ended with this.
struct Serving {
    child: Child,
}

impl Serving {
    fn start(mut command: Command) -> Result<Self, String> {
        let child = command.spawn();
        let mut child = child.map_err(|error| format!("the server cannot be started: {error}"))?;
        // Neither of the two says when it is ready before its pipe is full.
        std::thread::sleep(Duration::from_millis(500));
        match child.try_wait() {
            Ok(None) => Ok(Self { child }),
            _ => {
                let (code, text) = finish(child, PATIENCE)?;
                Err(format!("ended at once with {code}: {}", text.trim()))
            }
        }
    }

    /// Exit code and what it printed; by itself where it ends after one test.
    fn end(&mut self, by_itself: bool) -> Result<(i32, String), String> {
        let child = &mut self.child;
        let until = Instant::now() + Duration::from_secs(5);
        let mut code = None;
        while by_itself && code.is_none() && Instant::now() < until {
            code = child
                .try_wait()
                .ok()
                .flatten()
                .map(|status| status.code().unwrap_or(-1));
            std::thread::sleep(Duration::from_millis(20));
        }
        if code.is_none() {
            // Not waited for yet, so the id is still its own.
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGINT);
        }
        let text = output(child);
        if by_itself && code.is_none() {
            return Err("did not end after the test".into());
        }
        Ok((code.unwrap_or(0), text))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn output(child: &mut Child) -> String {
    let mut text = Vec::new();
    if let Some(pipe) = &mut child.stdout {
        let _ = std::io::Read::read_to_end(pipe, &mut text);
    }
    if let Some(pipe) = &mut child.stderr {
        let _ = std::io::Read::read_to_end(pipe, &mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn finish(mut child: Child, patience: Duration) -> Result<(i32, String), String> {
    let until = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok((status.code().unwrap_or(-1), output(&mut child))),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("did not end in time".into());
            }
        }
    }
}

/// A port that is free for TCP and UDP now.
fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
