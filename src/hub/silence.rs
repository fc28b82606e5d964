//! A limit on how long the hub may say nothing.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When the hub last said something.
#[derive(Clone)]
pub(super) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    pub(super) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// What `work` gives, or nothing where it is not done and its pulse has not beaten for `limit`.
///
/// The thread of work that is given up stays until its connection ends, or the process does: the HTTP library has no
/// limit on silence within a body, only on the whole of it.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(Pulse) -> T + Send + 'static,
) -> Option<T> {
    let pulse = Pulse(Arc::new(Mutex::new(Instant::now())));
    let (sender, receiver) = channel();
    let beaten = pulse.clone();
    std::thread::spawn(move || {
        // Where nobody waits any more, nobody wants the result.
        let _ = sender.send(work(beaten));
    });
    loop {
        match receiver.recv_timeout(limit.saturating_sub(pulse.age())) {
            Ok(done) => return Some(done),
            Err(RecvTimeoutError::Timeout) if pulse.age() < limit => {}
            Err(_) => return None,
        }
    }
}
