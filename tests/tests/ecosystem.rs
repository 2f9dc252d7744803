//! Crates that know vm-memory and nothing of us, in the memory of an address space: what
//! they write is in the migration bitmap.

use std::io::Write;
use std::sync::{Arc, Mutex};

use machines::queue::Driver;
use memory_region::{
    AccessSizes, AddressSpace, GlobalLogClaim, MemoryMap, MmioAccess, MmioDevice, RegionId,
};
use ram_block::{DirtyClient, RamBlock};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddressSpace};
use vm_superio::{Serial, Trigger};

const HIGH: u64 = 1 << 32;
const MIB: u64 = 1 << 20;

/// RAM of 8 MiB, the second half of which is at 4 GiB, and a ROM at the top of the first.
struct Board {
    memory: Arc<MemoryMap>,
    root: RegionId,
    space: Arc<AddressSpace>,
    ram: Arc<RamBlock>,
    log: GlobalLogClaim,
}

impl Board {
    fn new() -> Self {
        let memory = MemoryMap::new();
        let ram = RamBlock::anonymous("ram", 8 * MIB).unwrap();
        let root = memory
            .transaction(|map| {
                let root = map.container("system", 1 << 64)?;
                let region = map.ram("ram", ram.clone())?;
                let low = map.alias("low", region, 0, 4 << 20)?;
                let high = map.alias("high", region, 4 * MIB, 4 << 20)?;
                let rom = map.rom("rom", RamBlock::anonymous("rom", MIB)?)?;
                map.add_subregion(root, 0, low)?;
                map.add_subregion(root, HIGH, high)?;
                map.add_subregion(root, HIGH - MIB, rom)?;
                Ok(root)
            })
            .unwrap();
        let log = memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
        let space = memory.address_space("memory", root).unwrap();
        Self { memory, root, space, ram, log }
    }

    /// The pages of RAM that were written since the last look.
    fn written(&mut self) -> Vec<u64> {
        let harvest = self.log.snapshot_and_clear(&self.ram, 0..self.ram.len());
        harvest.unwrap().commit().pages().collect()
    }

    /// The pages of RAM with these bytes, given as offsets in the block.
    fn pages(&self, bytes: std::ops::Range<u64>) -> Vec<u64> {
        self.ram.page_size().pages_spanned(bytes.start, bytes.end - bytes.start).collect()
    }
}

/// Kernels for x86, which linux-loader loads on that processor only.
#[cfg(target_arch = "x86_64")]
mod kernels {
    use std::io::Cursor;

    use linux_loader::loader::bzimage::BzImage;
    use linux_loader::loader::{Cmdline, Elf, KernelLoader, load_cmdline};

    use vm_memory::GuestAddress;

    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect()
    }

    /// An ELF executable of one segment (System V ABI: a header of 64 bytes, a program header
    /// of 56).
    fn elf(address: u64, code: &[u8]) -> Vec<u8> {
        let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
        image.resize(16, 0);
        let half = |image: &mut Vec<u8>, values: &[u16]| {
            values.iter().for_each(|value| image.extend(value.to_le_bytes()));
        };
        let word = |image: &mut Vec<u8>, values: &[u64]| {
            values.iter().for_each(|value| image.extend(value.to_le_bytes()));
        };
        half(&mut image, &[2, 62, 1, 0]); // executable, x86-64, version 1
        word(&mut image, &[address, 64, 0]); // entry, program headers, section headers
        half(&mut image, &[0, 0, 64, 56, 1, 64, 0, 0]);
        half(&mut image, &[1, 0, 5, 0]); // a segment to load, readable and executable
        let len = code.len() as u64;
        word(&mut image, &[120, address, address, len, len, 0x1000]);
        image.extend(code);
        image
    }

    #[test]
    fn linux_loader_loads_an_elf_and_a_command_line() {
        let mut board = Board::new();
        let code = pattern(20_000);
        let memory = board.space.memory();
        let image = elf(0x10_0800, &code);
        let start = Some(GuestAddress(MIB));
        let loaded = Elf::load(memory.ram(), None, &mut Cursor::new(&image), start).unwrap();
        assert_eq!(loaded.kernel_load, GuestAddress(0x10_0800));
        assert_eq!(board.written(), board.pages(0x10_0800..0x10_0800 + 20_000));
        let mut text = Cmdline::new(64).unwrap();
        text.insert_str("console=ttyS0").unwrap();
        load_cmdline(memory.ram(), GuestAddress(0x2_0ff8), &text).unwrap();
        assert_eq!(board.written(), board.pages(0x2_0ff8..0x2_0ff8 + 14));
        let mut back = vec![0; code.len()];
        board.space.read(0x10_0800, &mut back).unwrap();
        assert_eq!(back, code);
        // Where no RAM is, nothing is loaded.
        let image = elf(HIGH - MIB, &code);
        assert!(Elf::load(memory.ram(), None, &mut Cursor::new(&image), start).is_err());
        assert_eq!(board.written(), [0; 0]);
    }

    #[test]
    fn linux_loader_loads_a_bzimage() {
        let mut board = Board::new();
        // Linux boot protocol: a setup of two sectors, then the kernel, to be loaded high.
        let mut image = vec![0; 2 * 512];
        image[0x1f1] = 1;
        image[0x202..0x208].copy_from_slice(&[b'H', b'd', b'r', b'S', 0x0c, 0x02]);
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x20_0000u32.to_le_bytes());
        let kernel = pattern(100_000);
        image.extend(&kernel);
        let memory = board.space.memory();
        let start = Some(GuestAddress(MIB));
        let loaded = BzImage::load(memory.ram(), None, &mut Cursor::new(&image), start).unwrap();
        assert_eq!(loaded.kernel_load, GuestAddress(0x20_0000));
        assert_eq!(board.written(), board.pages(0x20_0000..0x20_0000 + 100_000));
        let mut back = vec![0; kernel.len()];
        board.ram.read(0x20_0000, &mut back).unwrap();
        assert_eq!(back, kernel);
    }
}

#[test]
fn virtio_queue_serves_a_virtqueue() {
    let mut board = Board::new();
    let space = board.space.clone();
    let mut driver = Driver::new(&space, 0x3_0000);
    driver.offer(HIGH + 0x5000, 9000);
    driver.offer(0x8_0100, 16);
    board.written();

    let mut queue = Queue::new(Driver::SIZE).unwrap();
    let halves = |address: u64| {
        let [low, high] = [address, address >> 32].map(|half| u32::try_from(half & 0xffff_ffff));
        (low.ok(), high.ok())
    };
    let (low, high) = halves(0x3_0000);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(driver.available());
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(driver.used());
    queue.set_used_ring_address(low, high);
    queue.set_ready(true);
    let memory = board.space.memory();
    assert!(queue.is_valid(&*memory));
    let mut served = 0;
    while let Some(chain) = queue.pop_descriptor_chain(board.space.memory()) {
        let head = chain.head_index();
        let mut len = 0;
        for descriptor in chain.writable() {
            let bytes = vec![0x5a; usize::try_from(descriptor.len()).unwrap()];
            memory.write_slice(&bytes, descriptor.addr()).unwrap();
            len += descriptor.len();
        }
        queue.add_used(&*memory, head, len).unwrap();
        served += 1;
    }
    assert_eq!((served, driver.used_count()), (2, 2));
    let buffers =
        [board.pages(0x8_0100..0x8_0110), board.pages(4 * MIB + 0x5000..4 * MIB + 0x5000 + 9000)];
    assert_eq!(
        board.written(),
        [vec![driver.used() / board.ram.page_size().bytes()], buffers.concat()].concat()
    );
}

/// A console's output in guest memory, where a driver looks for it.
struct InGuest {
    space: Arc<AddressSpace>,
    next: u64,
}

impl Write for InGuest {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.space.write(self.next, data).map_err(std::io::Error::other)?;
        self.next += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = ();

    fn trigger(&self) -> Result<(), ()> {
        Ok(())
    }
}

/// A serial port of vm-superio as a device.
struct Uart<W: Write>(Mutex<Serial<NoInterrupt, vm_superio::serial::NoEvents, W>>);

impl<W: Write + Send> MmioDevice for Uart<W> {
    fn read(&self, offset: u64, _: usize) -> u64 {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        self.0.lock().unwrap().read(register).into()
    }

    fn write(&self, offset: u64, _: usize, value: u64) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        self.0.lock().unwrap().write(register, value.to_le_bytes()[0]).unwrap();
    }

    fn access(&self) -> MmioAccess {
        let bytes = AccessSizes::aligned(1, 1);
        MmioAccess { implemented: bytes, ..MmioAccess::default() }
    }
}

#[test]
fn vm_superio_serves_a_serial_port() {
    let mut board = Board::new();
    let sink = InGuest { space: board.space.clone(), next: HIGH + 0x1_0000 };
    let uart = Arc::new(Uart(Mutex::new(Serial::new(NoInterrupt, sink))));
    let ports = board
        .memory
        .transaction(|map| {
            let ports = map.container("ports", 1 << 16)?;
            let com1 = map.mmio("com1", 8, uart.clone())?;
            map.add_subregion(ports, 0x3f8, com1)?;
            // And at an address, as other machines have it.
            let window = map.alias("uart", com1, 0, 8)?;
            map.add_subregion(board.root, 0xd000_0000, window)?;
            Ok(ports)
        })
        .unwrap();
    let ports = board.memory.address_space("io", ports).unwrap();
    for byte in b"Hello, " {
        ports.write(0x3f8, &[*byte]).unwrap();
    }
    for byte in b"world" {
        board.space.write(0xd000_0000, &[*byte]).unwrap();
    }
    let mut text = [0; 12];
    board.space.read(HIGH + 0x1_0000, &mut text).unwrap();
    assert_eq!(&text, b"Hello, world");
    assert_eq!(board.written(), board.pages(4 * MIB + 0x1_0000..4 * MIB + 0x1_000c));
    // The line status says that the transmitter is empty; two registers in one access.
    let mut status = [0; 2];
    ports.read(0x3fd, &mut status).unwrap();
    assert_eq!(status[0] & 0x60, 0x60);
}
