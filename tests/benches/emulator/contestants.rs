//! Memory as interpreters have it.

use std::sync::Arc;

use memory_region::{AddressSpace, FlatView, MemoryMap, Tlb};
use ram_block::{Claimant, DirtyClaim, DirtyClient, RamBlock};

/// Where RAM is in the machine's memory.
pub const BASE: u64 = 0x8000_0000;
pub const SIZE: u64 = 64 << 20;

/// Memory from [`BASE`] on; an access elsewhere is a fault.
pub trait Memory {
    fn load(&mut self, address: u64) -> Option<u64>;
    fn store(&mut self, address: u64, value: u64) -> Option<()>;

    /// Loads an instruction.
    #[inline(always)]
    fn fetch(&mut self, address: u64) -> Option<u64> {
        self.load(address)
    }
}

/// The emulator's own array, with the checks that safe Rust makes.
pub struct Array(pub Vec<u8>);

impl Array {
    pub fn new() -> Self {
        Self(vec![1; usize::try_from(SIZE).unwrap()])
    }
}

impl Memory for Array {
    #[inline(always)]
    fn load(&mut self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.wrapping_sub(BASE)).ok()?;
        let bytes = self.0.get(at..at.wrapping_add(8))?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    #[inline(always)]
    fn store(&mut self, address: u64, value: u64) -> Option<()> {
        let at = usize::try_from(address.wrapping_sub(BASE)).ok()?;
        self.0.get_mut(at..at.wrapping_add(8))?.copy_from_slice(&value.to_le_bytes());
        Some(())
    }
}

impl Memory for Tlb {
    #[inline(always)]
    fn load(&mut self, address: u64) -> Option<u64> {
        self.load_le(address).ok()
    }

    #[inline(always)]
    fn store(&mut self, address: u64, value: u64) -> Option<()> {
        self.store_le(address, value).ok()
    }

    #[inline(always)]
    fn fetch(&mut self, address: u64) -> Option<u64> {
        self.fetch_le(address).ok()
    }
}

impl Memory for Arc<AddressSpace> {
    #[inline(always)]
    fn load(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    #[inline(always)]
    fn store(&mut self, address: u64, value: u64) -> Option<()> {
        self.write(address, &value.to_le_bytes()).ok()
    }
}

impl Memory for Arc<FlatView> {
    #[inline(always)]
    fn load(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.bus_read(address, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    #[inline(always)]
    fn store(&mut self, address: u64, value: u64) -> Option<()> {
        self.bus_write(address, &value.to_le_bytes()).ok()
    }
}

impl Memory for Arc<RamBlock> {
    #[inline(always)]
    fn load(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address.wrapping_sub(BASE), &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    #[inline(always)]
    fn store(&mut self, address: u64, value: u64) -> Option<()> {
        self.write(address.wrapping_sub(BASE), &value.to_le_bytes()).ok()
    }
}

/// A machine with RAM, and clients that log it.
pub struct Machine {
    pub ram: Arc<RamBlock>,
    pub space: Arc<AddressSpace>,
    pub logs: Vec<DirtyClaim>,
}

impl Machine {
    pub fn new(clients: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let map = MemoryMap::new();
        let ram = RamBlock::anonymous("ram", SIZE)?;
        ram.populate(0..SIZE)?;
        let root = map.transaction(|map| {
            let root = map.container("system", 1 << 64)?;
            let region = map.ram("ram", ram.clone())?;
            map.add_subregion(root, BASE, region)?;
            Ok(root)
        })?;
        let space = map.address_space("hart", root)?;
        let clients = [DirtyClient::VGA.into(), DirtyClient::MIGRATION.into()]
            .into_iter()
            .chain((0..5).map(|n| format!("log {n}").as_str().into()))
            .take(clients);
        let logs = clients.map(|client: Claimant| ram.dirty().claim(client));
        let logs = logs.collect::<Result<_, _>>()?;
        Ok(Self { ram, space, logs })
    }
}
