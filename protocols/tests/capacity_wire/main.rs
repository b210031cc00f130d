//! The wire half of the capacity test against what OB-UDPST 9.0.0 and 8.2.0 sent and answered, and
//! against properties that hold for any bytes.

mod parameters;
mod pdus;
mod properties;
mod rates;
mod setup;

use std::path::{Path, PathBuf};

/// A file of recorded data.
fn vectors(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors/udpst")
        .join(name)
}

fn json(name: &str) -> serde_json::Value {
    let path = vectors(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16));
    bytes.collect::<Result<_, _>>().expect("hexadecimal digits")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
