//! The threads that read: fetches, searches and everything else that takes a file and a while, first come first served.
//!
//! Invariant: every job is called once, and told whether it still may read: what comes after the stop may not. A job that panics takes no thread with it.

use crate::ReadError;
use crate::sync::{
    Condvar, Mutex,
    thread::{self, JoinHandle},
};
use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::Duration,
};

/// Whether a job may still read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Read,
    Stopped,
}

pub(crate) type Job = Box<dyn FnOnce(Turn) + Send>;

/// Does `read` unless the log has stopped, and tells `done` what came of it, a panic included: whoever waits for an answer gets one.
pub(crate) fn answering<T>(
    read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    done: impl FnOnce(Result<T, ReadError>) + Send + 'static,
) -> Job {
    Box::new(move |turn| match turn {
        Turn::Read => done(panic::catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(ReadError::Panicked))),
        Turn::Stopped => done(Err(ReadError::Stopping)),
    })
}

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
            return job(Turn::Read);
        }
        let mut queue = self.queue.lock();
        if queue.1 {
            drop(queue);
            return job(Turn::Stopped);
        }
        queue.0.push_back(job);
        drop(queue);
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
        job.map(|job| job(Turn::Read)).is_some()
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
            // Its thread has printed it; the others' jobs go on.
            let _panicked = panic::catch_unwind(AssertUnwindSafe(|| job(Turn::Read)));
        }
    }
}
