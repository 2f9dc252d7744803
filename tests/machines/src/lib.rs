//! What the tests and demonstrations of the whole stack share: guest programs as readable
//! instructions, machines to run them on, and independent definitions of what they do.

pub mod deadline;
pub mod demo;
pub mod frame_port;
pub mod guest;
pub mod heartbeat_port;
pub mod kick_port;
pub mod kvm;
pub mod link;
#[cfg(target_arch = "x86_64")]
pub mod live;
pub mod pc;
pub mod queue;
pub mod riscv;
pub mod scene;
pub mod size;
pub mod software;
pub mod tracking;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub mod vcpu_device;
