//! A guest that runs beside the thread that measures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_accel::{Vcpu, VcpuEvent, VcpuKicker};

/// A vCPU that runs in a thread of its own, but while somebody wants it to stand still.
pub struct Running {
    pub vcpu: Arc<Mutex<Vcpu>>,
    kicker: VcpuKicker,
    still: Arc<(Mutex<bool>, Condvar)>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// While this exists, the vCPU stands still.
pub struct Still(Arc<(Mutex<bool>, Condvar)>);

fn set(still: &(Mutex<bool>, Condvar), to: bool) {
    *still.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    still.1.notify_all();
}

impl Drop for Still {
    fn drop(&mut self) {
        set(&self.0, false);
    }
}

impl Running {
    pub fn new(vcpu: Vcpu) -> Self {
        let kicker = vcpu.kicker();
        let vcpu = Arc::new(Mutex::new(vcpu));
        let still: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let ends = Arc::new(AtomicBool::new(false));
        let (cpu, gate, end) = (vcpu.clone(), still.clone(), ends.clone());
        let thread = thread::spawn(move || {
            loop {
                let wanted = gate.0.lock().unwrap_or_else(PoisonError::into_inner);
                drop(gate.1.wait_while(wanted, |still| *still));
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let event = cpu.lock().unwrap_or_else(PoisonError::into_inner).run();
                assert_eq!(event.unwrap(), VcpuEvent::Kicked);
            }
        });
        Self { vcpu, kicker, still, ends, thread: Some(thread) }
    }

    /// Brings the vCPU out of the guest.
    pub fn pause(&self) -> Still {
        set(&self.still, true);
        let still = Still(self.still.clone());
        self.kicker.kick();
        drop(self.vcpu.lock().unwrap_or_else(PoisonError::into_inner));
        still
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.kicker.kick();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the guest's thread panicked");
        }
    }
}
