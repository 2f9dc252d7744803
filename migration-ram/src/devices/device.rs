//! Devices whose state travels with RAM.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// What a device says when it cannot be saved or restored.
pub type DeviceError = Box<dyn Error + Send + Sync>;

/// A device (a vCPU, a display, a timer) whose state is a section of the stream.
///
/// The migration knows no device: a state is bytes with a name and a version. The source
/// asks for it when the machine stands still; the destination hands it out when the whole
/// stream has come, in the stream's order.
///
/// # Example
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use migration_ram::{Device, DeviceError, Framing};
///
/// #[derive(Default)]
/// struct Counter(Mutex<u64>);
///
/// impl Device for Counter {
///     fn name(&self) -> &str {
///         "counter"
///     }
///     fn version(&self) -> u32 {
///         1
///     }
///     fn save(&self) -> Result<Vec<u8>, DeviceError> {
///         Ok(self.0.lock().unwrap().to_be_bytes().to_vec())
///     }
///     fn restore(&self, _version: u32, state: &[u8]) -> Result<(), DeviceError> {
///         *self.0.lock().unwrap() = u64::from_be_bytes(state.try_into()?);
///         Ok(())
///     }
/// }
/// ```
pub trait Device: Send + Sync {
    /// The section's name, 1 to 255 bytes, not "ram".
    fn name(&self) -> &str;

    /// Which of several sections of this name.
    fn instance(&self) -> u32 {
        0
    }

    /// The version of the state that [`save`](Self::save) gives, and the newest that
    /// [`restore`](Self::restore) takes; a newer one is refused before it is asked.
    fn version(&self) -> u32;

    /// How the receiver knows where the state ends.
    fn framing(&self) -> Framing {
        Framing::LengthPrefixed
    }

    /// The state. The machine stands still.
    ///
    /// # Errors
    ///
    /// If there is none to be had; the migration fails with it.
    fn save(&self) -> Result<Vec<u8>, DeviceError>;

    /// Takes a state over, of `version` or older. The machine does not run yet, its RAM is
    /// complete. The bytes are from outside: anything may stand in them.
    ///
    /// # Errors
    ///
    /// If it is no state of this device; the migration fails with it.
    fn restore(&self, version: u32, state: &[u8]) -> Result<(), DeviceError>;
}

/// How a state stands in its section: the stream has no lengths of its own for sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A length in four bytes, big-endian, then as many bytes: 256 MiB at most.
    LengthPrefixed,
    /// So many bytes, as the sections of QEMU's devices are.
    Fixed(u32),
}

/// The longest state, in bytes.
pub const MAX_STATE: u32 = 256 << 20;

type Save = Box<dyn Fn() -> Result<Vec<u8>, DeviceError> + Send + Sync>;
type Restore = Box<dyn Fn(u32, &[u8]) -> Result<(), DeviceError> + Send + Sync>;

/// A [`Device`] made of two closures.
pub struct FnDevice {
    name: String,
    instance: u32,
    version: u32,
    save: Save,
    restore: Restore,
}

impl FnDevice {
    /// A device of version 1 and instance 0.
    ///
    /// `save` and `restore` do what the [trait's](Device) do; the source uses only the first,
    /// the destination only the second.
    pub fn new(
        name: &str,
        save: impl Fn() -> Result<Vec<u8>, DeviceError> + Send + Sync + 'static,
        restore: impl Fn(u32, &[u8]) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Self {
        let (save, restore) = (Box::new(save), Box::new(restore));
        Self { name: name.to_owned(), instance: 0, version: 1, save, restore }
    }

    /// Which of several of this name.
    #[must_use]
    pub fn instance(mut self, instance: u32) -> Self {
        self.instance = instance;
        self
    }

    /// The version of its state.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }
}

impl fmt::Debug for FnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FnDevice({} {} v{})", self.name, self.instance, self.version)
    }
}

impl Device for FnDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn instance(&self) -> u32 {
        self.instance
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        (self.save)()
    }

    fn restore(&self, version: u32, state: &[u8]) -> Result<(), DeviceError> {
        (self.restore)(version, state)
    }
}

/// The devices of a machine, in the order in which they are sent.
#[derive(Clone, Default)]
pub(crate) struct Devices(pub(crate) Vec<Arc<dyn Device>>);

impl Devices {
    pub(crate) fn find(&self, name: &str, instance: u32) -> Option<&Arc<dyn Device>> {
        self.0.iter().find(|device| device.name() == name && device.instance() == instance)
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|device| (device.name(), device.instance()));
        f.debug_list().entries(names).finish()
    }
}
