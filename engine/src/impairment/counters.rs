//! What an impairment did, exactly.

crate::counters! {
    /// What the impairment of one direction did on one shard.
    ImpairmentCounters,
    /// [`ImpairmentCounters`] at one moment.
    ImpairmentSnapshot {
        /// Datagrams that came.
        offered: counter,
        /// Datagrams that left, duplicates included.
        passed: counter,
        /// Dropped by the loss model.
        lost: counter,
        /// Dropped in a blackout.
        blackout: counter,
        /// Dropped as too long.
        oversize: counter,
        /// Dropped because the queue of the bottleneck was full.
        queue_full: counter,
        /// Dropped by CoDel.
        codel: counter,
        /// Dropped by RED.
        red: counter,
        /// Marked "congestion experienced" instead of being dropped.
        marked: counter,
        /// ECN fields cleared that were set.
        bleached: counter,
        /// Duplicates made.
        duplicated: counter,
        /// Held back behind later ones, or for a time.
        reordered: counter,
        /// Damaged.
        corrupted: counter,
    }
}

impl ImpairmentSnapshot {
    /// Datagrams that came and will never leave.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lost + self.blackout + self.oversize + self.queue_full + self.codel + self.red
    }
}
