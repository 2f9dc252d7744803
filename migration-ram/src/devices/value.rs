//! A device whose state is a value that serde knows.

use std::any::type_name;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::devices::device::{Device, DeviceError, DeviceState};

type Save<T> = Box<dyn Fn() -> Result<T, DeviceError> + Send + Sync>;
type Load<T> = Box<dyn Fn(&T) -> Result<(), DeviceError> + Send + Sync>;

/// A [`Device`] made of closures, whose state is a value that serde knows: the registers of vCPUs,
/// the chips of a virtual machine, a structure of one's own.
///
/// In a stream it is JSON; a checkpoint keeps the value itself.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use migration_ram::{Device, ValueDevice};
///
/// let timer = Arc::new(Mutex::new((7_u64, true)));
/// let (save, restore) = (timer.clone(), timer.clone());
/// let device = ValueDevice::new(
///     "timer",
///     move || Ok(*save.lock().unwrap()),
///     move |state| {
///         *restore.lock().unwrap() = *state;
///         Ok(())
///     },
/// );
/// let saved = device.save()?;
/// timer.lock().unwrap().0 = 8;
/// device.restore(1, &saved)?;
/// assert_eq!(*timer.lock().unwrap(), (7, true));
/// # Ok::<(), migration_ram::DeviceError>(())
/// ```
pub struct ValueDevice<T> {
    name: String,
    instance: u32,
    version: u32,
    save: Save<T>,
    restore: Load<T>,
    roll_back: Option<Load<T>>,
}

impl<T> ValueDevice<T> {
    /// A device of version 1 and instance 0.
    ///
    /// `save` and `restore` are those of [`Device`]; the source calls only the first, the
    /// destination only the second.
    pub fn new(
        name: &str,
        save: impl Fn() -> Result<T, DeviceError> + Send + Sync + 'static,
        restore: impl Fn(&T) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Self {
        let (save, restore) = (Box::new(save), Box::new(restore));
        Self { name: name.to_owned(), instance: 0, version: 1, save, restore, roll_back: None }
    }

    /// Sets the instance id.
    #[must_use]
    pub fn instance(mut self, instance: u32) -> Self {
        self.instance = instance;
        self
    }

    /// Sets the version of the state. A receiver takes older ones as far as serde can read them as
    /// values of the same type.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// How a state is put back that was saved of this same device, if that is not `restore`.
    #[must_use]
    pub fn roll_back(
        mut self,
        roll_back: impl Fn(&T) -> Result<(), DeviceError> + Send + Sync + 'static,
    ) -> Self {
        self.roll_back = Some(Box::new(roll_back));
        self
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Device for ValueDevice<T> {
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
        Ok(serde_json::to_vec(&(self.save)()?)?)
    }

    fn restore(&self, _version: u32, state: &[u8]) -> Result<(), DeviceError> {
        (self.restore)(&serde_json::from_slice(state)?)
    }

    fn checkpoint(&self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::new((self.save)()?, size_of::<T>()))
    }

    fn roll_back(&self, state: &DeviceState) -> Result<(), DeviceError> {
        self.roll_back.as_ref().unwrap_or(&self.restore)(state.get()?)
    }
}

impl<T> fmt::Debug for ValueDevice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, instance, version, .. } = self;
        write!(f, "ValueDevice({name} {instance} v{version}: {})", type_name::<T>())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is put back is told from what is restored; what is no value of the type is refused.
    #[test]
    fn a_value_is_restored_put_back_or_refused() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (restored, back) = (calls.clone(), calls.clone());
        let device = ValueDevice::new(
            "value",
            || Ok((7_u32, "seven".to_owned())),
            move |state: &(u32, String)| {
                restored.lock().unwrap().push(("restored", state.clone()));
                Ok(())
            },
        );
        let device = device.instance(3).version(9);
        let header: &dyn Device = &device;
        assert_eq!((header.name(), header.instance(), header.version()), ("value", 3, 9));
        let state = device.checkpoint().unwrap();
        device.restore(9, &device.save().unwrap()).unwrap();
        Device::roll_back(&device, &state).unwrap();
        let device = device.roll_back(move |state| {
            back.lock().unwrap().push(("put back", state.clone()));
            Ok(())
        });
        Device::roll_back(&device, &state).unwrap();
        Device::roll_back(&device, &DeviceState::new(1_u8, 1)).unwrap_err();
        for wrong in ["", "7", "[7]", "[-1,\"\"]", "[7,\"seven\"] x"] {
            device.restore(9, wrong.as_bytes()).unwrap_err();
        }
        let value = (7, "seven".to_owned());
        let expected = ["restored", "restored", "put back"].map(|call| (call, value.clone()));
        assert_eq!(*calls.lock().unwrap(), expected);
    }
}
