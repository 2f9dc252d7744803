//! A machine of plain KVM with a flat copy of its memory, put back by a loop written by hand, by
//! dropping private pages, or by no more than what any way has to do.

use std::ops::Range;
use std::sync::Arc;

use kvm_accel::RollBack;
use kvm_accel::kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES,
    kvm_enable_cap,
};
use kvm_accel::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use machines::guest::{boot_descriptor, programs};
use machines::tracking::{RING_ENTRIES, TrackingMode};
use ram_block::RamBlock;

use crate::case::{ASKED, Contestant, LIST, Laps, PORT, Parts, pages_in_use, prepare};
use crate::raw::{self, Ring};
use crate::registers::Registers;

/// Words of a line of the cache.
const LINE: usize = 8;

/// How a case is undone.
#[derive(Clone, Copy, PartialEq)]
pub enum Undo {
    /// Bit by bit, with all registers.
    Loop,
    /// By giving the pages back to the host, with all registers.
    Drop,
    /// The pages are known, and only the calls that are needed are made.
    Least(RollBack),
}

/// The machine.
pub struct Raw {
    undo: Undo,
    way: TrackingMode,
    // Dropped in this order: the memory outlives what shows it.
    vcpu: VcpuFd,
    vm: VmFd,
    ram: Arc<RamBlock>,
    copy: Arc<RamBlock>,
    ring: Option<Ring>,
    registers: Registers,
    bitmap: Vec<u64>,
    /// Where in it the log is.
    log: Range<usize>,
    /// Pages of the last case, in the order of the log.
    pages: Vec<u64>,
    /// Of its first word that is dirty, and behind its last one.
    words: (usize, usize),
}

impl Raw {
    pub fn new(gib: u64, way: TrackingMode, pages: u64, undo: Undo, msrs: &[u32]) -> Self {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let enable = |cap: u32, argument: u64| {
            let args = [argument, 0, 0, 0];
            vm.enable_cap(&kvm_enable_cap { cap, args, ..Default::default() }).unwrap();
        };
        let entries = usize::try_from(RING_ENTRIES).unwrap();
        match way {
            TrackingMode::Bitmap => {}
            TrackingMode::Manual => enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1),
            TrackingMode::Ring => enable(KVM_CAP_DIRTY_LOG_RING, Ring::bytes(entries) as u64),
        }
        let copy = match undo {
            Undo::Drop => RamBlock::memfd("copy", gib << 30).unwrap(),
            _ => RamBlock::anonymous("copy", gib << 30).unwrap(),
        };
        let ram = match (undo, copy.file()) {
            (Undo::Drop, Some(file)) => {
                RamBlock::builder("ram", gib << 30).file_private(file, 0).unwrap()
            }
            _ => RamBlock::anonymous("ram", gib << 30).unwrap(),
        };
        raw::set_slot(&vm, &ram, KVM_MEM_LOG_DIRTY_PAGES);
        let vcpu = vm.create_vcpu(0).unwrap();
        let ring = (way == TrackingMode::Ring).then(|| Ring::new(&vcpu, entries));
        prepare(&ram, pages);
        let code = programs::store_and_report();
        boot_descriptor(&vcpu, &ram, machines::guest::CODE, &code, &[LIST, ASKED, PORT.into()]);
        pages_in_use(pages).for_each(|page| raw::copy_page(&ram, &copy, page));
        if undo == Undo::Drop {
            raw::drop_pages(&ram, 0, ram.pages());
        }
        let registers = Registers::save(&vm, &vcpu, msrs);
        let words = usize::try_from(ram.pages() / 64).unwrap();
        let bitmap = vec![0_u64; words + LINE];
        // The least is with a buffer at a line of the cache; by hand nobody thinks of that.
        let start = match undo {
            Undo::Least(_) => bitmap.as_ptr().align_offset(LINE * size_of::<u64>()),
            _ => 0,
        };
        let (log, pages, words) = (start..start + words, Vec::new(), (0, 0));
        Self { undo, way, vcpu, vm, ram, copy, ring, registers, bitmap, log, pages, words }
    }

    /// Reads the log. The bits are looked at later, but for a ring's.
    fn get(&mut self) {
        self.pages.clear();
        match &mut self.ring {
            Some(ring) => ring.harvest(&mut self.pages),
            None => {
                if self.undo == Undo::Loop || self.undo == Undo::Drop {
                    self.bitmap = vec![0; self.bitmap.len()];
                }
                raw::get_dirty_log(&self.vm, &mut self.bitmap[self.log.clone()]);
            }
        }
    }

    /// Finds the pages in the log, bit by bit.
    fn find(&mut self) {
        if self.way == TrackingMode::Ring {
            return;
        }
        self.words = (usize::MAX, 0);
        let log = &self.bitmap[self.log.clone()];
        for (n, word) in log.iter().enumerate().filter(|(_, word)| **word != 0) {
            self.words = (self.words.0.min(n), n + 1);
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                self.pages.push(n as u64 * 64 + bit);
            }
        }
    }

    fn clear(&self) {
        let ((first, end), log) = (self.words, &self.bitmap[self.log.clone()]);
        match self.way {
            TrackingMode::Bitmap => {}
            TrackingMode::Manual if first < end => {
                raw::clear_dirty_log(&self.vm, first as u64 * 64, &log[first..end]);
            }
            TrackingMode::Manual => {}
            TrackingMode::Ring => assert_eq!(raw::reset_rings(&self.vm), self.pages.len()),
        }
    }

    /// Gives the pages back to the host, neighbours together.
    fn drop_pages(&self) {
        let mut pages = self.pages.iter().copied().peekable();
        while let Some(first) = pages.next() {
            let mut count = 1;
            while pages.next_if_eq(&(first + count)).is_some() {
                count += 1;
            }
            raw::drop_pages(&self.ram, first, count);
        }
    }
}

impl Contestant for Raw {
    fn run(&mut self) {
        match self.vcpu.run().unwrap() {
            VcpuExit::IoOut(PORT, _) => {}
            other => panic!("{other:?}"),
        }
    }

    fn reset(&mut self) -> Parts {
        let mut laps = Laps::start();
        self.get();
        let mut get = laps.lap();
        self.find();
        // The least is without a look at the bits: the pages might be known.
        let found = laps.lap();
        if !matches!(self.undo, Undo::Least(_)) {
            get += found;
        }
        self.clear();
        let clear = laps.lap();
        if self.undo == Undo::Drop {
            self.drop_pages();
        } else {
            self.pages.iter().for_each(|page| raw::copy_page(&self.copy, &self.ram, *page));
        }
        let copy = laps.lap();
        match self.undo {
            Undo::Least(when) => self.registers.set_needed(&mut self.vcpu, when),
            _ => self.registers.set_all(&self.vcpu),
        }
        let state = laps.lap();
        let whole = get + clear + copy + state;
        Parts { whole, pages: self.pages.len() as u64, get, clear, copy, state }
    }

    fn ram(&self) -> &RamBlock {
        &self.ram
    }
}
