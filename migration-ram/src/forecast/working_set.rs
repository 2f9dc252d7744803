//! A model of a guest's writes: how many bytes it dirties in a time.

use std::time::Duration;

use crate::forecast::report::DirtySample;

/// A part of memory that a guest writes again and again, and the rate of the writes.
///
/// The model: writes go to random pages of the set, all equally likely. Then n writes
/// touch N (1 - (1 - 1/N)^n) ≈ N (1 - e^(-n/N)) of N pages (the occupancy problem: Feller,
/// *An Introduction to Probability Theory and Its Applications*, vol. 1, II.5 and IV.2), so
/// that in time t the guest dirties
///
/// ```text
/// bytes × (1 - e^(-rate × t / bytes))
/// ```
///
/// which is `rate` × t at first and never more than `bytes`. Pages that are written often are
/// best sent at the end: the "writable working set" of Clark et al., *Live Migration of Virtual
/// Machines* (NSDI 2005).
///
/// A guest that sweeps its set in order dirties more, up to `rate` × t (1.6 times as much
/// when this is one set); one that writes some pages much more often than others dirties
/// less in a long time. Such a guest is better described by several sets.
///
/// ```
/// use std::time::Duration;
/// use migration_ram::WorkingSet;
///
/// let set = WorkingSet { bytes: 8 << 30, rate: 1 << 30 }; // all of it takes 8 s at least
/// assert_eq!(set.dirtied(Duration::from_millis(1)) >> 10, 1048); // 1 GiB/s
/// assert_eq!(set.dirtied(Duration::from_secs(8)) >> 20, 5178); // 63 % of the set
/// assert_eq!(set.dirtied(Duration::from_secs(800)), 8 << 30);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes of pages that are written per second; pages written again count again.
    pub rate: u64,
}

impl WorkingSet {
    /// Bytes of distinct pages that are dirtied in `time`.
    pub fn dirtied(&self, time: Duration) -> u64 {
        round(self.expect(time.as_secs_f64(), 1.0))
    }

    /// As [`dirtied`](Self::dirtied), in seconds, for a guest that runs for `part` of the time
    /// (from 0 to 1).
    pub(crate) fn expect(&self, seconds: f64, part: f64) -> f64 {
        let (bytes, rate) = (float(self.bytes), float(self.rate));
        if self.bytes == 0 { 0.0 } else { bytes * -(-rate * part * seconds / bytes).exp_m1() }
    }

    /// The set of at most `len` bytes whose curve runs through the last of the measured
    /// samples and comes closest to the others (least squares).
    ///
    /// If the curve does not bend, or there is only one sample, the set cannot be told from all
    /// of memory: then it has `len` bytes. Measure for longer than the guest needs to write its
    /// working set once.
    pub fn fit(curve: &[DirtySample], len: u64) -> Self {
        let Some((last, before)) = curve.split_last() else { return Self::default() };
        let (found, seconds) = (float(last.bytes), last.time.as_secs_f64());
        if last.bytes == 0 || seconds == 0.0 {
            return Self::default();
        }
        // One unknown: how often each page was written on average, `turns` = rate × t / bytes.
        // It gives both: found = bytes × (1 - e^-turns).
        let size = |turns: f64| found / -(-turns).exp_m1();
        let misfit = |turns: f64| -> f64 {
            let off = |sample: &DirtySample| {
                let part = sample.time.as_secs_f64() / seconds;
                float(sample.bytes) + size(turns) * (-turns * part).exp_m1()
            };
            before.iter().map(|sample| off(sample).powi(2)).sum()
        };
        // From a set of all of memory to one that was written 100 times.
        let (least, most): (f64, f64) = (fewest_turns(found / float(len.max(last.bytes))), 100.0);
        let step = (most / least).powf(1.0 / f64::from(STEPS));
        let turns = (0..=STEPS).map(|n| least * step.powi(n));
        let best = turns.min_by(|a, b| misfit(*a).total_cmp(&misfit(*b))).unwrap_or(least);
        let turns = narrow(misfit, (best / step).max(least), best * step);
        let bytes = size(turns).min(float(len.max(last.bytes)));
        Self { bytes: round(bytes), rate: round(turns * bytes / seconds) }
    }
}

/// Steps of the coarse search for a fit, before it is narrowed down.
const STEPS: i32 = 200;

/// How often pages are written on average if `part` of them are written at all.
fn fewest_turns(part: f64) -> f64 {
    // Limits for a part near 0, and one near 1, whose logarithm is infinite.
    (-(-part).ln_1p()).clamp(1e-9, 50.0)
}

/// The minimum between `from` and `to` of a function that has one valley there (ternary
/// search).
fn narrow(value: impl Fn(f64) -> f64, mut from: f64, mut to: f64) -> f64 {
    for _ in 0..60 {
        let third = (to - from) / 3.0;
        if value(from + third) <= value(to - third) {
            to -= third;
        } else {
            from += third;
        }
    }
    f64::midpoint(from, to)
}

#[allow(clippy::cast_precision_loss)] // a model
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
pub(crate) fn round(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The curve that a measurement of `set` would return: samples at halves of the time.
    fn curve(set: WorkingSet, time: Duration) -> Vec<DirtySample> {
        let sample = |time| DirtySample { time, pages: 0, bytes: set.dirtied(time) };
        (0..7).rev().map(|n| sample(time / (1 << n))).collect()
    }

    fn near(a: u64, b: u64, part: f64) -> bool {
        (float(a) - float(b)).abs() <= part * float(b)
    }

    proptest! {
        /// A curve of the model gives its set back, if the time was long enough to see it.
        #[test]
        fn a_set_is_found_in_its_curve(
            size in 24u32..40, rate in 24u32..34, turns in 0.3f64..20.0,
        ) {
            let set = WorkingSet { bytes: 1 << size, rate: 1 << rate };
            let time = Duration::from_secs_f64(turns * float(set.bytes) / float(set.rate));
            let fit = WorkingSet::fit(&curve(set, time), 1 << 42);
            prop_assert!(near(fit.bytes, set.bytes, 0.01) && near(fit.rate, set.rate, 0.02), "{:?}",
                fit);
        }

        /// Whatever was measured, a fit runs through its end and is within memory.
        #[test]
        fn any_curve_has_a_fit(
            parts in prop::collection::vec((0u64..1 << 40, 0u64..1 << 40), 0..8),
                more in 0u64..1 << 40,
        ) {
            let (mut time, mut bytes) = (Duration::ZERO, 0);
            let curve: Vec<_> = parts.iter().map(|(nanoseconds, new)| {
                time += Duration::from_nanos(*nanoseconds);
                bytes += new;
                DirtySample { time, pages: 0, bytes }
            }).collect();
            let len = bytes + more;
            let fit = WorkingSet::fit(&curve, len);
            prop_assert!(fit.bytes <= len);
            if !time.is_zero() {
                prop_assert!(near(fit.dirtied(time), bytes, 0.001) || bytes < 100_000, "{:?}", fit);
            }
        }
    }

    #[test]
    fn what_does_not_bend_may_be_all_of_memory() {
        let sample = DirtySample { time: Duration::from_secs(1), pages: 0, bytes: 1 << 20 };
        let fit = WorkingSet::fit(&[sample], 1 << 40);
        assert!(near(fit.bytes, 1 << 40, 0.01) && near(fit.rate, 1 << 20, 0.01), "{fit:?}");
        assert_eq!(WorkingSet::fit(&[], 1 << 40), WorkingSet::default());
        let none = DirtySample { bytes: 0, ..sample };
        assert_eq!(WorkingSet::fit(&[none], 1 << 40), WorkingSet::default());
    }
}
