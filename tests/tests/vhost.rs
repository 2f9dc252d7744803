//! A vhost-user back end of the `vhost-user-backend` crate writes guest memory on its own,
//! in a log that both share: its writes are in the bitmap of every client.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use machines::deadline::seconds;
use machines::queue::Driver;
use memory_region::{ExternalDirtyLogListener, MapError, MemoryMap, VhostLog};
use ram_block::{DirtyClient, RamBlock};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, Listener, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MIB: u64 = 1 << 20;
const HIGH: u64 = 1 << 32;
const LOG_ALL: u64 = 1 << 26;
const VERSION_1: u64 = 1 << 32;

type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;

/// A device that fills whatever it is offered.
#[derive(Default)]
struct Filler {
    memory: Option<Memory>,
}

impl VhostUserBackendMut for Filler {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringRwLock<Memory>;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        Driver::SIZE.into()
    }

    fn features(&self) -> u64 {
        VERSION_1 | LOG_ALL | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _: bool) {}

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        _: u16,
        _: EventSet,
        vrings: &[Self::Vring],
        _: usize,
    ) -> io::Result<()> {
        let memory = self.memory.as_ref().ok_or(io::ErrorKind::NotConnected)?.memory();
        let mut vring = vrings[0].get_mut();
        while let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let mut len = 0;
            for descriptor in chain.writable() {
                let bytes = vec![0x5a; usize::try_from(descriptor.len()).unwrap()];
                memory.write_slice(&bytes, descriptor.addr()).map_err(io::Error::other)?;
                len += descriptor.len();
            }
            vring.add_used(head, len).map_err(io::Error::other)?;
        }
        vring.signal_used_queue()
    }
}

/// Starts the back end at a socket of its own; returns it with the front end's connection.
fn connect() -> (VhostUserDaemon<Arc<Mutex<Filler>>>, Frontend) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Arc::new(Mutex::new(Filler::default()));
    let mut daemon = VhostUserDaemon::new("filler".to_owned(), backend, memory).unwrap();
    let path = std::env::temp_dir().join(format!("vhost-{}", std::process::id()));
    let mut listener = Listener::new(&path, true).unwrap();
    let frontend = std::thread::spawn({
        let path = path.clone();
        move || Frontend::connect(&path, 1).unwrap()
    });
    daemon.start(&mut listener).unwrap();
    (daemon, frontend.join().unwrap())
}

#[test]
fn writes_of_a_back_end_reach_every_client() {
    let memory = MemoryMap::new();
    let ram = RamBlock::memfd("ram", 8 * MIB).unwrap();
    let (root, region) = memory
        .transaction(|map| {
            let root = map.container("system", 1 << 64)?;
            let region = map.ram("ram", ram.clone())?;
            let low = map.alias("low", region, 0, 4 << 20)?;
            let high = map.alias("high", region, 4 * MIB, 4 << 20)?;
            map.add_subregion(root, 0, low)?;
            map.add_subregion(root, HIGH, high)?;
            Ok::<_, MapError>((root, region))
        })
        .unwrap();
    let mut vga = memory.claim_log(region, DirtyClient::VGA).unwrap();
    let mut migration = memory.claim_global_log(DirtyClient::MIGRATION).unwrap();
    let space = memory.address_space("memory", root).unwrap();
    let mut driver = Driver::new(&space, 0x3_0000);

    // The front end: features, memory, log, queue.
    let (daemon, mut frontend) = connect();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    assert_ne!(features & LOG_ALL, 0);
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_features(features).unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    let view = space.view();
    let table: Vec<_> = view
        .ram()
        .iter()
        .map(|range| {
            let file = range.file_offset().unwrap();
            let host = view.ram().get_host_address(range.start_addr()).unwrap() as u64;
            VhostUserMemoryRegionInfo {
                guest_phys_addr: range.start_addr().0,
                memory_size: range.len(),
                userspace_addr: host,
                mmap_offset: file.start(),
                mmap_handle: file.file().as_raw_fd(),
            }
        })
        .collect();
    assert_eq!(table.len(), 2);
    frontend.set_mem_table(&table).unwrap();
    let log = VhostLog::new("vhost-log", view.ram()).unwrap();
    let shared = VhostUserDirtyLogRegion {
        mmap_size: log.block().len(),
        mmap_offset: 0,
        mmap_handle: log.block().file().unwrap().as_raw_fd(),
    };
    frontend.set_log_base(0, Some(shared)).unwrap();
    memory.add_listener(&space, ExternalDirtyLogListener::new(log)).unwrap();
    let host = |address| view.ram().get_host_address(GuestAddress(address)).unwrap() as u64;
    frontend.set_vring_num(0, Driver::SIZE).unwrap();
    let config = VringConfigData {
        queue_max_size: Driver::SIZE,
        queue_size: Driver::SIZE,
        flags: 0,
        desc_table_addr: host(0x3_0000),
        used_ring_addr: host(driver.used()),
        avail_ring_addr: host(driver.available()),
        log_addr: None,
    };
    frontend.set_vring_addr(0, &config).unwrap();
    frontend.set_vring_base(0, 0).unwrap();
    let [kick, call] = [EventFd::new(EFD_NONBLOCK), EventFd::new(EFD_NONBLOCK)].map(Result::unwrap);
    frontend.set_vring_call(0, &call).unwrap();
    frontend.set_vring_kick(0, &kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();

    let page = ram.page_size();
    let mut taken = || {
        let of_vga = vga.snapshot_and_clear(0..ram.len()).unwrap().commit();
        migration.sync().unwrap();
        let of_migration = migration.snapshot_and_clear(&ram, 0..ram.len()).unwrap().commit();
        [of_vga, of_migration].map(|taken| taken.pages().collect::<Vec<_>>())
    };
    for (round, (address, len)) in
        [(HIGH + 0x5000, 9000u32), (0x8_0100, 16), (HIGH + 4 * MIB - 4096, 4096)]
            .into_iter()
            .enumerate()
    {
        driver.offer(address, len);
        taken();
        kick.write(1).unwrap();
        let deadline = Instant::now() + seconds(30);
        while usize::from(driver.used_count()) <= round {
            assert!(Instant::now() < deadline, "the back end does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut byte = [0];
        space.read(address + u64::from(len) - 1, &mut byte).unwrap();
        assert_eq!(byte, [0x5a]);
        let offset = if address >= HIGH { address - HIGH + 4 * MIB } else { address };
        let mut expected: Vec<u64> = page.pages_spanned(offset, len.into()).collect();
        expected.push(page.page_of(driver.used()));
        expected.sort_unstable();
        // One client's sync does not eat the other's bits.
        let [of_vga, of_migration] = taken();
        assert_eq!((&of_vga, &of_migration), (&expected, &expected));
    }
    drop(frontend);
    drop(daemon);
}
