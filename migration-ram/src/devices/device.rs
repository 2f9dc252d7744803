//! Devices whose state is migrated with RAM.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Why a device cannot be saved or restored.
pub type DeviceError = Box<dyn Error + Send + Sync>;

/// A device (a vCPU, a display, a timer) whose state is a section of the stream.
///
/// The migration does not interpret a state: it is bytes with a name and a version. The source
/// calls [`save`](Self::save) when the machine is paused; the destination calls
/// [`restore`](Self::restore) when it has received the whole stream, in the stream's order.
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

    /// The instance id among sections of this name.
    fn instance(&self) -> u32 {
        0
    }

    /// The version of the state that [`save`](Self::save) returns, and the newest that
    /// [`restore`](Self::restore) accepts; the receiver refuses a newer one without calling it.
    fn version(&self) -> u32;

    /// How the receiver finds the end of the state.
    fn framing(&self) -> Framing {
        Framing::LengthPrefixed
    }

    /// Returns the state. The machine is paused.
    ///
    /// # Errors
    ///
    /// If the state cannot be read; the migration fails with it.
    fn save(&self) -> Result<Vec<u8>, DeviceError>;

    /// Loads a state of `version`, which is at most [`version`](Self::version). The machine does
    /// not run yet, its RAM is complete. The bytes come from the other host and are untrusted.
    ///
    /// # Errors
    ///
    /// If it is not a valid state of this device; the migration fails with it.
    fn restore(&self, version: u32, state: &[u8]) -> Result<(), DeviceError>;

    /// Returns the state in a form of the device's own, to be [put back](Self::roll_back) within
    /// this process. The machine is paused. By default what [`save`](Self::save) returns.
    ///
    /// A device that is checkpointed often need not encode its state: that of a vCPU, for example,
    /// is a structure.
    ///
    /// # Errors
    ///
    /// If the state cannot be read; no checkpoint is taken then.
    fn checkpoint(&self) -> Result<DeviceState, DeviceError> {
        let state = self.save()?;
        let bytes = state.len();
        Ok(DeviceState::new(state, bytes))
    }

    /// Puts back a state that [`checkpoint`](Self::checkpoint) of this device has returned. The
    /// machine is paused, its RAM is as it was then; it has run since, and may be in any state.
    /// Called many times with the same state.
    ///
    /// # Errors
    ///
    /// If it cannot be put back. The machine's memory is as it was then, devices after this one
    /// were not asked.
    fn roll_back(&self, state: &DeviceState) -> Result<(), DeviceError> {
        let bytes: &Vec<u8> = state.get()?;
        self.restore(self.version(), bytes)
    }
}

/// The state of a device in a form of its own, kept in this process.
pub struct DeviceState {
    value: Box<dyn Any + Send + Sync>,
    bytes: usize,
}

impl DeviceState {
    /// A state of any type, which takes about `bytes` bytes.
    pub fn new<T: Any + Send + Sync>(value: T, bytes: usize) -> Self {
        Self { value: Box::new(value), bytes }
    }

    /// The value that this was made of.
    ///
    /// # Errors
    ///
    /// If it is of another type.
    pub fn get<T: Any>(&self) -> Result<&T, DeviceError> {
        let wanted = std::any::type_name::<T>();
        self.value.downcast_ref().ok_or_else(|| format!("the state is not of type {wanted}").into())
    }

    /// How many bytes it takes, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl fmt::Debug for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceState({} bytes)", self.bytes)
    }
}

/// How a state is encoded in its section: the stream has no length field for sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Framing {
    /// A length in four bytes, big-endian, then that many bytes: 256 MiB at most.
    LengthPrefixed,
    /// Always this many bytes, as for the sections of QEMU's devices.
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
    /// `save` and `restore` are those of [`Device`]; the source calls only the first, the
    /// destination only the second.
    pub fn new(
        name: &str,
        save: impl Fn() -> Result<Vec<u8>, DeviceError> + Send + Sync + 'static,
        restore: impl Fn(u32, &[u8]) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Self {
        let (save, restore) = (Box::new(save), Box::new(restore));
        Self { name: name.to_owned(), instance: 0, version: 1, save, restore }
    }

    /// Sets the instance id.
    #[must_use]
    pub fn instance(mut self, instance: u32) -> Self {
        self.instance = instance;
        self
    }

    /// Sets the version of the state.
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
