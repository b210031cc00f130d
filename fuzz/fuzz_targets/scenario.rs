//! Scenario files. The body is in `cli/src/fuzzing.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmill_cli::fuzzing::scenario(data));
