//! The vCPUs of a machine, each on a thread of its own.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::error::KvmError;
use crate::locks::lock;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::vcpu::VcpuState;
use crate::vcpu::run::{Vcpu, VcpuEvent};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::vcpu::state::RollBack;
use crate::vcpu::thread::VcpuThread;

/// The vCPUs of a machine: started and stopped together, and saved while they are stopped. A clone
/// has the same ones.
///
/// [`KvmVm::pause`](crate::KvmVm::pause) is for a moment in which they are to stand still; `stop`
/// is for one in which their registers are read or set.
///
/// ```no_run
/// # fn example(
/// #     vm: std::sync::Arc<kvm_accel::KvmVm>,
/// #     buses: kvm_accel::Buses,
/// # ) -> Result<(), kvm_accel::KvmError> {
/// use kvm_accel::VcpuSet;
///
/// let vcpus = [vm.create_vcpu(0, buses.clone())?, vm.create_vcpu(1, buses)?];
/// let vcpus = VcpuSet::new(vcpus);
/// vcpus.start()?;
/// let stopped = vcpus.stop()?;
/// let states = vcpus.save()?;
/// println!("{} states", states.len());
/// drop(stopped); // they run on
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct VcpuSet(Arc<Mutex<Places>>);

#[derive(Default)]
struct Places {
    places: Vec<Place>,
    /// How many [`StoppedVcpus`] there are.
    stops: usize,
}

/// Where a vCPU is.
#[derive(Default)]
enum Place {
    Running(VcpuThread),
    /// With the event that ended its last run by itself, if one did.
    Stopped(Vcpu, Option<VcpuEvent>),
    /// Its run failed: it does not run again by itself.
    Failed(Vcpu),
    /// Its thread could not be started.
    #[default]
    Gone,
}

impl VcpuSet {
    /// The vCPUs, which do not run yet.
    pub fn new(vcpus: impl IntoIterator<Item = Vcpu>) -> Self {
        let places = vcpus.into_iter().map(|vcpu| Place::Stopped(vcpu, None)).collect();
        Self(Arc::new(Mutex::new(Places { places, stops: 0 })))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.0).places.len()
    }

    /// Lets those that are stopped run, each on a thread "vcpu" with its number. While a
    /// [`StoppedVcpus`] is kept, does nothing: they run when it is dropped.
    ///
    /// # Errors
    ///
    /// [`KvmError::Spawn`]: those before it run, and it is gone.
    pub fn start(&self) -> Result<(), KvmError> {
        lock(&self.0).start()
    }

    /// Stops all, with no access under way; they run on when the result is dropped, and if there
    /// are several results, the last one.
    ///
    /// Waits for the vCPUs' threads: a device's handler that uses the set meanwhile waits for
    /// itself.
    ///
    /// # Errors
    ///
    /// What the run of one of them returned: [`Vcpu::run`], or [`KvmError::Panicked`]. The others
    /// run on then. [`KvmError::PauseFromVcpu`] on the thread of one of them, in a handler.
    pub fn stop(&self) -> Result<StoppedVcpus, KvmError> {
        let mut inner = lock(&self.0);
        inner.stops += 1;
        let result = inner.stop();
        drop(inner);
        // After the lock: it takes it when it is dropped, after a failure here.
        let stopped = StoppedVcpus(self.clone());
        result.map(|()| stopped)
    }

    /// Whether one has ended by itself, since it was started last: [`stop`](Self::stop) says why if
    /// it failed, and [`events`](Self::events) else.
    pub fn is_finished(&self) -> bool {
        lock(&self.0).places.iter().any(|place| match place {
            Place::Running(thread) => thread.is_finished(),
            Place::Stopped(_, event) => event.is_some(),
            Place::Failed(_) | Place::Gone => true,
        })
    }

    /// The numbers of those that are stopped and had ended by themselves, and the events.
    pub fn events(&self) -> Vec<(u64, VcpuEvent)> {
        let event = |place: &Place| match place {
            Place::Stopped(vcpu, Some(event)) => Some((vcpu.id(), event.clone())),
            _ => None,
        };
        lock(&self.0).places.iter().filter_map(event).collect()
    }

    /// Calls `work` for each in turn, while all are stopped.
    ///
    /// # Errors
    ///
    /// [`KvmError::VcpuRuns`] if one is not stopped, before any call; those of `work`.
    pub fn each<T, E: From<KvmError>>(
        &self,
        mut work: impl FnMut(usize, &mut Vcpu) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let places = &mut lock(&self.0).places;
        let runs = |place: &Place| matches!(place, Place::Running(_) | Place::Gone);
        if let Some(index) = places.iter().position(runs) {
            return Err(KvmError::VcpuRuns { index }.into());
        }
        let vcpus = places.iter_mut().filter_map(|place| match place {
            Place::Stopped(vcpu, _) | Place::Failed(vcpu) => Some(vcpu),
            Place::Running(_) | Place::Gone => None,
        });
        vcpus.enumerate().map(|(index, vcpu)| work(index, vcpu)).collect()
    }

    /// The states of all, which are stopped.
    ///
    /// # Errors
    ///
    /// [`KvmError::VcpuRuns`], [`KvmError::State`].
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub fn save(&self) -> Result<Vec<VcpuState>, KvmError> {
        self.each(|_, vcpu| vcpu.save())
    }

    /// Makes these, which have not run yet, go on where others were saved.
    ///
    /// # Errors
    ///
    /// [`KvmError::VcpuRuns`], [`KvmError::VcpuCount`], [`KvmError::State`]. They are not fit to
    /// run then.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub fn restore(&self, states: &[VcpuState]) -> Result<(), KvmError> {
        self.check_count(states)?;
        self.each(|index, vcpu| vcpu.restore(&states[index])).map(drop)
    }

    /// Puts these back to states that were saved of them.
    ///
    /// # Errors
    ///
    /// As [`restore`](Self::restore).
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub fn roll_back(&self, states: &[VcpuState], when: RollBack) -> Result<(), KvmError> {
        self.check_count(states)?;
        self.each(|index, vcpu| vcpu.roll_back(&states[index], when)).map(drop)
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn check_count(&self, states: &[VcpuState]) -> Result<(), KvmError> {
        let (found, expected) = (states.len(), self.count());
        if found == expected { Ok(()) } else { Err(KvmError::VcpuCount { found, expected }) }
    }
}

impl Places {
    fn start(&mut self) -> Result<(), KvmError> {
        if self.stops > 0 {
            return Ok(());
        }
        for place in &mut self.places {
            match std::mem::take(place) {
                Place::Stopped(vcpu, _) => {
                    let name = format!("vcpu{}", vcpu.id());
                    *place = Place::Running(vcpu.spawn(&name)?);
                }
                other => *place = other,
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), KvmError> {
        for place in &self.places {
            if let Place::Running(thread) = place {
                if thread.is_current() {
                    return Err(KvmError::PauseFromVcpu { id: thread.id() });
                }
            }
        }
        for place in &self.places {
            if let Place::Running(thread) = place {
                thread.kicker().kick();
            }
        }
        let mut failed = None;
        for place in &mut self.places {
            *place = match std::mem::take(place) {
                Place::Running(thread) => match thread.stop() {
                    Ok((vcpu, event)) => {
                        Place::Stopped(vcpu, Some(event).filter(|e| *e != VcpuEvent::Kicked))
                    }
                    Err(error) => {
                        let (vcpu, error) = error.into_parts();
                        failed = failed.or(Some(error));
                        Place::Failed(vcpu)
                    }
                },
                other => other,
            };
        }
        failed.map_or(Ok(()), Err)
    }
}

/// As long as this is kept, the vCPUs of a [`VcpuSet`] are stopped; then they run on.
#[must_use = "the vCPUs run on when this is dropped"]
pub struct StoppedVcpus(VcpuSet);

impl StoppedVcpus {
    /// The machine has moved away: its vCPUs are dropped, and never run here again.
    pub fn for_good(self) {
        lock(&self.0.0).places.clear();
    }
}

impl Drop for StoppedVcpus {
    fn drop(&mut self) {
        let mut inner = lock(&self.0.0);
        inner.stops -= 1;
        if let Err(error) = inner.start() {
            log::error!("The machine does not go on: {error}");
        }
    }
}

impl fmt::Debug for VcpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuSet").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl fmt::Debug for StoppedVcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoppedVcpus").field(&self.0).finish()
    }
}
