//! What the tests and examples of the whole stack share: guest programs as readable
//! instructions, a machine to run them on, and independent definitions of what they
//! do.

pub mod demo;
pub mod frame_port;
pub mod guest;
pub mod harness;
pub mod kvm;
pub mod pc;
pub mod qemu;
pub mod qtest;
pub mod queue;
pub mod riscv;
pub mod scene;
pub mod software;
