//! Two clients that clear the same page, step by step, with a guest that writes it between
//! them; on a fake KVM, and on a real one if the host has it. The policy that loses the
//! page is kept to show that the steps detect it.

use std::any::Any;
use std::sync::{Arc, Mutex};

#[cfg(target_arch = "x86_64")]
use kvm_ioctls::{Kvm, VmFd};
use memory_region::{GlobalLogClaim, MemoryMap, RegionId};
use ram_block::{DirtyClient, PageSize, RamBlock};

use super::fake_kvm::Paper;
use super::follower::{Follower, PaperSlots, Policy};
use crate::slots::table::{Mode, Slots};
use crate::sys::ioctl::SlotCalls;

const VGA: DirtyClient = DirtyClient::VGA;
const MODE: Mode = Mode::ManualProtect { chunk: 64 };
const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
/// The page that the guest writes, and the number of pages.
const PAGE: u64 = 5;
const PAGES: u64 = 256;

/// Where a client is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// At the map that the slots follow.
    Map,
    /// At another map that shows the block.
    OtherMap,
    /// At the block.
    Block,
    /// At the block, after it was on and off.
    Again,
}

const ANYWHERE: [From; 4] = [From::Map, From::OtherMap, From::Block, From::Again];

/// A guest's memory, of which KVM has one slot.
struct Machine<K> {
    map: Arc<MemoryMap>,
    ram: RegionId,
    block: Arc<RamBlock>,
    follower: Arc<Follower<K>>,
}

impl<K: SlotCalls + Send + 'static> Machine<K> {
    fn new(kvm: K, policy: Policy, block: &Arc<RamBlock>) -> Self {
        let map = MemoryMap::new();
        let (system, ram) = map
            .transaction(|map| {
                let system = map.container("system", 1 << 40)?;
                let ram = map.ram("ram", block.clone())?;
                map.add_subregion(system, 0, ram)?;
                Ok((system, ram))
            })
            .unwrap();
        let slots: PaperSlots = Slots::new(10, 1 << 30, MODE);
        let (kvm, slots) = (Mutex::new(kvm), Mutex::new(slots));
        let follower = Arc::new(Follower { kvm, slots, policy });
        let space = map.address_space("memory", system).unwrap();
        map.add_listener(&space, follower.clone()).unwrap();
        Self { map, ram, block: block.clone(), follower }
    }

    fn sync(&self) {
        self.map.sync_dirty_log(self.ram).unwrap();
    }

    /// Takes the page's bit and re-arms the page, without a sync.
    fn take(&self, log: &mut GlobalLogClaim) -> bool {
        let bytes = PageSize::host().bytes_of(&(PAGE..PAGE + 1));
        log.snapshot_and_clear(&self.block, bytes).unwrap().commit().is_dirty(PAGE)
    }

    /// Claims the logs of clients, and takes what they start with.
    fn start<const N: usize>(&self, clients: [DirtyClient; N]) -> [GlobalLogClaim; N] {
        let mut logs = clients.map(|client| self.map.claim_global_log(client).unwrap());
        for log in &mut logs {
            self.sync();
            log.snapshot_and_clear(&self.block, 0..self.block.len()).unwrap().commit();
        }
        logs
    }

    /// Whether the migration gets the guest's second write, between which and the first it
    /// has cleared the page itself.
    fn migration_gets_the_second_write(&self, store: impl Fn(&Follower<K>, u8)) -> bool {
        let [mut vga, mut migration] = self.start([VGA, MIGRATION]);
        store(&self.follower, 1);
        self.sync(); // both have the bit
        assert!(self.take(&mut migration), "the first write is sent");
        store(&self.follower, 2);
        assert!(self.take(&mut vga), "with the bit of the first write");
        self.sync();
        self.take(&mut migration)
    }

    /// Whether a client that is switched on gets a write to a page whose bit was reported, and not
    /// cleared, before.
    fn who_comes_gets_a_write(&self, from: From, store: impl Fn(&Follower<K>, u8)) -> bool {
        let at_block = || self.block.dirty().claim(VGA).unwrap();
        let before = (from == From::Again).then(at_block);
        let [mut migration] = self.start([MIGRATION]);
        store(&self.follower, 1);
        self.sync();
        drop(before);
        let _claim: Box<dyn Any> = match from {
            From::Map => Box::new(self.map.claim_log(self.ram, VGA).unwrap()),
            From::OtherMap => {
                let other = MemoryMap::new();
                let ram = other.transaction(|map| map.ram("ram", self.block.clone())).unwrap();
                Box::new(other.claim_log(ram, VGA).unwrap())
            }
            From::Block | From::Again => Box::new(at_block()),
        };
        // VGA reads the page here, and has no bit of it.
        assert!(!self.block.dirty().is_dirty(VGA, PAGE));
        store(&self.follower, 2);
        assert!(self.take(&mut migration));
        self.sync();
        self.block.dirty().is_dirty(VGA, PAGE)
    }
}

fn paper(policy: Policy) -> (Machine<Paper>, impl Fn(&Follower, u8)) {
    let page = PageSize::host().bytes();
    let block = RamBlock::anonymous("ram", PAGES * page).unwrap();
    let store = move |follower: &Follower, _: u8| {
        follower.kvm.lock().unwrap().store(PAGE * page, None).unwrap();
    };
    (Machine::new(Paper::new(MODE, 0), policy, &block), store)
}

#[test]
fn on_paper_the_second_write_is_kept_by_held_bits_alone() {
    let (machine, store) = paper(Policy::Held);
    assert!(machine.migration_gets_the_second_write(store));
    let (machine, store) = paper(Policy::Own);
    assert!(!machine.migration_gets_the_second_write(store), "the steps do not see the loss");
}

#[test]
fn on_paper_a_client_that_comes_is_not_robbed() {
    for from in ANYWHERE {
        let (machine, store) = paper(Policy::Held);
        assert!(machine.who_comes_gets_a_write(from, store), "{from:?}");
        let (machine, store) = paper(Policy::Own);
        assert!(!machine.who_comes_gets_a_write(from, store), "the steps do not see the loss");
    }
    // The map's own commit notifies the slots, too.
    for from in [From::OtherMap, From::Block, From::Again] {
        let (machine, store) = paper(Policy::Deaf);
        assert!(!machine.who_comes_gets_a_write(from, store), "{from:?}: no loss is seen");
    }
}

/// A machine of KVM without slots, if there is KVM with manual protection.
#[cfg(target_arch = "x86_64")]
fn machine() -> Option<VmFd> {
    let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => vm,
        Err(error) if std::env::var("REQUIRE_KVM").is_ok_and(|value| value == "1") => {
            panic!("no KVM: {error}")
        }
        Err(error) => {
            println!("skipped: no KVM: {error}");
            return None;
        }
    };
    use crate::config::{DirtyTracking, KvmConfig};
    use crate::tracking::choose;
    let tracking = DirtyTracking::ManualProtect;
    match choose(&vm, &KvmConfig { tracking, ..KvmConfig::default() }) {
        Ok(_) => Some(vm),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// On KVM itself, with a guest that stores a byte to the page and halts.
#[cfg(target_arch = "x86_64")]
fn real(vm: VmFd, policy: Policy) -> (Machine<VmFd>, impl Fn(&Follower<VmFd>, u8)) {
    use kvm_ioctls::VcpuExit;

    const CODE: u64 = 0x1000;
    let page = PageSize::host().bytes();
    let block = RamBlock::anonymous("ram", PAGES * page).unwrap();
    // Real mode: stores al at di, and halts.
    block.write(CODE, &[0x88, 0x05, 0xf4]).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut special = vcpu.get_sregs().unwrap();
    (special.cs.base, special.cs.selector) = (0, 0);
    vcpu.set_sregs(&special).unwrap();
    let (vcpu, memory) = (Mutex::new(vcpu), block.clone());
    let store = move |_: &Follower<VmFd>, byte: u8| {
        let mut vcpu = vcpu.lock().unwrap();
        let mut registers = vcpu.get_regs().unwrap();
        (registers.rip, registers.rdi, registers.rflags) = (CODE, PAGE * page, 2);
        registers.rax = byte.into();
        vcpu.set_regs(&registers).unwrap();
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Hlt));
        let mut found = [0];
        memory.read(PAGE * page, &mut found).unwrap();
        assert_eq!(found, [byte]);
    };
    (Machine::new(vm, policy, &block), store)
}

#[test]
#[cfg(target_arch = "x86_64")]
fn on_kvm_writes_are_kept_by_held_bits_alone() {
    for (policy, kept) in [(Policy::Held, true), (Policy::Own, false)] {
        let Some(vm) = machine() else { return };
        let (race, store) = real(vm, policy);
        assert_eq!(race.migration_gets_the_second_write(store), kept, "{policy:?}");
        for from in ANYWHERE {
            let Some(vm) = machine() else { return };
            let (race, store) = real(vm, policy);
            assert_eq!(race.who_comes_gets_a_write(from, store), kept, "{policy:?}, {from:?}");
        }
    }
    for from in [From::OtherMap, From::Block, From::Again] {
        let Some(vm) = machine() else { return };
        let (race, store) = real(vm, Policy::Deaf);
        assert!(!race.who_comes_gets_a_write(from, store), "{from:?}: no loss is seen");
    }
}
