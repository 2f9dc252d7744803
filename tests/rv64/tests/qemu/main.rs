//! Random programs on our hart and on QEMU's (Debian: `qemu-system-misc`): registers and memory
//! are the same. `REQUIRE_QEMU_RISCV=1` makes it an error if QEMU is missing.

use std::process::{Command, ExitCode};
use std::sync::Arc;

use memory_region::MemoryMap;
use ram_block::RamBlock;
use rv64::{Bus, CodePages, Hart, TlbBus, VecBus};

use runner::{BASE, Image, SIZE};
use support::Need;

mod generate;
mod runner;
#[path = "../support/mod.rs"]
mod support;

const QEMU: &str = "qemu-system-riscv64";
/// Without the extensions that we do not have.
const CPU: &str = "rv64,f=off,d=off,h=off,v=off,zba=off,zbb=off,zbc=off,zbs=off";
const PROGRAMS: u64 = 2500;

fn main() -> ExitCode {
    let need = Need { missing: support::cannot_run(QEMU), required_by: "REQUIRE_QEMU_RISCV" };
    let tests: &[support::Test] = &[
        ("random_programs_do_the_same_as_on_qemu", || same_as_qemu(1)),
        ("other_random_programs_do_the_same_as_on_qemu", || same_as_qemu(seed())),
    ];
    support::run(&[("an_array_and_a_tlb_are_the_same", array_and_tlb)], &need, tests)
}

/// Of programs that differ from run to run.
fn seed() -> u64 {
    let seed = std::env::var("RV64_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = seed.unwrap_or_else(now);
    println!("RV64_SEED={seed} repeats these programs");
    seed
}

/// What QEMU makes of an image: its RAM is a file.
fn on_qemu(image: &Image) -> Vec<u8> {
    let path = std::env::temp_dir().join(format!("rv64-qemu-{}-{}", std::process::id(), image.end));
    let name = format!("{}-{:?}", path.display(), std::thread::current().id());
    let mut ram = image.bytes.clone();
    // Beyond the image QEMU puts its device tree.
    ram.resize(2 * SIZE, 0);
    std::fs::write(&name, ram).unwrap();
    let backend = format!("memory-backend-file,id=ram,mem-path={name},size=32M,share=on");
    let arguments =
        ["-M", "virt,memory-backend=ram", "-m", "32M", "-cpu", CPU, "-bios", "none", "-display"];
    let output = Command::new("timeout")
        .args(["120", QEMU])
        .args(arguments)
        .args(["none", "-serial", "null", "-monitor", "none", "-object", &backend])
        .output()
        .unwrap();
    let mut ram = std::fs::read(&name).unwrap();
    std::fs::remove_file(&name).unwrap();
    assert!(output.status.success(), "{output:?}");
    ram.truncate(SIZE);
    ram
}

fn run<B: Bus>(image: &Image, bus: &mut B) -> Hart {
    let mut hart = Hart::new(0, BASE);
    let mut steps = 0;
    while hart.state.pc != image.end {
        hart.run(bus, 1000);
        steps += 1000;
        assert!(steps < 100_000_000, "the image does not end");
    }
    hart
}

fn on_array(image: &Image) -> Vec<u8> {
    let mut bus = VecBus::new(BASE, SIZE);
    bus.bytes.copy_from_slice(&image.bytes);
    run(image, &mut bus);
    bus.bytes
}

fn on_tlb(image: &Image) -> Vec<u8> {
    let map = MemoryMap::new();
    let ram = RamBlock::anonymous("ram", SIZE as u64).unwrap();
    ram.write(0, &image.bytes).unwrap();
    let root = map.transaction(|map| {
        let root = map.container("system", 1 << 64)?;
        let region = map.ram("ram", ram.clone())?;
        map.add_subregion(root, BASE, region)?;
        Ok(root)
    });
    let space = map.address_space("hart", root.unwrap()).unwrap();
    let code = Arc::new(CodePages::new(&ram).unwrap());
    run(image, &mut TlbBus::new(&space, &code, ()));
    let mut bytes = vec![0; SIZE];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

fn array_and_tlb() {
    for seed in 2..6 {
        let image = Image::new(seed, 500);
        let array = on_array(&image);
        image.assert_same(&on_tlb(&image), &array);
        assert!(array != image.bytes);
    }
}

fn same_as_qemu(seed: u64) {
    let image = Image::new(seed, PROGRAMS);
    let ours = on_array(&image);
    let theirs = image.corrected(&ours, on_qemu(&image));
    image.assert_same(&ours, &theirs);
    image.assert_same(&on_tlb(&image), &theirs);
}
