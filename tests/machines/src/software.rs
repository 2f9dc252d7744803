//! A guest without a processor: a thread that draws the scene through the address
//! spaces, for machines without KVM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use memory_region::{AccessError, AddressSpace};

use crate::frame_port::FramePort;
use crate::scene::Scene;

/// What the thread shares with its machine.
#[derive(Debug, Default)]
struct Shared {
    /// Held while the guest writes; a pause holds it instead.
    running: Mutex<()>,
    stop: AtomicBool,
}

/// A thread that plays the guest.
#[derive(Debug)]
pub struct SoftwareGuest {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), AccessError>>>,
}

/// As long as this is kept, the guest stands still.
pub type SoftwarePause<'a> = MutexGuard<'a, ()>;

impl SoftwareGuest {
    /// Starts the guest: it sets the mode through `ports` and draws into the frame
    /// buffer at `frame_buffer` of `memory`.
    pub fn start(
        memory: Arc<AddressSpace>,
        ports: Arc<AddressSpace>,
        frame_buffer: u64,
        scene: Scene,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let player = Player { memory, ports, frame_buffer, scene, shared: shared.clone() };
        let thread = std::thread::spawn(move || player.play());
        Self { shared, thread: Some(thread) }
    }

    /// Whether the thread ended by itself.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the guest is between two accesses and keeps it there.
    pub fn pause(&self) -> SoftwarePause<'_> {
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SoftwareGuest {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => log::error!("The software guest stopped: {error}"),
            Some(Err(_)) => log::error!("The software guest panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

struct Player {
    memory: Arc<AddressSpace>,
    ports: Arc<AddressSpace>,
    frame_buffer: u64,
    scene: Scene,
    shared: Arc<Shared>,
}

impl Player {
    fn play(&self) -> Result<(), AccessError> {
        let [width, height] =
            [self.scene.width, self.scene.height].map(|side| u16::try_from(side).unwrap_or(0));
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        for (register, value) in [(1u16, width), (2, height), (3, 32), (4, 0x41)] {
            self.ports.write(0x1ce, &register.to_le_bytes())?;
            self.ports.write(0x1cf, &value.to_le_bytes())?;
        }
        drop(running);
        self.draw_box(0, (0, 0), (self.scene.width, self.scene.height))?;
        for frame in 0u32.. {
            let port = u64::from(FramePort::PORT);
            self.ports.write(port, &frame.to_le_bytes())?;
            let mut allowed = [0; 4];
            while u32::from_le_bytes(allowed) <= frame {
                if self.shared.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                self.ports.read(port, &mut allowed)?;
            }
            let next = u64::from(frame) + 1;
            for ball in &self.scene.balls {
                for at in [u64::from(frame), next] {
                    self.draw_box(next, self.scene.position(ball, at), (ball.size, ball.size))?;
                }
            }
        }
        Ok(())
    }

    fn draw_box(&self, frame: u64, from: (u64, u64), size: (u64, u64)) -> Result<(), AccessError> {
        for y in from.1..from.1 + size.1 {
            let pixels = (from.0..from.0 + size.0).flat_map(|x| {
                let [red, green, blue] = self.scene.pixel(frame, x, y);
                [blue, green, red, 0]
            });
            let line: Vec<u8> = pixels.collect();
            let _running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
            self.memory.write(self.frame_buffer + (y * self.scene.width + from.0) * 4, &line)?;
        }
        Ok(())
    }
}
