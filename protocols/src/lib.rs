//! Protocol modules of ringmill.
