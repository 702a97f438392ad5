//! The command line and the composition root: what is wired to what is decided here and nowhere else.
//!
//! Must not know: how anything is done.

use clap::Parser;

/// MQTT gateway whose queue is a durable log.
#[derive(Parser)]
#[command(name = "weir", version)]
struct Cli {}

fn main() -> anyhow::Result<()> {
    Cli::parse();
    Ok(())
}
