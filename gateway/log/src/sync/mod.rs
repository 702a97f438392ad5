//! Locks, threads and atomics: the operating system's, or with the feature `schedules` those that a test steps through in every order.

#[cfg(feature = "schedules")]
mod stepped;

#[cfg(not(feature = "schedules"))]
pub(crate) use parking_lot::{Condvar, Mutex, RwLock};
#[cfg(feature = "schedules")]
pub(crate) use stepped::{Condvar, Mutex, RwLock};

#[cfg(feature = "schedules")]
pub(crate) use shuttle::{sync::atomic, thread};
#[cfg(not(feature = "schedules"))]
pub(crate) use std::{sync::atomic, thread};
