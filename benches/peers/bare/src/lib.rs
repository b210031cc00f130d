//! What the bare loops share: percentiles of a sorted list.

/// The value below which `share` (0–1) of the sorted `values` lie; 0 for none.
pub fn percentile(sorted: &[u64], share: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or(0)
}
