//! What the machine is, and what it does besides the benchmark: read from
//! /proc only, never changed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// CPU model, cores, kernel and memory, for the head of every result.
pub(crate) fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        cpuinfo
            .lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split(':').nth(1))
            .map_or("unknown", str::trim)
    };
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let virtual_machine = cpuinfo
        .lines()
        .any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory_kb = keyed_kb("/proc/meminfo", "MemTotal").unwrap_or(0);
    json!({
        "cpu_model": field("model name"),
        "cpu_mhz": field("cpu MHz"),
        "cpus": cores,
        "virtual_machine": virtual_machine,
        "kernel": kernel.trim(),
        "memory_gib": (memory_kb as f64 / (1 << 20) as f64 * 10.0).round() / 10.0,
    })
}

/// A figure in kB from a file of `Name:   123 kB` lines; none: not there.
pub(crate) fn keyed_kb(path: impl AsRef<Path>, name: &str) -> Option<u64> {
    fs::read_to_string(path)
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// CPU time of one process so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuTime {
    /// User and system seconds: nanoseconds of the scheduler where it tells
    /// them, else the sum of the two below.
    pub(crate) total_s: f64,
    /// User seconds, in the kernel's clock ticks.
    pub(crate) user_s: f64,
    /// System seconds, in the kernel's clock ticks.
    pub(crate) system_s: f64,
}

/// One line of /proc/PID/stat, of which we need five fields.
struct Stat {
    parent: u32,
    /// utime, stime, cutime, cstime in ticks.
    ticks: [u64; 4],
    cpu: usize,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything, brackets too.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // proc(5) counts from 1 and the state is field 3: index = field − 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: field(4)? as u32,
        ticks: [field(14)?, field(15)?, field(16)?, field(17)?],
        cpu: field(39)? as usize,
    })
}

/// The processes that this one has started.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf takes no pointer.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// CPU time of a process, all its threads.
///
/// # Errors
/// The process is gone.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<CpuTime> {
    let stat = stat(pid).with_context(|| format!("process {pid} is gone"))?;
    let second = ticks_per_second();
    let [user_s, system_s] = [0, 1].map(|index| stat.ticks[index] as f64 / second);
    // Ticks are 10 ms; the scheduler's own account is exact but not split.
    let mut exact_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let account = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        exact_ns += account
            .split_whitespace()
            .next()
            .and_then(|ns| ns.parse().ok())
            .unwrap_or(0_u64);
    }
    let total_s = if exact_ns > 0 {
        exact_ns as f64 / 1e9
    } else {
        user_s + system_s
    };
    Ok(CpuTime {
        total_s,
        user_s,
        system_s,
    })
}

/// How busy the machine was with other things during a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noise {
    /// Time that the hypervisor gave to others, as a share of the two CPUs.
    pub(crate) steal: f64,
    /// CPU of other processes, as a share of the two CPUs.
    pub(crate) others: f64,
}

/// A moment from which noise is measured.
///
/// Other processes are summed one by one instead of subtracting ours from
/// the CPUs' totals, because kernels differ in where they book the softirqs
/// that our own loopback traffic causes. Kernel threads are not counted: on
/// these CPUs they do our work.
pub(crate) struct NoiseGauge {
    cpus: [usize; 2],
    /// Ours: left out, with their children.
    own: Vec<u32>,
    start: Instant,
    steal_ticks: u64,
    others: HashMap<u32, Process>,
}

impl NoiseGauge {
    /// Begins to measure on the `cpus`, leaving out the processes `own`.
    pub(crate) fn start(cpus: [usize; 2], own: &[u32]) -> NoiseGauge {
        NoiseGauge {
            cpus,
            own: own.to_vec(),
            start: Instant::now(),
            steal_ticks: steal_ticks(cpus),
            others: all_ticks(own),
        }
    }

    /// Noise since the start.
    pub(crate) fn finish(&self) -> Noise {
        let capacity = self.start.elapsed().as_secs_f64() * 2.0 * ticks_per_second();
        let (now, start) = (all_ticks(&self.own), &self.others);
        let living: i64 = now
            .iter()
            .filter(|(_, process)| self.cpus.contains(&process.cpu))
            .map(|(pid, process)| process.ticks - start.get(pid).map_or(0, |before| before.ticks))
            .sum();
        // What ended has left its whole life in its parent's children time.
        let ended: i64 = start
            .iter()
            .filter(|(pid, _)| !now.contains_key(pid))
            .map(|(_, before)| before.ticks)
            .sum();
        let others = (living - ended).max(0);
        Noise {
            steal: (steal_ticks(self.cpus).saturating_sub(self.steal_ticks)) as f64 / capacity,
            others: others as f64 / capacity,
        }
    }
}

/// Stolen ticks of the CPUs so far: the eighth figure of /proc/stat's lines.
fn steal_ticks(cpus: [usize; 2]) -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut names: Vec<String> = cpus.iter().map(|cpu| format!("cpu{cpu}")).collect();
    names.dedup();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?;
            names
                .iter()
                .any(|wanted| wanted == name)
                .then(|| fields.nth(7)?.parse::<u64>().ok())?
        })
        .sum()
}

/// A process that is not ours.
struct Process {
    /// Its own time and that of its ended children.
    ticks: i64,
    /// Where it ran last.
    cpu: usize,
}

/// Every process but kernel threads and `own`.
fn all_ticks(own: &[u32]) -> HashMap<u32, Process> {
    /// The parent of all kernel threads.
    const KTHREADD: u32 = 2;
    let harness = std::process::id();
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut processes = HashMap::new();
    for pid in pids {
        let Some(stat) = stat(pid) else { continue };
        if pid == KTHREADD || stat.parent == KTHREADD || own.contains(&pid) {
            continue;
        }
        // Our own children's time is no noise; what this program itself uses is.
        let counted = if pid == harness {
            &stat.ticks[..2]
        } else {
            &stat.ticks[..]
        };
        let ticks = counted.iter().sum::<u64>() as i64;
        processes.insert(
            pid,
            Process {
                ticks,
                cpu: stat.cpu,
            },
        );
    }
    processes
}

/// The file limit of this process, as (soft, hard).
pub(crate) fn file_limit() -> (u64, u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Descriptors that a process has open, and the sockets in the tables of its
/// rings, which are not among them.
///
/// # Errors
/// The process is gone.
pub(crate) fn open_descriptors(pid: u32) -> anyhow::Result<(usize, usize)> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let mut direct = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        // A ring lists its table below "UserFiles:", one occupied slot a line.
        let Some((_, table)) = text.split_once("UserFiles:") else {
            continue;
        };
        direct += table
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with(' '))
            .filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()))
            .filter(|line| !line.contains("<none>"))
            .count();
    }
    Ok((files, direct))
}

/// TCP sockets in use in this network namespace, both ends counted.
///
/// # Errors
/// /proc/net/sockstat is not readable or has another form.
pub(crate) fn tcp_sockets() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("TCP: inuse ") {
            let count = rest.split(' ').next().unwrap_or_default();
            return count
                .parse()
                .context("/proc/net/sockstat: TCP inuse is no number");
        }
    }
    bail!("/proc/net/sockstat names no TCP sockets")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let before = cpu_time(std::process::id()).expect("this process exists");
        let mut sum = 0_u64;
        while cpu_time(std::process::id()).expect("exists").total_s < before.total_s + 0.005 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(cpu_time(u32::MAX).is_err());
        assert!(open_descriptors(std::process::id()).expect("exists").0 >= 3);
    }

    #[test]
    fn machine_is_named() {
        let machine = machine();
        assert!(machine["cpus"].as_u64() >= Some(1), "{machine}");
        assert!(machine["memory_gib"].as_f64() > Some(0.0), "{machine}");
    }
}
