//! Messages that lie there before anything is measured, and their end.
//!
//! Invariant: never more than the load's window of them is without an acknowledgement, and no two of those have one packet id.
//! Must not know: scenarios.

use super::{
    Load,
    message::{Mark, Template},
    wire::{Conn, Target},
};
use crate::client::Failure;
use indicatif::ProgressBar;
use weir_core::packet::{Packet, Qos};

/// `count` messages, each written by `push` with its number.
async fn publish(
    load: &Load,
    mut conn: Conn,
    count: u64,
    mut push: impl FnMut(&mut Vec<u8>, u64),
    progress: impl Fn(u64),
) -> Result<(), Failure> {
    let (mut sent, mut done, mut out) = (0, 0, Vec::new());
    while done < count {
        out.clear();
        while sent < count && sent - done < load.window {
            push(&mut out, sent);
            sent += 1;
        }
        conn.send(&out).await?;
        let mut refused = false;
        conn.read(|p| {
            if let Packet::PubAck(a) = p {
                (done, refused) = (done + 1, refused || a.reason.is_error());
            }
        })
        .await?;
        if refused {
            return Err(Failure::new("the broker refused a message"));
        }
        progress(done);
    }
    Ok(())
}

/// Publishes `messages` over `topics` of the run, one message for each in turn.
pub async fn fill(
    load: &Load,
    target: &Target,
    name: &str,
    (messages, topics): (u64, u32),
    retain: bool,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let conn = Conn::open(target, &format!("{name}-fill"), false).await?;
    let template = |n| Template::new(load.protocol_version, &format!("{name}/{n}"), Qos::AtLeastOnce, retain, load.size as usize);
    let templates: Vec<Template> = (0..topics).map(template).collect();
    let push = |out: &mut Vec<u8>, sent: u64| {
        let (nth, seq) = (sent % u64::from(topics), sent / u64::from(topics));
        templates[nth as usize].push(out, sent, Mark { publisher: nth as u32, seq, at_ns: sent });
    };
    publish(load, conn, messages, push, |done| bar.set_message(format!("{done} of {messages} messages published"))).await
}

/// Takes the retained messages of a run away.
pub async fn forget(load: &Load, target: &Target, name: &str, topics: u32, bar: &ProgressBar) -> Result<(), Failure> {
    let conn = Conn::open(target, &format!("{name}-forget"), false).await?;
    let push = |out: &mut Vec<u8>, n: u64| Template::empty(load.protocol_version, &format!("{name}/{n}"), n, out);
    publish(load, conn, topics.into(), push, |done| bar.set_message(format!("{done} of {topics} topics forgotten"))).await
}
