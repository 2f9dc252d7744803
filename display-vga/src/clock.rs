//! The clock of the host, or one that stands still where there is none: `std`'s panics in
//! WebAssembly without an operating system (`wasm32-unknown-unknown`).

#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
pub(crate) use std::time::Instant;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
pub(crate) use still::Instant;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
mod still {
    use std::ops::Sub;
    use std::time::Duration;

    /// The one moment that there is.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Instant;

    impl Instant {
        pub(crate) fn now() -> Self {
            Self
        }

        pub(crate) fn elapsed(self) -> Duration {
            Self - self
        }

        pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
            self - earlier
        }
    }

    impl Sub for Instant {
        type Output = Duration;

        fn sub(self, _: Self) -> Duration {
            Duration::ZERO
        }
    }
}
