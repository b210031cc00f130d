//! The other commands as processes: demo, completions, man pages, and that every flag is explained.

mod common;

use std::process::Stdio;

use clap::{Command, CommandFactory};
use common::{Running, run};
use nix::sys::signal::Signal;
use ringmill_cli::commands::Cli;

#[test]
fn the_demo_reports_both_transports() {
    let mut demo = Running::start(&["demo", "--duration", "2s", "--json"], Stdio::null());
    for scheme in ["tcp://", "udp://"] {
        let report = demo.event("report");
        assert!(
            report["endpoint"].as_str().unwrap().starts_with(scheme),
            "{report}"
        );
        assert!(report["messages"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["wrong_bytes"], 0);
        assert!(
            report["cpu"]["server"].is_object(),
            "told apart: {}",
            report["cpu"]
        );
    }
    demo.ended_well();
}

#[test]
fn a_demo_that_is_interrupted_leaves_no_server() {
    let mut demo = Running::start(&["demo", "--duration", "60s", "--json"], Stdio::null());
    demo.event("interval");
    let task = format!("/proc/{0}/task/{0}/children", demo.pid());
    let server = std::fs::read_to_string(&task).unwrap_or_default();
    let server = server.trim();
    demo.signal(Signal::SIGINT);
    demo.event("report");
    demo.ended_well();
    if server.is_empty() {
        println!("skipped: this kernel does not list the children of a process");
    } else {
        let left = std::path::Path::new("/proc").join(server);
        assert!(!left.exists(), "process {server} is still there");
    }
}

#[test]
fn completions_for_each_shell() {
    for (shell, words) in [
        ("bash", "complete -F _ringmill"),
        ("zsh", "#compdef ringmill"),
        ("fish", "complete -c ringmill"),
    ] {
        let (code, script, _) = run(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(script.contains(words), "{shell}: {script}");
    }
    assert_eq!(run(&["completions", "cmd"]).0, 2);
}

#[test]
fn a_man_page_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man");
    let (code, _, errors) = run(&["man", "--out", out.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    for page in [
        "ringmill",
        "ringmill-serve-echo",
        "ringmill-run",
        "ringmill-demo",
    ] {
        let text = std::fs::read_to_string(out.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME"), "{page}");
    }
}

#[test]
fn every_command_and_flag_is_explained() {
    fn check(command: &Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} has no help");
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{path} {} has no help",
                argument.get_id()
            );
        }
        for subcommand in command.get_subcommands() {
            check(subcommand, &path);
        }
    }
    let mut cli = Cli::command();
    cli.build();
    check(&cli, "");
}

#[test]
fn a_topology_takes_what_changes_the_plan_and_nothing_else() {
    let (code, plan, errors) = run(&["topology", "--shards", "3", "--json"]);
    assert_eq!(code, 0, "{errors}");
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["plan"]["shards"].as_array().unwrap().len(), 3);
    for idle in [
        ["--busy-poll", "5"],
        ["--metrics", ":0"],
        ["--driver", "epoll"],
        ["--uring-without", "bundles"],
    ] {
        let (code, output, errors) = run(&["topology", idle[0], idle[1]]);
        assert_eq!((code, output.as_str()), (2, ""), "{idle:?}");
        assert!(errors.contains(idle[0]), "{errors}");
    }
    for (flag, value) in [("--cpus", "9000"), ("--interface", "nope0")] {
        let (code, _, errors) = run(&["topology", flag, value]);
        assert_eq!(code, 2, "{flag}");
        assert!(errors.contains(value), "{errors}");
    }
}

#[test]
fn the_rate_of_a_source_is_told_to_be_that_of_a_shard() {
    let (code, help, _) = run(&["serve", "echo", "--help"]);
    assert_eq!(code, 0);
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "each shard answers to one source",
        "N times as much answered",
    ] {
        assert!(words.contains(part), "{help}");
    }
}

#[test]
fn the_first_page_fits_a_screen() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, 0);
    let lines = help.lines().count();
    assert!(lines <= 40, "{lines} lines:\n{help}");
    assert!(
        help.lines().all(|line| line.chars().count() <= 100),
        "{help}"
    );
}
