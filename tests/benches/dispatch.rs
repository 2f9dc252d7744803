//! Look-ups and accesses in a map with many ranges, side by side with vm-memory's
//! `GuestMemoryMmap` of as many regions; and what a commit takes.
//!
//! `cargo bench -p integration-tests --bench dispatch [-- --all] [-- --rounds N]`
//!
//! Medians, in nanoseconds a piece, of fewer rounds where they do not fit three minutes, unless
//! `--all` is given; the last line is JSON.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use integration_tests::bench::{Budget, Extent, left_out};
use memory_region::{AddressSpace, MemoryMap, MmioDevice, RegionId, Tlb};
use ram_block::RamBlock;
use serde_json::{Value, json};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
};

#[derive(Parser)]
struct Options {
    /// Rounds of which the median is taken, at most
    #[arg(long, default_value_t = 51)]
    rounds: usize,
    #[command(flatten)]
    extent: Extent,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Every range has a page, and is two pages from the next.
const PAGE: u64 = 4096;
const STEP: u64 = 2 * PAGE;
const LOOKUPS: usize = 4096;

struct Nothing;

impl MmioDevice for Nothing {
    fn read(&self, _: u64, _: usize) -> u64 {
        7
    }

    fn write(&self, _: u64, _: usize, _: u64) {}
}

struct Bench {
    rounds: usize,
    budget: Budget,
    rows: Vec<Value>,
}

/// Ranges of the maps in which addresses are looked up.
const MAPS: [u64; 4] = [1, 10, 100, 1000];
/// Ranges of the maps that are changed.
const CHANGED: [u64; 4] = [10, 100, 1000, 10_000];
/// Regions of the maps of which one alias is moved.
const BANKED: [u64; 2] = [4, 50];
/// What is timed for each of these.
const PER_BANKED: usize = 3;
/// What is timed for each of [`MAPS`]: ours and the peer's look-ups and accesses.
const PER_MAP: usize = 13;

impl Bench {
    /// The median time of `work` for one of `pieces`, in nanoseconds.
    /// Not a number if the time is over.
    fn time(&mut self, pieces: usize, mut work: impl FnMut()) -> f64 {
        let Some(share) = self.budget.row(1.0, Instant::now()) else { return f64::NAN };
        let mut times = Vec::new();
        while share.goes_on(times.len(), self.rounds, Instant::now()) {
            let begin = Instant::now();
            work();
            times.push(begin.elapsed().as_secs_f64() * 1e9 / pieces as f64);
        }
        times.sort_unstable_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn row(&mut self, what: &str, ranges: u64, ours: f64, peer: Option<f64>) {
        if ours.is_nan() {
            return left_out(&format!("{what} {ranges}"));
        }
        let show = |time: Option<f64>| time.map_or(String::new(), |time| format!("{time:.1}"));
        let times = peer.map(|peer| peer / ours);
        println!("{what:<44} {ranges:>6} {ours:>10.1} {:>10} {:>8}", show(peer), show(times));
        self.rows.push(json!({ "what": what, "ranges": ranges, "ours": ours, "peer": peer }));
    }

    fn each<T>(&mut self, addresses: &[u64], mut access: impl FnMut(u64) -> T) -> f64 {
        self.time(addresses.len(), || {
            for address in addresses {
                black_box(access(black_box(*address)));
            }
        })
    }
}

fn map_of(ranges: u64) -> (Arc<MemoryMap>, Arc<AddressSpace>, Vec<RegionId>) {
    let memory = MemoryMap::new();
    let (root, regions) = memory
        .transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let ram = map.ram("ram", RamBlock::anonymous("ram", ranges * PAGE)?)?;
            let mut regions = Vec::new();
            for number in 0..ranges {
                let window = map.alias("window", ram, number * PAGE, PAGE.into())?;
                map.add_subregion_overlap(root, number * STEP, window, 0)?;
                regions.push(window);
            }
            Ok((root, regions))
        })
        .unwrap();
    let space = memory.address_space("space", root).unwrap();
    (memory, space, regions)
}

/// Switches the bank that an alias shows of a cartridge, among other regions.
fn switch_banks(bench: &mut Bench, regions: u64) {
    const SWITCHES: u64 = 256;
    let memory = MemoryMap::new();
    let (root, bank) = memory
        .transaction(|map| {
            let root = map.container("root", 1 << 64)?;
            let cartridge = map.rom("cartridge", RamBlock::anonymous("rom", 64 * PAGE)?)?;
            let bank = map.alias("bank", cartridge, 0, PAGE.into())?;
            map.add_subregion(root, 0, bank)?;
            // With the cartridge and its window.
            for number in 1..regions - 1 {
                let id = format!("ram{number}");
                let ram = map.ram(&id, RamBlock::anonymous(&id, PAGE)?)?;
                map.add_subregion(root, number * STEP, ram)?;
            }
            Ok((root, bank))
        })
        .unwrap();
    let space = memory.address_space("space", root).unwrap();
    let mut time = |what: &str, switch: &mut dyn FnMut(u64)| {
        let pieces = usize::try_from(SWITCHES).unwrap_or(usize::MAX);
        let each = || (0..SWITCHES).for_each(|number| switch(number % 64 * PAGE));
        let ours = bench.time(pieces, each);
        bench.row(what, regions, ours, None);
    };
    time("bank switch", &mut |at| memory.set_alias_offset(bank, at).unwrap());
    let mut tlb: Tlb = Tlb::new(&space);
    time("bank switch, two loads by a TLB", &mut |at| {
        memory.set_alias_offset(bank, at).unwrap();
        black_box(tlb.load_le::<u8>(0x10).unwrap());
        black_box(tlb.load_le::<u8>(STEP).unwrap());
    });
    drop(tlb);
    time("bank switch by a transaction", &mut |at| {
        memory.transaction(|map| map.set_alias_offset(bank, at)).unwrap();
    });
}

fn main() {
    let options = Options::parse();
    let _ = options.bench;
    let weight = (MAPS.len() * PER_MAP + CHANGED.len() + BANKED.len() * PER_BANKED) as f64;
    let budget = Budget::new(options.extent, weight, Instant::now());
    let mut bench = Bench { rounds: options.rounds, budget, rows: Vec::new() };
    println!("{:<44} {:>6} {:>10} {:>10} {:>8}", "ns", "ranges", "ours", "peer", "times");
    for ranges in MAPS {
        let (memory, space, _) = map_of(ranges);
        let layout: Vec<_> = (0..ranges)
            .map(|number| (GuestAddress(number * STEP), usize::try_from(PAGE).unwrap()))
            .collect();
        let peer = GuestMemoryMmap::<()>::from_ranges(&layout).unwrap();
        let atomic = GuestMemoryAtomic::new(peer.clone());
        let mut seed = 0x1234_5678_9abc_def1u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let scattered: Vec<u64> = (0..LOOKUPS)
            .map(|_| (random() % ranges) * STEP + (random() % (PAGE / 8)) * 8)
            .collect();
        let same = vec![scattered[0]; LOOKUPS];
        let view = space.view();
        for (pattern, addresses) in [("scattered", &scattered), ("one place", &same)] {
            let ours = bench.each(addresses, |at| view.section_at(at).is_some());
            let theirs = bench.each(addresses, |at| peer.find_region(GuestAddress(at)).is_some());
            bench.row(&format!("look-up, {pattern} (find_region)"), ranges, ours, Some(theirs));
            let ours = bench.each(addresses, |at| {
                let mut data = [0; 8];
                view.bus_read(at, &mut data).map(|()| u64::from_le_bytes(data)).ok()
            });
            let theirs = bench.each(addresses, |at| {
                let mut data = [0; 8];
                peer.read_slice(&mut data, GuestAddress(at)).map(|()| u64::from_le_bytes(data)).ok()
            });
            bench.row(&format!("read, kept view, {pattern} (Mmap)"), ranges, ours, Some(theirs));
            let ours = bench.each(addresses, |at| {
                let mut data = [0; 8];
                space.read(at, &mut data).map(|()| u64::from_le_bytes(data)).ok()
            });
            let theirs = bench.each(addresses, |at| {
                let mut data = [0; 8];
                let memory = atomic.memory();
                memory.read_slice(&mut data, GuestAddress(at)).map(|()| data).ok()
            });
            bench.row(
                &format!("read, current view, {pattern} (Atomic)"),
                ranges,
                ours,
                Some(theirs),
            );
        }
        let root = space.root();
        memory
            .transaction(|map| {
                let device = map.mmio("device", 0x1000, Arc::new(Nothing))?;
                map.add_subregion(root, 1 << 40, device)
            })
            .unwrap();
        let device = vec![(1 << 40) + 8; LOOKUPS];
        let ours = bench.each(&device, |at| space.read(at, &mut [0; 4]).is_ok());
        bench.row("read of a device", ranges, ours, None);
    }
    for ranges in CHANGED {
        let begin = Instant::now();
        let (memory, space, regions) = map_of(ranges);
        bench.row("first commit", ranges, begin.elapsed().as_secs_f64() * 1e9, None);
        let mut shown = true;
        let middle = regions[regions.len() / 2];
        let ours = bench.time(1, || {
            shown = !shown;
            memory.transaction(|map| map.set_enabled(middle, shown)).unwrap();
        });
        bench.row("commit of one change", ranges, ours, None);
        black_box(space.view());
    }
    for ranges in BANKED {
        switch_banks(&mut bench, ranges);
    }
    println!("{}", json!(bench.rows));
}
