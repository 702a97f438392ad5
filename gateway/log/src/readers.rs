//! The threads that read: fetches, searches and everything else that takes a file and a while, first come first served.
//!
//! Invariant: a job that was taken before the stop is done; then the threads end.
//! Must not know: what a job does.

use crate::state::Job;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// Two threads are enough to keep one disk and two cores busy.
const READERS: usize = 2;

/// Jobs for the reader threads, first come first served.
#[derive(Default)]
pub(crate) struct Readers {
    queue: Mutex<(VecDeque<Job>, bool)>,
    work: Condvar,
    stopped: Mutex<bool>,
    stop: Condvar,
    #[cfg(any(test, feature = "sim"))]
    at_once: std::sync::atomic::AtomicBool,
}

impl Readers {
    pub fn start(readers: &Arc<Self>) -> std::io::Result<Vec<JoinHandle<()>>> {
        let start = |n: usize| {
            let readers = readers.clone();
            thread::Builder::new().name(format!("log-reader-{n}")).spawn(move || readers.run())
        };
        (0..READERS).map(start).collect()
    }

    pub fn submit(&self, job: Job) {
        #[cfg(any(test, feature = "sim"))]
        if self.at_once.load(std::sync::atomic::Ordering::Relaxed) {
            return job();
        }
        self.queue.lock().0.push_back(job);
        self.work.notify_one();
    }

    /// Jobs are done as they come, or wait to be stepped.
    #[cfg(any(test, feature = "sim"))]
    pub fn at_once(&self, at_once: bool) {
        self.at_once.store(at_once, std::sync::atomic::Ordering::Relaxed);
    }

    /// Does one job; false: there is none.
    #[cfg(any(test, feature = "sim"))]
    pub fn step(&self) -> bool {
        let job = self.queue.lock().0.pop_front();
        job.map(|job| job()).is_some()
    }

    pub fn is_stopped(&self) -> bool {
        self.queue.lock().1
    }

    /// True: it has stopped.
    pub fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        if !*stopped {
            self.stop.wait_for(&mut stopped, time);
        }
        *stopped
    }

    pub fn stop(&self) {
        *self.stopped.lock() = true;
        self.stop.notify_all();
        self.queue.lock().1 = true;
        self.work.notify_all();
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue.lock();
            let job = loop {
                match queue.0.pop_front() {
                    Some(job) => break job,
                    None if queue.1 => return,
                    None => self.work.wait(&mut queue),
                }
            };
            drop(queue);
            job();
        }
    }
}
