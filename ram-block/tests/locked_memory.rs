//! Blocks and bitmaps of a process that locks its memory (`mlock(2)`), as many VMMs do.
//!
//! `mlockall` concerns a whole process, so each way of locking has a process of its own: this
//! program, started again with `RAM_BLOCK_LOCK` set to the way.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)] // system calls that lock memory, and forbid advice on it

use std::fs::{File, OpenOptions};
use std::io;
use std::process::Command;
use std::sync::Arc;

use ram_block::{DirtyClient, DirtyError, DirtyMemory, HugePages, PageSize, RamBlock};

const LOCK: &str = "RAM_BLOCK_LOCK";
const LEN: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn lock_all(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a number only, and changes no contents.
    check(unsafe { libc::mlockall(flags) })
}

/// Locks the memory of `ram`, whose address is all that `mlock(2)` needs.
fn lock_block(ram: &RamBlock, on_fault: bool) -> io::Result<()> {
    let len = usize::try_from(ram.max_len()).unwrap();
    let flags = if on_fault { libc::MLOCK_ONFAULT } else { 0 };
    // SAFETY: the block is mapped for all of its greatest length; no contents change.
    check(unsafe { libc::mlock2(ram.host_address().cast(), len, flags) })
}

/// From now on `MADV_DONTNEED_LOCKED` fails: with EINVAL, as before Linux 5.18, or as a sandbox
/// says that does not know it.
fn forbid_dontneed_locked(errno: i32) {
    const DONTNEED_LOCKED: u32 = 24;
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: code.try_into().unwrap(), jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    // `struct seccomp_data`: the call's number at 0, the third argument's low half at 32.
    let mut filter = [
        statement(load, 0, 0, 0),
        statement(equal, 0, 3, u32::try_from(libc::SYS_madvise).unwrap()),
        statement(load, 0, 0, if cfg!(target_endian = "little") { 32 } else { 36 }),
        statement(equal, 0, 1, DONTNEED_LOCKED),
        statement(answer, 0, 0, libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap()),
        statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: filter.len().try_into().unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).unwrap();
    // SAFETY: the kernel reads the program, which lives during the call.
    check(unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    })
    .unwrap();
}

/// A file that is gone with its descriptor.
fn file(content: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("ram-block-locked-{}", std::process::id()));
    std::fs::write(&path, content).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

/// One block of each kind, half of it in use.
fn each_kind() -> Vec<(&'static str, Arc<RamBlock>)> {
    let content = vec![b'f'; usize::try_from(2 * LEN).unwrap()];
    let builder = || RamBlock::builder("ram", LEN).max_len(2 * LEN);
    // So large that there may be huge pages in it.
    let huge = |huge| RamBlock::builder("ram", 4 * MIB).max_len(8 * MIB).huge_pages(huge);
    vec![
        ("anonymous", builder().anonymous().unwrap()),
        ("memfd", builder().memfd().unwrap()),
        ("file", builder().file(file(&content), 0).unwrap()),
        ("file copy", builder().file_private(&file(&content), 0).unwrap()),
        ("transparent", huge(HugePages::Transparent).anonymous().unwrap()),
        ("transparent memfd", huge(HugePages::Transparent).memfd().unwrap()),
        ("pool", huge(HugePages::Pool).anonymous().unwrap()),
        ("pool memfd", huge(HugePages::Pool).memfd().unwrap()),
    ]
}

/// How many pages of the first `len` bytes of the block's memory are resident.
fn resident(ram: &RamBlock, len: u64) -> usize {
    let mut pages = vec![0u8; usize::try_from(ram.page_size().count(len)).unwrap()];
    let len = usize::try_from(len).unwrap();
    // SAFETY: the kernel writes a byte for each page of the range, as many as there are.
    check(unsafe { libc::mincore(ram.host_address().cast(), len, pages.as_mut_ptr()) }).unwrap();
    pages.iter().filter(|page| **page & 1 != 0).count()
}

fn bytes_at(ram: &RamBlock, offset: u64) -> [u8; 4] {
    let mut bytes = [0xff; 4];
    ram.read(offset, &mut bytes).unwrap();
    bytes
}

/// Uses all that allocates or frees memory; `gives` says whether locked memory is freed.
fn use_all(name: &str, ram: &RamBlock, gives: bool) {
    let client = DirtyClient::MIGRATION;
    let (dirty, page, len) = (ram.dirty(), ram.page_size().bytes(), ram.len());
    let (step, max) =
        (if ram.huge_pages() == HugePages::Pool { 2 * MIB } else { page }, ram.max_len());
    let is_dirty = |offset: u64| dirty.is_dirty(client, offset / page);
    let log = dirty.claim(client).unwrap();
    ram.populate(0..len).unwrap();
    for offset in (0..len).step_by(usize::try_from(page).unwrap()) {
        ram.write(offset, b"RAM!").unwrap();
    }
    log.snapshot_and_clear(0..ram.pages()).unwrap().commit();

    ram.discard(step, step).unwrap();
    assert!(is_dirty(step) && !is_dirty(0), "{name}: what is discarded is dirty");
    assert_eq!(bytes_at(ram, 2 * step - page), [0; 4], "{name}: discarded");
    assert_eq!((bytes_at(ram, 0), bytes_at(ram, 2 * step)), (*b"RAM!", *b"RAM!"), "{name}");
    ram.discard(0, len).unwrap();
    if gives {
        assert_eq!(resident(ram, len), 0, "{name}: what is discarded is given back");
    }
    assert_eq!(bytes_at(ram, len - page), [0; 4], "{name}: all discarded");

    ram.resize(max).unwrap();
    assert_eq!(bytes_at(ram, max - 4), [0; 4], "{name}: grown");
    assert!(is_dirty(max - page), "{name}: what is grown is dirty");
    ram.write(max - 4, b"more").unwrap();
    ram.resize(step).unwrap();
    ram.resize(max).unwrap();
    assert_eq!(bytes_at(ram, max - 4), [0; 4], "{name}: shrunk and grown again");
    ram.populate(0..max).unwrap();
    ram.write(0, b"RAM!").unwrap();
    ram.populate(0..max).unwrap();
    assert_eq!(bytes_at(ram, 0), *b"RAM!", "{name}: populated");

    dirty.merge(0, 64, &[2]).unwrap();
    drop(log);
    let _log = dirty.claim(client).unwrap();
    assert!(!(0..ram.pages()).any(|page| dirty.is_dirty(client, page)), "{name}: off and on");
    drop(dirty.watch_code(|_| ()).unwrap());
}

/// Whether a bitmap's memory is freed when its client is dropped.
fn bitmaps_are_given_back() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let dirty = DirtyMemory::new(1 << 28, PageSize::new(4096).unwrap());
    let before = resident();
    let log = dirty.claim("a log").unwrap();
    dirty.mark(0, 1 << 40);
    dirty.merge(0, 1 << 28, &vec![u64::MAX - 1; 1 << 22]).unwrap();
    assert!(resident() - before > 60 * MIB, "two parts of 32 MiB");
    drop(log);
    let kept = resident().saturating_sub(before);
    assert!(kept < 8 * MIB, "{kept} bytes are kept");
}

/// The way of locking that this process was started for.
fn run(way: &str) -> io::Result<()> {
    let at_once = libc::MCL_CURRENT | libc::MCL_FUTURE;
    let kinds = || each_kind().into_iter();
    match way {
        "nothing" => kinds().for_each(|(name, ram)| use_all(name, &ram, name == "anonymous")),
        "future" => {
            lock_all(at_once)?;
            kinds().for_each(|(name, ram)| use_all(name, &ram, name == "anonymous"));
            bitmaps_are_given_back();
        }
        "on fault" => {
            lock_all(at_once | libc::MCL_ONFAULT)?;
            kinds().for_each(|(name, ram)| use_all(name, &ram, name == "anonymous"));
            bitmaps_are_given_back();
        }
        "current" => {
            // What is there already when it is locked, and bitmaps that are not locked.
            let blocks = each_kind();
            lock_all(libc::MCL_CURRENT)?;
            blocks.iter().for_each(|(name, ram)| use_all(name, ram, *name == "anonymous"));
        }
        "old kernel" | "sandbox" | "sandbox without calls" => {
            lock_all(at_once)?;
            forbid_dontneed_locked(match way {
                "old kernel" => libc::EINVAL,
                "sandbox" => libc::EPERM,
                _ => libc::ENOSYS,
            });
            kinds().for_each(|(name, ram)| use_all(name, &ram, false));
        }
        "blocks" | "blocks on fault" => {
            for (name, ram) in kinds() {
                lock_block(&ram, way == "blocks on fault")?;
                use_all(name, &ram, name == "anonymous");
            }
        }
        "parts" => {
            // Advice meets locked memory in the middle of its range.
            for (name, ram) in kinds() {
                let part = usize::try_from(ram.len() / 2).unwrap();
                let middle = ram.host_address().wrapping_add(part);
                // SAFETY: the range lies within the block; no contents change.
                check(unsafe { libc::mlock(middle.cast(), part) })?;
                use_all(name, &ram, name == "anonymous");
            }
        }
        "limit" => limited()?,
        _ => panic!("no way of locking is called {way}"),
    }
    Ok(())
}

/// A process that may lock a few MiB of what it maps, and is not root.
fn limited() -> io::Result<()> {
    lock_all(libc::MCL_FUTURE | libc::MCL_ONFAULT)?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the limit, which lives during the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    limit.rlim_max = limit.rlim_max.min(8 * MIB);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads the limit, which lives during the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })?;
    // SAFETY: takes numbers only. As root a process may lock what it wants.
    check(unsafe { libc::setresuid(65534, 65534, 65534) })?;

    // The place that is reserved for its alignment is not counted beside it.
    let huge = HugePages::Transparent;
    drop(RamBlock::builder("ram", 4 * MIB).huge_pages(huge).anonymous().unwrap());
    let refused = RamBlock::anonymous("ram", 256 * MIB).unwrap_err();
    let source = std::error::Error::source(&refused).unwrap();
    assert!(source.to_string().contains("os error 11"), "{refused}: {source}");
    let dirty = DirtyMemory::new(1 << 40, PageSize::new(4096).unwrap());
    let refused = dirty.claim(DirtyClient::VGA).unwrap_err();
    assert!(matches!(refused, DirtyError::NoMemory { .. }), "{refused}");
    assert!(dirty.enabled().is_empty(), "a client that is refused is off");
    assert!(matches!(dirty.watch_code(|_| ()), Err(DirtyError::NoMemory { .. })));
    // What is left suffices for a small one, all the same.
    use_all("small", &RamBlock::builder("ram", LEN).max_len(2 * LEN).anonymous().unwrap(), true);
    Ok(())
}

/// Runs `way` in a process of its own; where it may not lock memory, says so.
fn in_a_process(way: &str) {
    let test = "each_way_of_locking";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(LOCK, way)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "locked by \"{way}\": {}\n{said}", output.status);
    if said.contains("SKIPPED") {
        eprintln!("locked by \"{way}\": {said}");
    }
}

/// Discard, resize, populate and the bitmaps' memory, however memory is locked.
#[test]
fn each_way_of_locking() {
    if let Ok(way) = std::env::var(LOCK) {
        if let Err(error) = run(&way) {
            println!("SKIPPED: {error}");
        }
        return;
    }
    let ways = ["nothing", "future", "on fault", "current", "old kernel", "blocks"];
    let more = ["blocks on fault", "parts", "limit", "sandbox", "sandbox without calls"];
    for way in ways.into_iter().chain(more) {
        in_a_process(way);
    }
}
