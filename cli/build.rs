//! Hands the compiler, profile and target to the environment block of reports.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["PROFILE", "TARGET"] {
        if let Ok(value) = env::var(name) {
            println!("cargo:rustc-env=RINGMILL_BUILD_{name}={value}");
        }
    }
    // A build without this line still works: the report then leaves the compiler out.
    let rustc = env::var_os("RUSTC").and_then(|rustc| Command::new(rustc).arg("-V").output().ok());
    if let Some(version) = rustc.and_then(|output| String::from_utf8(output.stdout).ok()) {
        println!("cargo:rustc-env=RINGMILL_BUILD_RUSTC={}", version.trim());
    }
}
