//! What a disk takes for one small write that is synced: what a lone publish cannot be faster than.
//!
//! Invariant: writes into zeroed blocks of a file that exists, as a log that is laid out ahead would; the file is removed.
//! Must not know: the log.

use super::{
    flow::times,
    report::{Latency, Report},
};
use crate::client::Failure;
use serde_json::json;
use std::{fs::File, os::unix::fs::FileExt, path::Path, time::Instant};

const BLOCK: usize = 4_096;
const BLOCKS: usize = 4_096;

pub fn run(path: &Path, count: u64) -> Result<Report, Failure> {
    let failed = |e| Failure::new(format!("{}: {e}", path.display()));
    let file = File::options().write(true).create_new(true).open(path).map_err(failed)?;
    let start = Instant::now();
    let measured = measure(&file, count);
    std::fs::remove_file(path).map_err(failed)?;
    let mut report = Report { scenario: "disk".into(), target: path.display().to_string(), ..Report::default() };
    report.seconds = start.elapsed().as_secs_f64();
    report.more.insert("write_and_fdatasync_us", json!(measured.map_err(failed)?));
    Ok(report)
}

fn measure(file: &File, count: u64) -> std::io::Result<Option<Latency>> {
    file.write_all_at(&vec![0; BLOCK * BLOCKS], 0)?;
    file.sync_all()?;
    let mut all = times();
    for n in 0..count {
        let start = Instant::now();
        file.write_all_at(&[n as u8 | 1; BLOCK], n % BLOCKS as u64 * BLOCK as u64)?;
        file.sync_data()?;
        all.saturating_record(start.elapsed().as_micros() as u64);
    }
    Ok(Latency::of(&all))
}
