//! A running connection of the capacity test. The body is in `cli/src/fuzzing/connection.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringmill_cli::fuzzing::connection::connection(data));
