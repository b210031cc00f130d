//! Replays the fuzz corpus on stable Rust: what once was found stays fixed without a fuzzer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ringmill_cli::fuzzing::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

#[test]
fn every_file_of_the_corpus_holds() {
    for (target, run) in TARGETS {
        let folder = corpus().join(target);
        let mut files = 0;
        let entries = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("no corpus for {target} in {folder:?}: {error}"));
        for entry in entries {
            let path = entry.unwrap().path();
            let data = fs::read(&path).unwrap();
            let held = catch_unwind(AssertUnwindSafe(|| run(&data))).is_ok();
            assert!(held, "{target} fails on {path:?}");
            files += 1;
        }
        assert!(files > 0, "the corpus of {target} is empty");
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    for entry in fs::read_dir(corpus()).unwrap() {
        let name = entry.unwrap().file_name();
        let known = TARGETS.iter().any(|(target, _)| name == *target);
        assert!(known, "fuzz/corpus/{name:?} belongs to no target");
    }
}
