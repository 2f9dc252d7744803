//! The same programs on a TLB and on an array.

use std::sync::Arc;
use std::time::Instant;

use memory_region::MemoryMap;
use ram_block::RamBlock;
use rv64::{Bus, CodePages, Exit, Hart, TlbBus, VecBus};

use crate::AnyError;

#[path = "../../benches/hart/programs.rs"]
mod programs;

use programs::{BASE, DATA, SIZE, data, memcpy, memset, quick_sort, sieve};

/// Runs a guest once; returns millions of instructions a second.
fn round<B: Bus>(hart: &mut Hart, bus: &mut B, data: &[u8]) -> Result<f64, AnyError> {
    for (at, word) in (DATA..).step_by(8).zip(data.chunks_exact(8)) {
        bus.store(at, u64::from_le_bytes(word.try_into()?)).map_err(|_| "no RAM")?;
    }
    hart.state.pc = BASE;
    let begin = Instant::now();
    let (exit, steps) = hart.run(bus, u64::MAX);
    let time = begin.elapsed();
    if exit != Exit::Wait {
        return Err("the guest does not end".into());
    }
    #[allow(clippy::cast_precision_loss)] // for people
    Ok(steps as f64 / time.as_secs_f64() / 1e6)
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints what each program makes of both, in turns: medians of `rounds`.
pub fn compare(rounds: u64) -> Result<(), AnyError> {
    let data = data();
    let programs = [
        ("memset", memset()),
        ("memcpy", memcpy()),
        ("quick sort", quick_sort()),
        ("sieve", sieve()),
    ];
    println!("{:>16}{:>10}{:>10}", "array", "TLB", "time");
    for (name, code) in &programs {
        let mut array = VecBus::new(BASE, usize::try_from(SIZE)?);
        array.bytes[..code.len()].copy_from_slice(code);
        let ram = RamBlock::anonymous("ram", SIZE)?;
        ram.populate(0..SIZE)?;
        ram.write(0, code)?;
        let map = MemoryMap::new();
        let root = map.transaction(|map| {
            let root = map.container("system", 1 << 64)?;
            let region = map.ram("ram", ram.clone())?;
            map.add_subregion(root, BASE, region)?;
            Ok(root)
        })?;
        let code = Arc::new(CodePages::new(&ram)?);
        let mut tlb = TlbBus::new(&map.address_space("hart", root)?, &code, ());
        let mut harts = [Hart::new(0, BASE), Hart::new(0, BASE)];
        let (mut by_array, mut by_tlb) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            by_array.push(round(&mut harts[0], &mut array, &data)?);
            by_tlb.push(round(&mut harts[1], &mut tlb, &data)?);
        }
        let (array, tlb) = (median(by_array), median(by_tlb));
        println!("{name:<11}{array:>5.0}{tlb:>10.0}{:>9.2}x", array / tlb);
    }
    Ok(())
}
