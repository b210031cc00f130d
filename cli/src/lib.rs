//! The ringmill command line.
