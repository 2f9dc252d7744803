//! Dirty logs of any size and density, in the form that KVM gives them.

pub const PAGE: u64 = 4096;

/// The pages of so many GiB.
pub fn pages_of(gib: u64) -> u64 {
    (gib << 30) / PAGE
}

/// How much is dirty, and how it lies.
#[derive(Clone, Copy)]
pub struct Density {
    pub name: &'static str,
    percent: f64,
    /// In clusters of 512 pages.
    clustered: bool,
}

pub const DENSITIES: [Density; 8] = [
    Density { name: "clean", percent: 0.0, clustered: true },
    Density { name: "0.01 % clustered", percent: 0.01, clustered: true },
    Density { name: "0.01 % random", percent: 0.01, clustered: false },
    Density { name: "1 % clustered", percent: 1.0, clustered: true },
    Density { name: "1 % random", percent: 1.0, clustered: false },
    Density { name: "50 % clustered", percent: 50.0, clustered: true },
    Density { name: "50 % random", percent: 50.0, clustered: false },
    Density { name: "all", percent: 100.0, clustered: true },
];

/// A log of `pages` pages: 64 a word, the lowest page the least significant bit.
pub fn log_of(pages: u64, density: Density) -> Vec<u64> {
    let mut words = vec![0u64; usize::try_from(pages / 64).unwrap()];
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let share_of = |whole: u64| (density.percent / 100.0 * whole as f64) as u64;
    if density.percent >= 100.0 {
        words.fill(u64::MAX);
    } else if density.clustered {
        let limit = share_of(u64::MAX);
        for cluster in words.chunks_mut(8) {
            if random() < limit {
                cluster.fill(u64::MAX);
            }
        }
    } else if density.percent >= 50.0 {
        words.fill_with(random);
    } else {
        for _ in 0..share_of(pages) {
            let page = random() % pages;
            words[usize::try_from(page / 64).unwrap()] |= 1 << (page % 64);
        }
    }
    words
}
