//! The `ringmill` program: flags in, exit code out. Everything else is in the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    ringmill_cli::main()
}
