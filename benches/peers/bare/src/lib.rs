//! Nothing shared between the bare loops yet.
