//! Key files of the capacity test. The body is in `cli/src/fuzzing/capacity.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmill_cli::fuzzing::capacity::keys(data));
