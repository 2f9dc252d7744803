//! Hooks of code watches that resize blocks.
#![cfg(not(target_family = "wasm"))] // has no threads

use std::sync::{Arc, Barrier, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use ram_block::RamBlock;

/// A resize holds no lock while it reports pages to a hook.
#[test]
fn hooks_that_resize_each_others_blocks_do_not_wait_for_each_other() {
    const PAGE: u64 = 65_536; // of any host
    let (done, end) = mpsc::channel();
    // A thread that hangs is left behind.
    thread::spawn(move || {
        let block =
            |name| RamBlock::builder(name, 8 * PAGE).max_len(16 * PAGE).anonymous().unwrap();
        let blocks = [block("a"), block("b")];
        let (both, met) = (Arc::new(Barrier::new(2)), Arc::new([const { OnceLock::new() }; 2]));
        let watch = |at: usize| {
            let (other, both, met) = (Arc::downgrade(&blocks[1 - at]), both.clone(), met.clone());
            let hook = move |_| {
                if met[at].set(()).is_ok() {
                    both.wait();
                }
                other.upgrade().into_iter().for_each(|other| other.resize(4 * PAGE).unwrap());
            };
            let watch = blocks[at].dirty().watch_code(hook).unwrap();
            watch.watch(0..blocks[at].pages()).unwrap();
            watch
        };
        let _watches = [watch(0), watch(1)];
        let resize = |block: &Arc<RamBlock>| block.resize(4 * PAGE).unwrap();
        thread::scope(|scope| {
            blocks.iter().for_each(|block| drop(scope.spawn(|| resize(block))));
        });
        done.send(()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(60)).expect("hooks wait for each other");
}
