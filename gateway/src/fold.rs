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
use weir_log::{Engine, Everything, Fetch, Kind, Nobody, Offset, Partition, Put, ReadError, Record, Wake, Wanted};

/// What the last checkpoint left of a partition: where to go on, and the view as it was there.
#[derive(Default)]
pub(crate) struct Base {
    pub folded: Offset,
    pub retained: Retained,
}

/// Reads every partition once, from its last checkpoint on. `clients`: the client id of each stored session.
pub(crate) fn fold(
    engine: &dyn Engine,
    clients: &HashMap<u64, Box<str>>,
    mut bases: HashMap<PartitionId, Base>,
) -> Result<Vec<Arc<RwLock<Retained>>>, RunError> {
    let mut touched = Touched { engine, clients, sessions: HashMap::new() };
    let mut base = |p: &Partition| bases.remove(&PartitionId(p.id.0)).unwrap_or_default();
    let views = engine.partitions().iter().map(|p| partition(engine, p, base(p), &mut touched)).collect::<Result<_, _>>()?;
    touched.put()?;
    Ok(views)
}

fn partition(engine: &dyn Engine, p: &Partition, base: Base, touched: &mut Touched<'_>) -> Result<Arc<RwLock<Retained>>, RunError> {
    let mut view = base.retained;
    let span = engine.span(p.id);
    let mut from = span.start.max(base.folded);
    let mut told = Instant::now();
    while from < span.durable {
        let (tx, rx) = mpsc::channel();
        let wanted = Wanted::Range { from, to: span.durable, select: Arc::new(Everything) };
        let fetch = Fetch { partition: p.id, wanted, records_max: u32::MAX, bytes_max: 4 << 20 };
        engine.fetch(fetch, Box::new(move |f| drop(tx.send(f))));
        let fetched = rx.recv().unwrap_or(Err(ReadError::Stopping)).map_err(RunError::Read)?;
        for r in fetched.batch.iter() {
            let message = stored(&r);
            if let Some(m) = &message {
                view.apply(m);
            }
            if let Some(fact) = fact(PartitionId(p.id.0), &r, message.and_then(|m| m.mark)) {
                touched.fold(&fact)?;
            }
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

/// Sessions that the log says something of.
struct Touched<'a> {
    engine: &'a dyn Engine,
    clients: &'a HashMap<u64, Box<str>>,
    sessions: HashMap<u64, Session>,
}

impl Touched<'_> {
    fn fold(&mut self, fact: &Fact) -> Result<(), RunError> {
        let sid = fact.sid();
        if !self.sessions.contains_key(&sid) {
            // A session that ended is nobody's.
            let Some(session) = self.load(sid)? else { return Ok(()) };
            self.sessions.insert(sid, session);
        }
        if let Some(session) = self.sessions.get_mut(&sid) {
            session.fold(fact);
        }
        Ok(())
    }

    fn load(&self, sid: u64) -> Result<Option<Session>, RunError> {
        let Some(client_id) = self.clients.get(&sid) else { return Ok(None) };
        let (tx, rx) = mpsc::channel();
        self.engine.state().get(&session_key(client_id), Box::new(move |e| drop(tx.send(e))));
        let entry = rx.recv().unwrap_or(Err(ReadError::Stopping)).map_err(RunError::Read)?;
        entry.map(|e| Session::decode(client_id, &e.value)).transpose().map_err(|e| RunError::Value(format!("key c/{client_id}: {e}")))
    }

    fn put(self) -> Result<(), RunError> {
        let nobody: Arc<dyn Wake> = Arc::new(Nobody);
        for session in self.sessions.values() {
            let (key, value) = (session_key(session.client_id()), session.value());
            let put = Put { key: &key, tag: session.tag(), value: Some(&value) };
            while let Err(e) = self.engine.state().put(&[put], &nobody) {
                match e {
                    weir_log::AppendError::Full => std::thread::sleep(Duration::from_millis(1)),
                    other => return Err(RunError::Value(format!("key c/{}: {other}", session.client_id()))),
                }
            }
        }
        Ok(())
    }
}
