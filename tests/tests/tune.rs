//! `ringmill tune` on a real kernel, inside network namespaces: sysctls, a veth pair by ethtool, queues
//! and a table of nftables are changed and come back exactly, also after SIGKILL. Nothing of the host
//! itself is touched: `--scope network` sees to that, and the tests look.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringmill_tests::peer::has;
use ringmill_tests::program::{PATIENCE, Running, command, ringmill, signal, tethered, until};
use ringmill_tests::skipped;
use serde_json::Value;

/// A namespace with one end of a veth pair of two queues; the other end is in it, too. Gone when dropped.
struct Namespace {
    name: String,
    folder: tempfile::TempDir,
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| format!("ip {arguments}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {arguments}: {}", said.trim()))
}

impl Namespace {
    fn new(test: &str) -> Result<Self, String> {
        let name = format!("ringmill-tune-{}-{test}", std::process::id());
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        ip(&format!("netns add {name}"))?;
        let namespace = Self { name, folder };
        let name = &namespace.name;
        ip(&format!("-n {name} link set lo up"))?;
        let queues = "numtxqueues 2 numrxqueues 2";
        ip(&format!(
            "-n {name} link add end {queues} type veth peer name far {queues}"
        ))?;
        ip(&format!("-n {name} link set end up"))?;
        ip(&format!("-n {name} link set far up"))?;
        Ok(namespace)
    }

    /// A namespace, or a word why there is none.
    fn or_skip(test: &str) -> Option<Self> {
        for program in ["ip", "nft", "sysctl"] {
            if !has(program) {
                return None;
            }
        }
        match Self::new(test) {
            Ok(namespace) => Some(namespace),
            Err(reason) => {
                skipped(&format!("network namespaces: {reason}"));
                None
            }
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("tune.json")
    }

    /// A command that runs ringmill in the namespace; `ip` becomes it by exec.
    fn ringmill(&self) -> Command {
        let mut command = tethered(Command::new("ip"));
        command.args(["netns", "exec", &self.name]).arg(ringmill());
        command
    }

    fn tune(&self, verb: &str, arguments: &str) -> Command {
        let mut command = self.ringmill();
        command
            .args(["tune", verb])
            .args(arguments.split(' ').filter(|word| !word.is_empty()));
        command.arg("--state").arg(self.state());
        command
    }

    fn apply(&self, arguments: &str) -> Command {
        self.tune(
            "apply",
            &format!("--scope network --interface end {arguments}"),
        )
    }

    fn shell(&self, line: &str) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name, "sh", "-c", line])
            .output()
            .expect("ip can be started");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All that the namespace lets one see of its settings.
    fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        for line in self.shell("sysctl -a 2>/dev/null").lines() {
            // Settings of namespaces are net.*; some of them count, some change by themselves.
            let volatile = ["nf_conntrack_count", "base_reachable_time", "hash_seed"];
            if let Some((name, value)) = line.split_once('=')
                && name.starts_with("net.")
                && !volatile.iter().any(|word| name.contains(word))
            {
                settings.insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
        assert!(
            settings.len() > 300,
            "sysctl -a shows {} settings",
            settings.len()
        );
        let queues = self.shell("grep -H . /sys/class/net/*/queues/*/[rx]ps_cpus");
        for line in queues.lines() {
            if let Some((name, value)) = line.split_once(':') {
                settings.insert(name.to_owned(), value.to_owned());
            }
        }
        settings.insert("tables".into(), self.shell("nft list ruleset"));
        let check = self.tune(
            "check",
            "--profile udp-capacity-no-jumbo --interface end --json",
        );
        let facts = json(check)["facts"].take();
        for fact in facts.as_array().expect("facts") {
            if ["offloads", "channels"].contains(&fact["name"].as_str().unwrap_or("")) {
                settings.insert(fact["name"].to_string(), fact["value"].to_string());
            }
        }
        settings
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// What a command prints as JSON, whatever its exit code.
fn json(mut command: Command) -> Value {
    let output = command.output().expect("it can be started");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{command:?}: {error}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Fails with what differs, and nothing else.
fn assert_same(now: &BTreeMap<String, String>, before: &BTreeMap<String, String>, context: &str) {
    let names = now.keys().chain(before.keys());
    let differ: Vec<_> = names
        .filter(|name| now.get(*name) != before.get(*name))
        .map(|name| (name, before.get(name), now.get(name)))
        .collect();
    assert!(differ.is_empty(), "{context}: {differ:#?}");
}

fn changed(outcome: &Value) -> Vec<&str> {
    let changes = outcome["changed"].as_array().expect("a list");
    changes
        .iter()
        .map(|change| change["setting"].as_str().expect("a name"))
        .collect()
}

/// The values of the whole machine that profiles set, and no namespace may.
fn host_values() -> Vec<String> {
    [
        "fs/file-max",
        "fs/nr_open",
        "kernel/io_uring_disabled",
        "net/ipv4/tcp_mem",
        "net/core/rmem_max",
    ]
    .iter()
    .map(|name| std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default())
    .collect()
}

#[test]
fn a_namespace_is_tuned_and_restored_exactly() {
    let Some(namespace) = Namespace::or_skip("cycle") else {
        return;
    };
    let host = host_values();
    let before = namespace.settings();
    for (arguments, wanted) in [
        (
            "--profile lab --ports 7000,9000-9010 --json",
            &[
                "net.core.somaxconn",
                "net.ipv4.ip_local_port_range",
                "net.ipv4.tcp_syncookies",
                "nftables table",
            ][..],
        ),
        (
            "--profile udp-capacity-no-jumbo --json",
            &["end feature:rx-gro", "class/net/end/queues/tx-1/xps_cpus"],
        ),
        (
            "--profile udp-capacity-fragmented --json",
            &["net.ipv4.ipfrag_high_thresh", "net.ipv6.ip6frag_time"],
        ),
    ] {
        let first = json(namespace.apply(arguments));
        assert_eq!(
            first["failed"],
            serde_json::json!([]),
            "{arguments}: {first:#}"
        );
        for name in wanted {
            let found = changed(&first)
                .iter()
                .any(|setting| setting.starts_with(name));
            // A machine without the module tracks nothing, one CPU needs no queue of its own.
            let is_there =
                !name.contains("nftables") || before.contains_key("net.netfilter.nf_conntrack_max");
            assert!(found || !is_there, "{arguments}: no {name} in {first:#}");
        }
        let after = namespace.settings();
        assert!(after != before, "{arguments}");
        let second = json(namespace.apply(arguments));
        assert_eq!(changed(&second), Vec::<&str>::new(), "{arguments}");
        assert_same(&namespace.settings(), &after, arguments);
        let reverted = json(namespace.tune("revert", "--json"));
        assert_eq!(reverted["failed"], serde_json::json!([]), "{arguments}");
        assert_eq!(
            changed(&reverted).len(),
            changed(&first).len(),
            "{arguments}"
        );
        assert_same(&namespace.settings(), &before, arguments);
        assert!(!namespace.state().exists(), "{arguments}");
        assert_eq!(host_values(), host, "{arguments}: the host itself");
    }
}

#[test]
fn source_addresses_are_added_and_only_those_removed() {
    let Some(namespace) = Namespace::or_skip("sources") else {
        return;
    };
    let line = "ip -o address show dev end scope global | awk '{print $4}'";
    let addresses = || {
        let mut all: Vec<String> = namespace.shell(line).lines().map(str::to_owned).collect();
        all.sort();
        all
    };
    namespace.shell("ip address add 10.0.1.1/24 dev end; ip address add 10.0.1.2/32 dev far");
    let before = addresses();
    let goal =
        "--profile tcp-client --sources 10.0.1.0/29,fd00:77::1 --scope network --interface end";
    let row = || {
        let report = json(namespace.tune("check", &format!("{goal} --json")));
        let rows = report["settings"].as_array().expect("a list").clone();
        let row = rows
            .into_iter()
            .find(|row| row["name"] == "end source addresses")
            .expect("a row of the addresses");
        (row["standing"].clone(), row["now"].clone())
    };
    let (standing, now) = row();
    assert_eq!(standing, "differs");
    assert_eq!(
        now,
        "2 there, missing 10.0.1.3, 10.0.1.4, 10.0.1.5, 10.0.1.6, fd00:77::1"
    );
    let plan = namespace.tune("plan", goal).output().expect("it starts");
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    for (line, is_there) in [
        ("\nip address add 10.0.1.3/32 dev end\n", true),
        ("\nip address add fd00:77::1/128 dev end nodad\n", true),
        ("ip address add 10.0.1.1", false),
        ("ip address add 10.0.1.2", false),
    ] {
        assert_eq!(plan.contains(line), is_there, "{line:?} in\n{plan}");
    }
    let of_addresses = |outcome: &Value| {
        let names = changed(outcome).into_iter();
        names.filter(|name| name.contains(" address ")).count()
    };
    for _ in 0..2 {
        let arguments = "--profile tcp-client --sources 10.0.1.0/29,fd00:77::1 --json";
        let first = json(namespace.apply(arguments));
        assert_eq!(first["failed"], serde_json::json!([]), "{first:#}");
        assert_eq!(of_addresses(&first), 5, "{first:#}");
        assert_eq!(addresses().len(), before.len() + 5);
        assert_eq!(row().0, "right");
        assert_eq!(of_addresses(&json(namespace.apply(arguments))), 0);
        let reverted = json(namespace.tune("revert", "--json"));
        assert_eq!(reverted["failed"], serde_json::json!([]), "{reverted:#}");
        assert_eq!(addresses(), before);
    }
    // Nobody says which card.
    let output = namespace
        .tune("plan", "--profile tcp-client --sources 10.0.1.7")
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn an_apply_that_is_killed_is_taken_back_or_goes_on() {
    let Some(namespace) = Namespace::or_skip("kill") else {
        return;
    };
    let arguments = "--profile lab --ports 7000 --json";
    let before = namespace.settings();
    let whole = json(namespace.apply(arguments));
    let entries = changed(&whole).len();
    let after = namespace.settings();
    json(namespace.tune("revert", "--json"));
    for (number, goes_on) in (1..=entries).zip([false, true].into_iter().cycle()) {
        let mut apply = namespace.apply(arguments);
        let mut child = apply
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        // Killed once so many changes are on record; if it is done by then, that is a case as well.
        until("the record of a change", || {
            let text = std::fs::read_to_string(namespace.state()).unwrap_or_default();
            let ended = child.try_wait().expect("it is our child").is_some();
            (ended || text.matches("\"wanted\"").count() >= number).then_some(())
        });
        if child.try_wait().expect("it is our child").is_none() {
            signal(child.id(), libc::SIGKILL);
        }
        child.wait().expect("it is our child");
        if goes_on {
            let outcome = json(namespace.apply(arguments));
            assert_eq!(
                outcome["failed"],
                serde_json::json!([]),
                "{number}: {outcome:#}"
            );
            assert_same(&namespace.settings(), &after, &number.to_string());
        }
        let outcome = json(namespace.tune("revert", "--json"));
        assert_eq!(
            outcome["failed"],
            serde_json::json!([]),
            "{number}: {outcome:#}"
        );
        assert_same(&namespace.settings(), &before, &number.to_string());
    }
}

#[test]
fn what_somebody_changed_in_between_is_not_overwritten() {
    let Some(namespace) = Namespace::or_skip("changed") else {
        return;
    };
    json(namespace.apply("--profile tcp-client --json"));
    namespace.shell("sysctl -w net.ipv4.tcp_tw_reuse=0");
    let output = namespace
        .apply("--profile tcp-client")
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("net.ipv4.tcp_tw_reuse is 0; it was set to 1"),
        "{said}"
    );
    let outcome = json(namespace.tune("revert", "--json"));
    assert_eq!(
        outcome["failed"][0]["what"], "net.ipv4.tcp_tw_reuse",
        "{outcome:#}"
    );
    assert_eq!(
        namespace.shell("sysctl -n net.ipv4.tcp_tw_reuse").trim(),
        "0"
    );
    assert_ne!(
        namespace
            .shell("sysctl -n net.ipv4.ip_local_port_range")
            .trim(),
        "1024\t65535"
    );
    let outcome = json(namespace.tune("revert", "--keep-changed --json"));
    assert_eq!(outcome["failed"], serde_json::json!([]), "{outcome:#}");
    assert!(!namespace.state().exists());
}

/// The record of one namespace does not restore another one.
#[test]
fn another_namespace_is_refused() {
    let (Some(one), Some(other)) = (Namespace::or_skip("one"), Namespace::or_skip("other")) else {
        return;
    };
    json(one.apply("--profile tcp-client --json"));
    let before = other.settings();
    let mut revert = other.ringmill();
    let output = revert
        .args(["tune", "revert", "--state"])
        .arg(one.state())
        .output();
    let output = output.expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("another network namespace"), "{said}");
    assert_same(&other.settings(), &before, &said);
    json(one.tune("revert", "--json"));
}

#[test]
fn a_run_tunes_and_takes_it_back_when_it_ends() {
    let Some(namespace) = Namespace::or_skip("run") else {
        return;
    };
    // Before anything is run without --scope: ringmill itself must see that this is not the host.
    let plan = namespace
        .tune("plan", "--profile tcp-server")
        .output()
        .expect("it can be started");
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    let is_of_host = |line: &str| {
        !line.starts_with('#')
            && ["fs.", "kernel.", "/sys/module", "/sys/devices"]
                .iter()
                .any(|word| line.contains(word))
    };
    assert!(plan.contains("net.core.somaxconn=8192"), "{plan}");
    assert!(!plan.lines().any(is_of_host), "{plan}");
    let host = host_values();
    let before = namespace.settings();
    let state = namespace.state();
    for number in [libc::SIGINT, libc::SIGTERM] {
        let mut serve = namespace.ringmill();
        serve.args([
            "serve",
            "echo",
            "tcp://127.0.0.1:0",
            "--json",
            "--tune",
            "apply:tcp-server",
            "--tune-state",
        ]);
        serve.arg(&state);
        let mut serve = Running::start(&mut serve, &["--shards", "1"]);
        serve.line_where("that it listens", |line| line["type"] == "listening");
        assert!(state.exists(), "{}", serve.stderr());
        assert_eq!(
            namespace.shell("sysctl -n net.core.somaxconn").trim(),
            "8192"
        );
        // While it runs, its tuning is nobody else's to change.
        let output = namespace
            .apply("--profile tcp-server")
            .output()
            .expect("it can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("was applied by process"), "{said}");
        serve.signal(number);
        let (code, _) = serve.wait(PATIENCE);
        assert_eq!(code, 0, "{}", serve.stderr());
        assert_same(&namespace.settings(), &before, &serve.stderr());
        assert!(!state.exists());
        assert_eq!(host_values(), host, "the host itself");
    }
}

#[test]
fn a_soak_tunes_for_its_time_and_its_server_sees_it() {
    let Some(namespace) = Namespace::or_skip("soak") else {
        return;
    };
    let before = namespace.settings();
    let state = namespace.state();
    let mut soak = namespace.ringmill();
    soak.args(["soak", "--self", "--json", "-c", "50", "--rate", "50"]);
    soak.args(["--tune", "apply:tcp-client", "--tune-state"])
        .arg(&state);
    let mut soak = Running::start(&mut soak, &["--hold", "60s"]);
    soak.line_where("the hold", |line| line["phase"] == "held");
    assert!(state.exists(), "{}", soak.stderr());
    assert_eq!(
        namespace
            .shell("sysctl -n net.ipv4.ip_local_port_range")
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["1024", "65535"]
    );
    soak.signal(libc::SIGINT);
    let (code, lines) = soak.wait(PATIENCE);
    assert_eq!(code, 0, "{}", soak.stderr());
    assert_eq!(lines.last().expect("a report")["type"], "report");
    // Once, not by the server too.
    assert_eq!(soak.stderr().matches("settings changed").count(), 1);
    assert_same(&namespace.settings(), &before, &soak.stderr());
    assert!(!state.exists());
}

#[test]
fn a_soak_is_warned_of_what_binds_below_its_connections() {
    let Some(namespace) = Namespace::or_skip("warned") else {
        return;
    };
    namespace.shell("sysctl -w net.ipv4.ip_local_port_range='20000 20999'");
    for (flags, words) in [
        (
            &["-c", "2000"][..],
            "1000 ports × 1 source addresses × 1 destinations",
        ),
        (&["-c", "950"], ""),
        (&["-c", "2000", "--sources", "127.1.0.1,127.1.0.2"], ""),
        (&["-c", "2000", "--tune", "off"], ""),
        // Those are asked for, so it does not matter from which the kernel would choose.
        (
            &[
                "-c",
                "2000",
                "--sources",
                "127.0.0.1",
                "--source-ports",
                "1024-65535",
            ],
            "",
        ),
    ] {
        let mut soak = namespace.ringmill();
        // Nobody is there: it ends when its patience does.
        soak.args(["soak", "--json", "--open-timeout", "1s"]);
        soak.arg("tcp://127.0.0.1:9");
        let mut soak = Running::start(&mut soak, flags);
        let (code, _) = soak.wait(PATIENCE);
        let stderr = soak.stderr();
        assert_eq!(code, 1, "{flags:?}: {stderr}");
        assert_eq!(
            stderr.contains("warning"),
            !words.is_empty(),
            "{flags:?}: {stderr}"
        );
        assert!(stderr.contains(words), "{flags:?}: {stderr}");
    }
}

#[test]
fn sources_that_are_missing_can_be_added_as_the_error_says() {
    let Some(namespace) = Namespace::or_skip("sources") else {
        return;
    };
    let flags = ["--hold", "1s", "--sources", "10.77.0.1", "--rate", "50"];
    let run = || {
        let mut soak = namespace.ringmill();
        soak.args(["soak", "--self", "--json", "-c", "50"]);
        let mut soak = Running::start(&mut soak, &flags);
        let (code, _) = soak.wait(PATIENCE);
        (code, soak.stderr())
    };
    let (code, said) = run();
    assert_eq!(code, 2, "{said}");
    let command = said.split('`').nth(1).expect("a command");
    namespace.shell(&command.replace("INTERFACE", "end"));
    let (code, said) = run();
    assert_eq!(code, 0, "{command}: {said}");
}

#[test]
fn a_check_has_an_exit_code_for_scripts() {
    let report = |arguments: &[&str]| {
        let output = command()
            .args(["tune", "check"])
            .args(arguments)
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), output.stdout, said)
    };
    let (code, text, said) = report(&["--profile", "tcp-server", "--connections", "10", "--json"]);
    let found: Value =
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{error}: {said}"));
    let settings = found["settings"].as_array().expect("a list");
    let differs = settings.iter().any(|row| row["standing"] == "differs");
    let short = found["falls_short"]
        .as_array()
        .is_some_and(|limits| !limits.is_empty());
    assert_eq!(
        code,
        Some(if differs || short { 3 } else { 0 }),
        "{found:#}"
    );
    assert!(found["binds_first"][0]["capacity"].is_number(), "{found:#}");
    let (code, text, _) = report(&["--profile", "tcp-server", "--connections", "100G"]);
    let text = String::from_utf8_lossy(&text);
    assert_eq!(code, Some(3));
    assert!(text.contains("below what is wanted"), "{text}");
    for (arguments, words) in [
        (&["--profile", "none"][..], "there is no profile 'none'"),
        (
            &["--profile", "lab", "--interface", "no-such-card"],
            "there is no network interface",
        ),
        (
            &["--profile", "lab", "--interface", "a b"],
            "is no name of a network interface",
        ),
    ] {
        let (code, _, said) = report(arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
