//! Whether memory is all zeros, at the speed at which it can be read.
//!
//! A guest may store to the memory meanwhile, so no reference to it is made: it is read by inline
//! assembly, which the compiler does not look into, or by volatile loads. They may see a concurrent
//! store in part, as another CPU would.
#![allow(unsafe_code)]

use crate::sys::volatile::VolatileBytes;

/// Bytes that a loop reads in one turn.
const TURN: usize = 256;

/// Bytes of a line of the CPU's cache, or of a part of one.
const LINE: usize = 64;

/// The lines of a page that are prefetched while the page so many pages before it is scanned: the
/// CPU prefetches by itself, but not across pages of 4 KiB.
const PREFETCHED_LINES: [usize; 2] = [0, LINE];
const PREFETCH_DISTANCE: usize = 2;

/// Whether `len` bytes from an address on are zero, both multiples of [`TURN`] and `len` not
/// zero.
///
/// # Safety
///
/// The bytes are mapped and may be read.
type Scan = unsafe fn(*const u8, usize) -> bool;

/// Loads 32 bytes at once. The first line is checked on its own: a page that is not zero usually
/// has something there. Wider registers are no faster: this is as fast as memory.
///
/// # Safety
///
/// As for [`Scan`], and the processor has AVX.
#[cfg(target_arch = "x86_64")]
unsafe fn avx(start: *const u8, len: usize) -> bool {
    let rest: usize;
    // SAFETY: reads the `len` bytes from `start` on, which are mapped as the caller guarantees, and
    // changes nothing but registers that a call may change.
    unsafe {
        std::arch::asm!(
            "vmovups ymm0, [rdi]",
            "vorps ymm0, ymm0, [rdi + 32]",
            "vptest ymm0, ymm0",
            "jnz 3f",
            "2:",
            "vmovups ymm0, [rdi]",
            "vmovups ymm1, [rdi + 32]",
            "vorps ymm0, ymm0, [rdi + 64]",
            "vorps ymm1, ymm1, [rdi + 96]",
            "vorps ymm0, ymm0, [rdi + 128]",
            "vorps ymm1, ymm1, [rdi + 160]",
            "vorps ymm0, ymm0, [rdi + 192]",
            "vorps ymm1, ymm1, [rdi + 224]",
            "vorps ymm0, ymm0, ymm1",
            "vptest ymm0, ymm0",
            "jnz 3f",
            "add rdi, {turn}",
            "sub rsi, {turn}",
            "jnz 2b",
            "3:",
            // What is left in the upper halves would slow down code that is compiled without AVX.
            "vzeroupper",
            inout("rdi") start => _,
            inout("rsi") len => rest,
            turn = const TURN,
            clobber_abi("sysv64"),
            options(readonly, nostack),
        );
    }
    rest == 0
}

/// Loads 8 bytes at once, which many CPUs do as fast as their memory allows.
///
/// # Safety
///
/// As for [`Scan`].
unsafe fn portable(start: *const u8, len: usize) -> bool {
    let any = |from: usize, len: usize| {
        (from..from + len).step_by(8).fold(0, |any, at| {
            // SAFETY: within the `len` bytes that the caller guarantees to be mapped.
            let word = unsafe { start.add(at) }.cast::<u64>();
            // SAFETY: as above; `start` is a multiple of `TURN`, so this is one of 8.
            any | unsafe { word.read_volatile() }
        })
    };
    any(0, LINE) == 0 && (0..len).step_by(TURN).all(|turn| any(turn, TURN) == 0)
}

fn best() -> Scan {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        return avx;
    }
    portable
}

/// Affects speed only, whatever the address.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, and it accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Which of the pages of `page` bytes, up to 64 of them, are zero: bit n is set if page n is.
///
/// The memory consists of whole pages, and starts at a multiple of their size.
pub(super) fn mask(memory: &VolatileBytes<'_>, page: usize) -> u64 {
    if page < TURN { mask_of_small(memory, page) } else { mask_by(best(), memory, page) }
}

/// Of pages of which several are a turn.
fn mask_of_small(memory: &VolatileBytes<'_>, page: usize) -> u64 {
    let is_zero = |n: &usize| {
        let mut bytes = [0; TURN];
        let copied = memory.part(n * page, page).map(|part| part.copy_to(&mut bytes[..page]));
        copied.is_some() && bytes == [0; TURN]
    };
    (0..(memory.len() / page).min(64)).filter(is_zero).fold(0, |mask, n| mask | 1 << n)
}

#[inline(always)]
fn mask_by(scan: Scan, memory: &VolatileBytes<'_>, page: usize) -> u64 {
    let start = memory.as_ptr().cast_const();
    assert!(page > 0 && page % TURN == 0 && start as usize % TURN == 0, "not whole turns");
    let mut mask = 0;
    for n in 0..(memory.len() / page).min(64) {
        let at = start.wrapping_add(n * page);
        for line in PREFETCHED_LINES {
            prefetch(at.wrapping_add(PREFETCH_DISTANCE * page + line));
        }
        // SAFETY: page `n` lies within the bytes, which are valid as long as they are borrowed;
        // the multiples were just checked, and `best` checks the CPU's features.
        mask |= u64::from(unsafe { scan(at, page) }) << n;
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::ram_block::RamBlock;
    use proptest::prelude::*;

    proptest! {
        /// Any bytes anywhere, by what is chosen here and portably.
        #[test]
        fn a_page_is_zero_if_each_byte_is(
            shift in 6..17u32,
            pages in 1..65usize,
            bytes in prop::collection::vec((any::<prop::sample::Index>(), 1..=u8::MAX), 0..20),
        ) {
            let page = 1 << shift;
            let len = pages * page;
            let ram = RamBlock::anonymous("ram", (len as u64).next_multiple_of(65536)).unwrap();
            let mut expected = u64::MAX >> (64 - pages);
            for (at, byte) in &bytes {
                let at = at.index(len);
                ram.write(at as u64, &[*byte]).unwrap();
                expected &= !(1 << (at / page));
            }
            let memory = ram.reserved(0..len as u64);
            prop_assert_eq!(mask(&memory, page), expected);
            if page >= TURN {
                prop_assert_eq!(mask_by(portable, &memory, page), expected);
            }
        }
    }

    /// Each byte of a page counts.
    #[test]
    fn no_byte_of_a_page_is_passed_over() {
        let ram = RamBlock::anonymous("ram", 1 << 16).unwrap();
        let memory = ram.reserved(0..4096);
        for at in 0..4096 {
            ram.write(at, &[1]).unwrap();
            assert_eq!((mask(&memory, 4096), mask_by(portable, &memory, 4096)), (0, 0), "{at}");
            ram.write(at, &[0]).unwrap();
            assert_eq!((mask(&memory, 4096), mask_by(portable, &memory, 4096)), (1, 1), "{at}");
        }
    }
}
