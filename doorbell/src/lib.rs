//! The sleep/doorbell flag of a shard.
