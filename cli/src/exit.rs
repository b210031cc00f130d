//! Exit codes, documented in the README and never changed in meaning.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed while running: no connection, a shard that stopped.
    Failed = 1,
    /// The command line or a configuration file is wrong, or an endpoint cannot be used.
    Usage = 2,
    /// A `--fail-if` condition was met.
    Condition = 3,
    /// Verification found wrong or lost bytes.
    Wrong = 4,
    /// Ended at once by a second signal.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that is the user's to mend: exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The exit code that an error deserves.
#[must_use]
pub fn of(error: &anyhow::Error) -> Exit {
    use ringmill_engine::StartError;
    let mendable = error.chain().any(|cause| {
        cause.is::<UsageError>()
            || cause.is::<crate::config::ConfigError>()
            || cause.is::<crate::endpoint::EndpointError>()
            || cause.is::<crate::endpoint::AddressError>()
            || matches!(
                cause.downcast_ref::<StartError>(),
                Some(
                    StartError::Bind { .. }
                        | StartError::Driver { .. }
                        | StartError::Configuration(_)
                )
            )
    });
    if mendable { Exit::Usage } else { Exit::Failed }
}
