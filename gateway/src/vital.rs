//! Tasks without which the gateway does not work: if one panics, the process ends. A listener that accepts and does not answer would be worse than
//! none: whoever watches the process sees it end, and starts it again.
//!
//! Must not know: what they do.

use std::{future::poll_fn, pin::pin};

/// EX_SOFTWARE of sysexits.h: a bug.
const EXIT: i32 = 70;

pub(crate) fn spawn<T: Send + 'static>(what: &'static str, task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    /// Dropped only by a panic in the task.
    struct Guard(&'static str);

    impl Drop for Guard {
        fn drop(&mut self) {
            tracing::error!("{} panicked: the process ends", self.0);
            std::process::exit(EXIT);
        }
    }

    tokio::spawn(async move {
        let mut task = pin!(task);
        poll_fn(|context| {
            let guard = Guard(what);
            let result = task.as_mut().poll(context);
            std::mem::forget(guard);
            result
        })
        .await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "WEIR_TEST_VITAL_CHILD";

    /// Does nothing unless the test below runs it in a process of its own.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_some() {
            let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
            let _never_returns = runtime.block_on(async { spawn("a test", async { panic!("on purpose") }).await });
        }
    }

    #[test]
    fn a_panic_in_a_vital_task_ends_the_process() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
        child
            .args(["--exact", "vital::tests::child"])
            .env(CHILD, "1")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        assert_eq!(child.status().expect("runs").code(), Some(EXIT));
    }
}
