//! What the log says beside its messages, folded at the start: retained messages, and what happened to sessions after their values were put.
//!
//! Invariant: when it returns, every stored value says all that the log says of its session: open exchanges of QoS 2, wills that were published.
//! Must not know: connections; nobody is connected yet.

use crate::{
    gateway::{session_key, stored},
    run::RunError,
};
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use weir_core::{
    ids::PartitionId,
    message::parse_release,
    retained::Retained,
    session::{Fact, Session},
};
use weir_log::{Asker, Engine, Everything, Fetch, Kind, Nobody, Offset, Partition, Put, ReadError, Record, Wake, Wanted};

/// What the last checkpoint left of a partition: where to go on, and the view as it was there.
#[derive(Default)]
pub(crate) struct Base {
    pub folded: Offset,
    pub retained: Retained,
}

/// By session id, in the order of each partition.
type Facts = HashMap<u64, Vec<Fact>>;

/// Reads every partition once, from its last checkpoint on.
pub(crate) fn fold(engine: &dyn Engine, mut bases: HashMap<PartitionId, Base>) -> Result<Vec<Arc<RwLock<Retained>>>, RunError> {
    let mut facts = Facts::new();
    let mut base = |p: &Partition| bases.remove(&PartitionId(p.id.0)).unwrap_or_default();
    let views = engine.partitions().iter().map(|p| partition(engine, p, base(p), &mut facts)).collect::<Result<_, _>>()?;
    put(engine, &touched(engine, &facts)?)?;
    Ok(views)
}

fn partition(engine: &dyn Engine, p: &Partition, base: Base, facts: &mut Facts) -> Result<Arc<RwLock<Retained>>, RunError> {
    let mut view = base.retained;
    let span = engine.span(p.id);
    if span.start > base.folded {
        // Retention stays below the last checkpoint: they are missing, or the checkpoint is.
        let gone = weir_log::records(&(base.folded..span.start));
        tracing::warn!(
            "{gone} of {}/{} are not there: what was retained or released in them is known as far as the state store says it",
            p.stream,
            p.number
        );
    }
    let (by, mut from) = (Asker::default(), span.start.max(base.folded));
    let mut told = Instant::now();
    while from < span.durable {
        let (tx, rx) = mpsc::channel();
        let wanted = Wanted::Range { from, to: span.durable, select: Arc::new(Everything) };
        let fetch = Fetch { partition: p.id, wanted, records_max: u32::MAX, bytes_max: 4 << 20 };
        engine.fetch(&by, fetch, Box::new(move |f| drop(tx.send(f))));
        let fetched = rx.recv().unwrap_or(Err(ReadError::Stopping)).map_err(RunError::Read)?;
        for r in fetched.batch.iter() {
            let message = stored(&r);
            if let Some(m) = &message {
                view.apply(m);
            }
            if let Some(fact) = fact(PartitionId(p.id.0), &r, message.and_then(|m| m.mark)) {
                facts.entry(fact.sid()).or_default().push(fact);
            }
        }
        if !fetched.lost.is_empty() {
            let lost = weir_log::records(&fetched.lost);
            tracing::warn!("{lost} of {}/{} cannot be read: what was retained or released in them is not known", p.stream, p.number);
        }
        from = fetched.next;
        if told.elapsed() > Duration::from_secs(2) {
            told = Instant::now();
            tracing::info!("reading {}/{}: record {from} of {}", p.stream, p.number, span.durable);
        }
    }
    Ok(Arc::new(RwLock::new(view)))
}

fn fact(p: PartitionId, r: &Record<'_>, mark: Option<weir_core::message::Mark>) -> Option<Fact> {
    match r.kind {
        Kind::Note => parse_release(r.flags, r.meta).map(Fact::Released),
        _ => mark.map(|mark| Fact::Published(p, mark)),
    }
}

/// The sessions that the log says something of, with what it says. Facts of sessions that have ended are nobody's.
fn touched(engine: &dyn Engine, facts: &Facts) -> Result<Vec<Session>, RunError> {
    let (mut sessions, mut bad) = (Vec::new(), None);
    if facts.is_empty() {
        return Ok(sessions);
    }
    let mut each = |key: &[u8], _: u32, value: &[u8]| {
        let Some(client_id) = key.strip_prefix(b"c/").and_then(|c| std::str::from_utf8(c).ok()) else { return };
        let Some(facts) = Session::sid_of(value).and_then(|sid| facts.get(&sid)) else { return };
        match Session::decode(client_id, value) {
            Ok(mut session) => {
                facts.iter().for_each(|f| session.fold(f));
                sessions.push(session);
            }
            Err(e) => bad = Some(RunError::Value(format!("key c/{client_id}: {e}"))),
        }
    };
    engine.state().scan(&mut each).map_err(RunError::Read)?;
    bad.map_or(Ok(sessions), Err)
}

fn put(engine: &dyn Engine, sessions: &[Session]) -> Result<(), RunError> {
    let nobody: Arc<dyn Wake> = Arc::new(Nobody);
    for session in sessions {
        let (key, value) = (session_key(session.client_id()), session.value());
        let put = Put { key: &key, tag: session.tag(), value: Some(&value) };
        while let Err(e) = engine.state().put(&[put], &nobody) {
            match e {
                weir_log::AppendError::Full => std::thread::sleep(Duration::from_millis(1)),
                other => return Err(RunError::Value(format!("key c/{}: {other}", session.client_id()))),
            }
        }
    }
    Ok(())
}
