//! A small PC: what the crates are for, in one machine that real firmware and programs run on.
//!
//! A [`Machine`] is a [memory map](layout) with devices in their places, and a
//! [processor] of KVM's that sees it. Each device is a file; none of them knows
//! KVM, nor the others. What a guest writes to the chipset's registers changes the map under
//! its feet: [shadow RAM](chipset), and [where the graphics card's memory is](graphics).
//!
//! ```text
//!   processor --memory--> layout: RAM | PCI: graphics card (display-vga), firmware
//!       |                             ^ chipset's attribute map
//!       +-----ports-----> PCI configuration, clock, keyboard, serial port, disk, fw_cfg
//!       ^---- interrupts (chips that KVM plays) <-----'
//! ```
//!
//! Every device can be saved and restored ([`migration_ram::Device`]): a migration carries
//! them beside the blocks of memory.
//!
//! # What it has not
//!
//! A second processor, power management (and with it ACPI's timer), a floppy controller, DMA,
//! a mouse, alarms of the clock, PCI interrupts. Address line 20 is always open.

#![cfg(target_arch = "x86_64")]

pub mod chips;
pub mod chipset;
pub mod debug_port;
pub mod disk;
pub mod e820;
pub mod firmware;
pub mod fw_cfg;
pub mod graphics;
pub mod kernel;
pub mod keyboard;
pub mod keys;
pub mod layout;
pub mod machine;
pub mod pci;
pub mod processor;
pub mod rtc;
pub mod screen_text;
pub mod serial;
pub mod system_port;
pub mod wires;

pub use machine::{Boot, Config, Machine};
pub use processor::Paused;
