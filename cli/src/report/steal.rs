//! Who used the CPUs while we measured: we, others, interrupts, or other guests of the hypervisor.
//!
//! Two samples of `/proc/stat` and of our processes' CPU times, and their difference. This must
//! never guess: where the kernel does not tell, the answer is an error or `None`.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of one CPU or of all, in clock ticks since boot (proc_stat(5)).
///
/// Guest time is part of `user` and `nice` there, so it is not counted again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTicks {
    /// In user space, guests included.
    pub user: u64,
    /// In user space at low priority.
    pub nice: u64,
    /// In the kernel for a process.
    pub system: u64,
    /// Doing nothing.
    pub idle: u64,
    /// Doing nothing while something waited for a disk.
    pub iowait: u64,
    /// In hardware interrupts.
    pub irq: u64,
    /// In software interrupts: most of the network stack's receive side.
    pub softirq: u64,
    /// Wanted, but given to another guest by the hypervisor.
    pub steal: u64,
}

impl CpuTicks {
    /// All ticks.
    pub fn total(&self) -> u64 {
        [
            self.user,
            self.nice,
            self.system,
            self.idle,
            self.iowait,
            self.irq,
            self.softirq,
            self.steal,
        ]
        .iter()
        .sum()
    }

    /// Ticks since an earlier sample. A counter that went back (idle and iowait may, on SMP)
    /// counts as zero.
    pub fn since(&self, earlier: &CpuTicks) -> CpuTicks {
        CpuTicks {
            user: self.user.saturating_sub(earlier.user),
            nice: self.nice.saturating_sub(earlier.nice),
            system: self.system.saturating_sub(earlier.system),
            idle: self.idle.saturating_sub(earlier.idle),
            iowait: self.iowait.saturating_sub(earlier.iowait),
            irq: self.irq.saturating_sub(earlier.irq),
            softirq: self.softirq.saturating_sub(earlier.softirq),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    fn parse(numbers: &str) -> Option<CpuTicks> {
        let mut numbers = numbers
            .split_whitespace()
            .map(|number| number.parse::<u64>());
        // Old kernels have fewer columns: what is missing was not counted.
        let mut next = || numbers.next().unwrap_or(Ok(0)).ok();
        Some(CpuTicks {
            user: next()?,
            nice: next()?,
            system: next()?,
            idle: next()?,
            iowait: next()?,
            irq: next()?,
            softirq: next()?,
            steal: next()?,
        })
    }
}

/// One sample of the whole machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineTimes {
    /// All CPUs together.
    pub all: CpuTicks,
    /// Each CPU that is online, with its number.
    pub each: Vec<(u32, CpuTicks)>,
}

impl MachineTimes {
    /// Samples `/proc/stat`.
    ///
    /// # Errors
    /// When the file cannot be read or has another form.
    pub fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/stat has no line of CPU times",
            )
        })
    }

    fn parse(stat: &str) -> Option<Self> {
        let mut all = None;
        let mut each = Vec::new();
        for line in stat.lines() {
            let Some((name, numbers)) = line.split_once(' ') else {
                continue;
            };
            match name.strip_prefix("cpu") {
                Some("") => all = CpuTicks::parse(numbers),
                Some(number) => {
                    if let (Ok(number), Some(ticks)) = (number.parse(), CpuTicks::parse(numbers)) {
                        each.push((number, ticks));
                    }
                }
                None => {}
            }
        }
        Some(MachineTimes { all: all?, each })
    }
}

/// CPU time of one process, its finished threads included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessTimes {
    /// In user space.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

impl ProcessTimes {
    /// This process, to the microsecond (getrusage(2)).
    pub fn own() -> Self {
        // It cannot fail for the process itself (getrusage(2)).
        getrusage(UsageWho::RUSAGE_SELF).map_or_else(
            |_| ProcessTimes::default(),
            |usage| ProcessTimes {
                user: from_timeval(usage.user_time()),
                system: from_timeval(usage.system_time()),
            },
        )
    }

    /// Another process, to the clock tick, usually 10 ms (`/proc/PID/stat`).
    ///
    /// # Errors
    /// When there is no such process or its file has another form.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&stat, ticks_per_s()).ok_or_else(|| {
            let what = format!("/proc/{pid}/stat has no CPU times");
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }

    /// CPU time since an earlier sample.
    pub fn since(&self, earlier: &ProcessTimes) -> ProcessTimes {
        ProcessTimes {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    /// Both together.
    pub fn total(&self) -> Duration {
        self.user + self.system
    }

    fn parse(stat: &str, ticks_per_s: u64) -> Option<Self> {
        // Field 2 is the name in brackets and may hold blanks and brackets of its own, so count
        // from the last one. utime and stime are fields 14 and 15 (proc_pid_stat(5)).
        const UTIME_AFTER_NAME: usize = 14 - 3;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace().skip(UTIME_AFTER_NAME);
        let mut next = || fields.next()?.parse::<u64>().ok();
        let in_time = |ticks: u64| {
            let ns = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_s.max(1));
            u64::try_from(ns).ok().map(Duration::from_nanos)
        };
        Some(ProcessTimes {
            user: in_time(next()?)?,
            system: in_time(next()?)?,
        })
    }
}

fn from_timeval(time: TimeVal) -> Duration {
    let s = u64::try_from(time.tv_sec()).unwrap_or(0);
    let us = u64::try_from(time.tv_usec()).unwrap_or(0);
    Duration::from_secs(s) + Duration::from_micros(us)
}

/// Shares of the machine's CPU time between two samples, in percent of all CPUs together.
///
/// The kernel may bill an interrupt to the process that it interrupted (without
/// `IRQ_TIME_ACCOUNTING` it does), and then our own share contains part of `interrupts`. So
/// `others` is a lower bound: what is certain not to be ours; the truth is at most `interrupts`
/// higher.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Our processes.
    pub ours_percent: f64,
    /// Other processes, at least.
    pub others_percent: f64,
    /// Interrupts, hard and soft, for whomever.
    pub interrupts_percent: f64,
    /// Idle, waiting for disks included.
    pub idle_percent: f64,
    /// Given to other guests of the hypervisor.
    pub steal_percent: f64,
    /// The CPU that lost most to other guests, and how much of its own time; `None` when no
    /// single CPU could be compared.
    pub worst_steal: Option<(u32, f64)>,
}

impl Usage {
    /// Compares two samples. `ours` is the CPU time of all our processes between them. `None`
    /// when less than one clock tick lies between the samples.
    pub fn between(before: &MachineTimes, after: &MachineTimes, ours: Duration) -> Option<Usage> {
        Self::between_at(before, after, ours, ticks_per_s())
    }

    fn between_at(
        before: &MachineTimes,
        after: &MachineTimes,
        ours: Duration,
        ticks_per_s: u64,
    ) -> Option<Usage> {
        let spent = after.all.since(&before.all);
        let total = spent.total();
        if total == 0 {
            return None;
        }
        let percent = |ticks: f64| ticks / total as f64 * 100.0;
        let ours_ticks = ours.as_secs_f64() * ticks_per_s as f64;
        let processes = (spent.user + spent.nice + spent.system) as f64;
        let worst_steal = after
            .each
            .iter()
            .filter_map(|(number, ticks)| {
                let (_, earlier) = before.each.iter().find(|(other, _)| other == number)?;
                let spent = ticks.since(earlier);
                let total = spent.total();
                (total > 0).then(|| (*number, spent.steal as f64 / total as f64 * 100.0))
            })
            .max_by(|left, right| left.1.total_cmp(&right.1));
        Some(Usage {
            ours_percent: percent(ours_ticks),
            others_percent: percent((processes - ours_ticks).max(0.0)),
            interrupts_percent: percent((spent.irq + spent.softirq) as f64),
            idle_percent: percent((spent.idle + spent.iowait) as f64),
            steal_percent: percent(spent.steal as f64),
            worst_steal,
        })
    }
}

/// What /proc counts in: 100 on every Linux platform of today but Alpha (time(7)).
fn ticks_per_s() -> u64 {
    const USUAL: u64 = 100;
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks
        .and_then(|ticks| u64::try_from(ticks).ok())
        .filter(|&ticks| ticks > 0)
        .unwrap_or(USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(text: &str) -> MachineTimes {
        MachineTimes::parse(text).unwrap()
    }

    #[test]
    fn proc_stat_as_kernels_write_it() {
        let times = machine(
            "cpu  10 1 20 300 4 5 6 7 8 9\ncpu0 5 1 10 150 2 3 3 4 0 0\ncpu3 5 0 10 150 2 2 3 3\n\
             intr 1 2 3\nctxt 5\ncpufoo 1\n",
        );
        assert_eq!(
            times.all,
            CpuTicks {
                user: 10,
                nice: 1,
                system: 20,
                idle: 300,
                iowait: 4,
                irq: 5,
                softirq: 6,
                steal: 7
            }
        );
        assert_eq!(times.all.total(), 353);
        assert_eq!(
            times.each.iter().map(|(cpu, _)| *cpu).collect::<Vec<_>>(),
            [0, 3]
        );
        assert_eq!(
            machine("cpu 1 2 3 4\n").all.total(),
            10,
            "a kernel with four columns"
        );
        for broken in ["", "intr 1\n", "cpu  1 2 x\n"] {
            assert_eq!(MachineTimes::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn shares_between_two_samples() {
        let before = machine("cpu  100 0 100 1000 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0\n");
        let after = machine(
            "cpu  130 10 140 1060 10 2 28 20\ncpu0 0 0 0 98 0 0 0 2\ncpu1 0 0 0 82 0 0 0 18\n",
        );
        // 200 ticks: 80 of processes, 30 of interrupts, 70 idle, 20 stolen. Ours: 60.
        let usage = Usage::between_at(&before, &after, Duration::from_millis(600), 100).unwrap();
        assert_eq!(
            usage,
            Usage {
                ours_percent: 30.0,
                others_percent: 10.0,
                interrupts_percent: 15.0,
                idle_percent: 35.0,
                steal_percent: 10.0,
                worst_steal: Some((1, 18.0)),
            }
        );
        // Billed more to us than processes had: nobody else is blamed.
        let usage = Usage::between_at(&before, &after, Duration::from_secs(1), 100).unwrap();
        assert_eq!((usage.ours_percent, usage.others_percent), (50.0, 0.0));
        assert_eq!(
            Usage::between_at(&before, &before, Duration::ZERO, 100),
            None
        );
    }

    #[test]
    fn counters_that_go_back_count_as_zero() {
        let before = machine("cpu  5 0 5 100 50 0 0 0\n");
        let after = machine("cpu  10 0 10 200 40 0 0 0\n");
        assert_eq!(after.all.since(&before.all).iowait, 0);
    }

    #[test]
    fn process_stat_with_a_strange_name() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 1234 567 0 0 20 0 9 0 1 2 3";
        assert_eq!(
            ProcessTimes::parse(stat, 100),
            Some(ProcessTimes {
                user: Duration::from_millis(12_340),
                system: Duration::from_millis(5_670)
            })
        );
        for broken in ["", "42 (x) S 1 2", "42 (x) S 1 2 3 4 5 6 7 8 9 10 x y"] {
            assert_eq!(ProcessTimes::parse(broken, 100), None, "{broken:?}");
        }
    }

    #[test]
    fn this_machine_and_this_process() {
        let before = ProcessTimes::own();
        // Work until the clock of the process has moved, not for a time on the wall.
        let mut sum = 0_u64;
        while ProcessTimes::own().since(&before).total() < Duration::from_millis(1) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let seen = ProcessTimes::of_pid(std::process::id());
        let machine = MachineTimes::read();
        match (seen, machine) {
            (Ok(times), Ok(machine)) => {
                assert!(times.total() <= ProcessTimes::own().total() + Duration::from_millis(50));
                assert!(machine.all.total() > 0);
            }
            (Err(error), _) | (_, Err(error)) => println!("skipped: no /proc here: {error}"),
        }
        assert!(ProcessTimes::of_pid(u32::MAX).is_err());
    }
}
