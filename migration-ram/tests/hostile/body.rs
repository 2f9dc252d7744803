//! The checks that any stream must pass.

use std::sync::{Arc, Mutex};

use migration_ram::{
    BlockTarget, Device, DeviceError, FnDevice, Framing, IncomingChannels, ReadTransport, Receiver,
};
use ram_block::RamBlock;

/// A device whose state has a fixed length, as QEMU's have.
struct Fixed;

impl Device for Fixed {
    fn name(&self) -> &str {
        "timer"
    }
    fn version(&self) -> u32 {
        2
    }
    fn framing(&self) -> Framing {
        Framing::Fixed(24)
    }
    fn save(&self) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![0; 24])
    }
    fn restore(&self, _version: u32, state: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(state.len(), 24, "a state of another length");
        Ok(())
    }
}

/// The blocks that the receiver has.
pub(crate) const BLOCKS: [(&str, u64); 2] = [("ram", 1 << 20), ("pc.ram", 2 << 20)];

/// Receives a stream and channels, each a slice, in a way that `choice` says.
///
/// Panics if the result contradicts itself.
pub(crate) fn receive_any(choice: u8, inputs: &[&[u8]]) {
    let blocks: Vec<_> =
        BLOCKS.iter().map(|(id, len)| RamBlock::anonymous(id, *len).unwrap()).collect();
    let restored = Arc::new(Mutex::new(Vec::new()));
    let counted = FnDevice::new("counted", || Ok(Vec::new()), {
        let restored = restored.clone();
        move |_, state| {
            restored.lock().unwrap().push(state.len());
            Ok(())
        }
    });
    let keep_unknown = choice & 1 != 0;
    let mut receiver = Receiver::new(if choice & 2 != 0 { &blocks } else { &[] })
        .keep_unknown_sections(keep_unknown)
        .discard_contents(choice & 4 != 0);
    if choice & 8 != 0 {
        receiver = receiver.device(Arc::new(Fixed)).device(Arc::new(counted));
    }
    if choice & 16 != 0 {
        receiver = receiver.on_unknown_block(|_, len| match len {
            0..=0x10_0000 if len % 0x1000 == 0 => BlockTarget::Drop,
            _ => BlockTarget::Refuse,
        });
    }
    let mut slices: Vec<_> = inputs.to_vec();
    let mut answers = Vec::new();
    let from =
        IncomingChannels::several(slices.iter_mut().map(|slice| slice as &mut dyn ReadTransport));
    match receiver.run(from.return_path(&mut answers)) {
        Ok(received) => {
            let bytes: u64 = inputs.iter().map(|input| input.len() as u64).sum();
            assert!(received.bytes <= bytes, "{} of {bytes} bytes", received.bytes);
            assert!(choice & 8 == 0 || restored.lock().unwrap().len() == 1, "not restored");
            assert!(keep_unknown || received.sections.iter().all(|section| section.restored));
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let told = answers.chunks(8).filter(|answer| answer.starts_with(&[0, 1, 0, 4]));
            assert!(told.into_iter().all(|answer| answer[4..] != [0; 4]), "told that all is well");
        }
    }
}

/// [`receive_any`] of one slice: its first bytes say how, and where the channels begin.
pub(crate) fn receive_slice(data: &[u8]) {
    let Some((&[choice, count], mut rest)) = data.split_first_chunk() else { return };
    let mut inputs = Vec::new();
    for _ in 0..count % 4 {
        let Some((len, others)) = rest.split_first_chunk() else { return };
        let len = usize::from(u16::from_be_bytes(*len)).min(others.len());
        let (channel, others) = others.split_at(len);
        inputs.push(channel);
        rest = others;
    }
    inputs.push(rest);
    receive_any(choice, &inputs);
}
