//! The wires between devices and the processor: interrupts, and the reset line.

use std::fmt;
use std::sync::Arc;

/// An interrupt request line. A device sets its level, and need not know who listens.
#[derive(Clone)]
pub struct IrqLine(Arc<dyn Fn(bool) + Send + Sync>);

impl IrqLine {
    /// A line whose level `set` is told.
    pub fn new(set: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self(Arc::new(set))
    }

    /// A line to which nobody listens.
    pub fn unconnected() -> Self {
        Self::new(|_| ())
    }

    /// Raises the line, or lowers it.
    pub fn set(&self, raised: bool) {
        (self.0)(raised);
    }

    /// Raises the line and lowers it again, for one interrupt at an edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IrqLine")
    }
}

/// The line by which a device resets the machine.
#[derive(Clone)]
pub struct ResetLine(Arc<dyn Fn() + Send + Sync>);

impl ResetLine {
    /// A line on which `reset` is called.
    pub fn new(reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(reset))
    }

    /// Asks for a reset. The access by which the guest did so is completed first.
    pub fn pull(&self) {
        (self.0)();
    }
}

impl fmt::Debug for ResetLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetLine")
    }
}
