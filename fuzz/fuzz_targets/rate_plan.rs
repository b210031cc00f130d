//! Rate plans and files of names. The body is in `cli/src/fuzzing/dns.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmill_cli::fuzzing::dns::rate_plan(data));
