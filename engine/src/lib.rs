//! The ringmill engine.
