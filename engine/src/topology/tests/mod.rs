//! Tests of placement on machines that nobody here owns: hwloc's synthetic ones, made-up `/sys`
//! trees, and this host as it is.

mod binding;
mod fake;
mod picture;
mod planning;
mod readers;
