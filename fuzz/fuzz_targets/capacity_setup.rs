//! Setup PDUs of the capacity test, and their answers. The body is in `cli/src/fuzzing/capacity.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmill_cli::fuzzing::capacity::setup(data));
