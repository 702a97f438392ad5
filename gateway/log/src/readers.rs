//! The threads that read: fetches, searches and everything else that takes a file and a while.
//!
//! A read is a series of steps. Whoever asks has one step at a time, in turn with all others who ask, and a read whose asker has gone ends. Askers are of two kinds, which have every
//! other turn: however many browsers there are, devices read. Reads of the state store, which are short and which a login waits for, have a thread of their own.
//!
//! Invariant: every job is answered once, and is told whether it still may read: what comes after the stop may not. A job that panics takes no thread with it.

use crate::ReadError;
use crate::sync::{
    Condvar, Mutex,
    thread::{self, JoinHandle},
};
use std::{
    collections::{HashMap, VecDeque},
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

/// Who reads. What clones of one ask takes turns with what others ask, and ends when the last of them is dropped.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    kind: Kind,
    turns: Arc<()>,
    alive: Arc<()>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Device,
    Browser,
}

impl Asker {
    /// One of those who look, of whom there may be many.
    #[must_use]
    pub fn browser() -> Self {
        Self { kind: Kind::Browser, ..Self::default() }
    }

    /// One that has its turns with this one, and ends by itself.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { kind: self.kind, turns: self.turns.clone(), alive: Arc::default() }
    }
}

/// Whether a job may still read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Read,
    /// The log has stopped, or nobody wants to know any more.
    Stopped,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Another step goes on from here.
    More,
    Answered,
}

pub(crate) type Job = Box<dyn FnMut(Turn) -> Progress + Send>;

/// What one step may cost: others wait for so long.
const STEP_TIME: Duration = Duration::from_millis(20);
const STEP_RECORDS: u32 = 65_536;
/// Records between two looks at the clock.
const RECORDS_PER_LOOK: u32 = 16;

/// What is left of a step.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Of the step.
    end: Option<Instant>,
    /// Of looking at records one by one.
    records_end: Option<Instant>,
    records: u32,
}

impl Budget {
    #[cfg(test)]
    pub fn of_records(records: u32) -> Self {
        Self { end: None, records_end: None, records }
    }

    /// Without a clock what is done by one seed does not depend on the time.
    pub fn of_step(with_clock: bool) -> Self {
        let end = with_clock.then(|| Instant::now() + STEP_TIME);
        Self { end, records_end: end, records: STEP_RECORDS }
    }

    /// One record was looked at.
    pub fn spend(&mut self) {
        self.records = self.records.saturating_sub(1);
        if self.records.is_multiple_of(RECORDS_PER_LOOK) && is_over(self.records_end) {
            self.records = 0;
        }
    }

    /// No more records are to be looked at.
    pub fn is_spent(&self) -> bool {
        self.records == 0
    }

    /// An index was asked, which every step does again: what it names has as much time once more, or nothing would ever be read.
    pub fn asked_index(&mut self) {
        self.records_end = self.records_end.map(|end| end.max(Instant::now() + STEP_TIME));
    }

    /// The step ends before it asks another index.
    pub fn is_over(&self) -> bool {
        self.is_spent() || is_over(self.end)
    }
}

fn is_over(end: Option<Instant>) -> bool {
    end.is_some_and(|end| Instant::now() >= end)
}

/// Does a step of a read, `None`: it goes on, and gives `done` what came of it, a panic included: whoever waits for an answer gets one.
pub(crate) fn answering<T>(
    mut step: impl FnMut() -> Option<Result<T, ReadError>> + Send + 'static,
    done: impl FnOnce(Result<T, ReadError>) + Send + 'static,
) -> Job {
    let mut done = Some(done);
    Box::new(move |turn| {
        let result = match turn {
            Turn::Read => panic::catch_unwind(AssertUnwindSafe(&mut step)).unwrap_or(Some(Err(ReadError::Panicked))),
            Turn::Stopped => Some(Err(ReadError::Stopping)),
        };
        let Some(result) = result else { return Progress::More };
        if let Some(done) = done.take() {
            done(result);
        }
        Progress::Answered
    })
}

/// Two threads are enough to keep one disk and two cores busy.
const READERS: usize = 2;

/// How much waits to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub jobs: usize,
    /// Since when who has its turn next waits.
    pub longest: Duration,
}

struct Waits {
    job: Job,
    kind: Kind,
    turns: Weak<()>,
    alive: Weak<()>,
    since: Instant,
}

impl Waits {
    fn asker(&self) -> usize {
        self.turns.as_ptr() as usize
    }

    fn turn(&self) -> Turn {
        if self.alive.strong_count() > 0 { Turn::Read } else { Turn::Stopped }
    }
}

#[derive(Default)]
struct Queue {
    /// By asker: its place in memory, which is its own for as long as one of its jobs is here.
    jobs: HashMap<usize, VecDeque<Waits>>,
    /// Askers that have jobs, of each kind in the order of their turns.
    turns: [VecDeque<usize>; 2],
    /// The kind that has the next one.
    next: usize,
    /// Reads of the state store.
    state: VecDeque<Job>,
    stopping: bool,
}

impl Queue {
    fn push(&mut self, waits: Waits) {
        let (asker, kind) = (waits.asker(), waits.kind as usize);
        let jobs = self.jobs.entry(asker).or_default();
        if jobs.is_empty() {
            self.turns[kind].push_back(asker);
        }
        jobs.push_back(waits);
    }

    /// Those who have the next turn, of either kind.
    fn next(&self) -> Option<&Waits> {
        let of = |kind: usize| self.turns[kind].front().and_then(|asker| self.jobs.get(asker)?.front());
        of(self.next).or_else(|| of(1 - self.next))
    }

    fn pop(&mut self) -> Option<Waits> {
        let kind = if self.turns[self.next].is_empty() { 1 - self.next } else { self.next };
        self.next = 1 - kind;
        let asker = self.turns[kind].pop_front()?;
        let jobs = self.jobs.get_mut(&asker)?;
        let waits = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&asker);
        } else {
            self.turns[kind].push_back(asker);
        }
        waits
    }
}

/// Jobs for the reader threads.
#[derive(Default)]
pub(crate) struct Readers {
    queue: Mutex<Queue>,
    work: Condvar,
    state_work: Condvar,
    stopped: Mutex<bool>,
    stop: Condvar,
    #[cfg(any(test, feature = "sim"))]
    at_once: std::sync::atomic::AtomicBool,
}

impl Readers {
    pub fn start(readers: &Arc<Self>) -> std::io::Result<Vec<JoinHandle<()>>> {
        let start = |name: String, run: fn(&Self)| {
            let readers = readers.clone();
            thread::Builder::new().name(name).spawn(move || run(&readers))
        };
        let state = start("log-reader-state".into(), Self::run_state);
        (0..READERS).map(|n| start(format!("log-reader-{n}"), Self::run)).chain([state]).collect()
    }

    /// Puts a job in its place, or answers it where nothing is read any more.
    fn enqueue(&self, mut job: Job, push: impl FnOnce(&mut Queue, Job)) {
        #[cfg(any(test, feature = "sim"))]
        if self.at_once.load(std::sync::atomic::Ordering::Relaxed) {
            while job(Turn::Read) == Progress::More {}
            return;
        }
        let mut queue = self.queue.lock();
        if queue.stopping {
            drop(queue);
            job(Turn::Stopped);
            return;
        }
        push(&mut queue, job);
    }

    pub fn submit(&self, by: &Asker, job: Job) {
        let (turns, alive) = (Arc::downgrade(&by.turns), Arc::downgrade(&by.alive));
        self.enqueue(job, |queue, job| queue.push(Waits { job, kind: by.kind, turns, alive, since: Instant::now() }));
        self.work.notify_one();
    }

    /// A job of one step, which reads the state store.
    pub fn submit_state(&self, job: Job) {
        self.enqueue(job, |queue, job| queue.state.push_back(job));
        self.state_work.notify_one();
    }

    /// Jobs are done as they come, or wait to be stepped.
    #[cfg(any(test, feature = "sim"))]
    pub fn at_once(&self, at_once: bool) {
        self.at_once.store(at_once, std::sync::atomic::Ordering::Relaxed);
    }

    /// Does one step of one job; false: there is none.
    #[cfg(any(test, feature = "sim"))]
    pub fn step(&self) -> bool {
        let mut queue = self.queue.lock();
        if let Some(mut job) = queue.state.pop_front() {
            drop(queue);
            job(Turn::Read);
            return true;
        }
        let waits = queue.pop();
        drop(queue);
        waits.map(|waits| self.work_on(waits)).is_some()
    }

    pub fn is_stopped(&self) -> bool {
        self.queue.lock().stopping
    }

    pub fn waiting(&self) -> Waiting {
        let queue = self.queue.lock();
        let next = queue.next();
        Waiting {
            jobs: queue.jobs.values().map(VecDeque::len).sum::<usize>() + queue.state.len(),
            longest: next.map_or(Duration::ZERO, |waits| waits.since.elapsed()),
        }
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
        self.queue.lock().stopping = true;
        self.work.notify_all();
        self.state_work.notify_all();
    }

    /// Whoever asked for it has its next turn when all others who wait have had theirs.
    fn work_on(&self, mut waits: Waits) {
        let turn = waits.turn();
        // Its thread has printed it; the others' jobs go on.
        let progress = panic::catch_unwind(AssertUnwindSafe(|| (waits.job)(turn)));
        if !matches!(progress, Ok(Progress::More)) {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.stopping {
            drop(queue);
            (waits.job)(Turn::Stopped);
            return;
        }
        waits.since = Instant::now();
        queue.push(waits);
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue.lock();
            let waits = loop {
                match queue.pop() {
                    Some(waits) => break waits,
                    None if queue.stopping => return,
                    None => self.work.wait(&mut queue),
                }
            };
            drop(queue);
            self.work_on(waits);
        }
    }

    fn run_state(&self) {
        loop {
            let mut queue = self.queue.lock();
            let mut job = loop {
                match queue.state.pop_front() {
                    Some(job) => break job,
                    None if queue.stopping => return,
                    None => self.state_work.wait(&mut queue),
                }
            };
            drop(queue);
            let _panicked = panic::catch_unwind(AssertUnwindSafe(|| job(Turn::Read)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job that takes so many steps and notes each.
    fn job(name: &'static str, mut steps: usize, notes: &Arc<Mutex<Vec<&'static str>>>) -> Job {
        let notes = notes.clone();
        Box::new(move |turn| {
            notes.lock().push(if turn == Turn::Read { name } else { "nobody" });
            steps -= 1;
            if steps == 0 || turn == Turn::Stopped { Progress::Answered } else { Progress::More }
        })
    }

    #[test]
    fn each_asker_has_a_step_in_its_turn_however_much_it_asks() {
        let (readers, notes) = (Readers::default(), Arc::default());
        let (loud, quiet, gone) = (Asker::default(), Asker::default(), Asker::default());
        let part = loud.part();
        readers.submit(&part, job("loud", 2, &notes));
        (0..2).for_each(|_| readers.submit(&loud, job("loud", 2, &notes)));
        readers.submit(&gone, job("gone", 9, &notes));
        readers.submit(&quiet, job("quiet", 2, &notes));
        readers.submit_state(job("state", 1, &notes));
        drop(gone);
        assert_eq!(readers.waiting().jobs, 6);
        while readers.step() {}
        let expected = ["state", "loud", "nobody", "quiet", "loud", "quiet", "loud", "loud", "loud", "loud"];
        assert_eq!(*notes.lock(), expected);
        assert_eq!(readers.waiting(), Waiting::default());
    }

    #[test]
    fn devices_have_every_other_turn_however_many_browsers_there_are() {
        let (readers, notes) = (Readers::default(), Arc::default());
        let browsers: Vec<_> = (0..4).map(|_| Asker::browser()).collect();
        let device = Asker::default();
        browsers.iter().for_each(|b| readers.submit(b, job("browser", 1, &notes)));
        readers.submit(&device, job("device", 3, &notes));
        while readers.step() {}
        assert_eq!(*notes.lock(), ["device", "browser", "device", "browser", "device", "browser", "browser"]);
    }

    #[test]
    fn a_budget_ends_by_records_and_by_time() {
        let mut budget = Budget::of_records(STEP_RECORDS);
        (0..STEP_RECORDS - 1).for_each(|_| budget.spend());
        assert!(!budget.is_over());
        budget.spend();
        assert!(budget.is_spent() && budget.is_over());
        let now = Some(Instant::now());
        let mut late = Budget { end: now, records_end: now, records: STEP_RECORDS };
        (0..RECORDS_PER_LOOK).for_each(|_| late.spend());
        assert!(late.is_spent());
        let mut asked = Budget { end: now, records_end: now, records: STEP_RECORDS };
        asked.asked_index();
        (0..RECORDS_PER_LOOK).for_each(|_| asked.spend());
        assert!(!asked.is_spent() && asked.is_over());
    }
}
