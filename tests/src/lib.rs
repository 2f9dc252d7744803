//! What the tests and examples of the whole stack share: guest programs as readable
//! instructions, a machine to run them on, and independent definitions of what they
//! do.

pub mod beat_port;
pub mod bench;
pub mod deadline;
pub mod demo;
pub mod firmware;
pub mod frame_port;
pub mod guest;
pub mod harness;
pub mod kvm;
pub mod link;
#[cfg(target_arch = "x86_64")]
pub mod live;
#[cfg(target_arch = "x86_64")]
pub mod mini_pc;
pub mod pc;
pub mod qemu;
pub mod qtest;
pub mod queue;
pub mod riscv;
pub mod scene;
pub mod size;
pub mod software;
pub mod viewers;
