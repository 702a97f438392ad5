//! From a log to a gateway that works, without listeners: what the state store holds is read, the log is folded, tails and groups begin.
//!
//! Invariant: nobody is served before everything the log says is in the values of the store and in the retained views.
//! Must not know: sockets, files.

use crate::{
    boot::Boots,
    checkpoint,
    clock::{self, Clock, Reached},
    driver::Driver,
    fold::{Base, fold},
    gateway::{Gateway, Limits, Parts},
    group::{self, Groups},
    interests::Interests,
    metrics::Metrics,
    offline::{self, Offline},
    run::RunError,
    tail::{Bell, Passed, Tail},
    tcp, vital,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc::unbounded_channel;
use weir_core::{
    group::{Group, Place},
    ids::PartitionId,
    interest::Interest,
    session::Session,
};
use weir_log::{AppendError, Engine, Nobody, Put, Wake};

/// End offsets that a value names, as the log has them.
type Named = Vec<(weir_log::PartitionId, weir_log::Offset)>;

/// What the state store held.
#[derive(Default)]
pub(crate) struct Found {
    boots: Boots,
    /// By the steady clock, as the last process kept it.
    reached: Reached,
    due: Vec<(u64, Box<str>)>,
    /// Where the last checkpoint left each partition.
    bases: HashMap<PartitionId, Base>,
    groups: HashMap<Box<str>, Group>,
    /// Which sessions subscribe to which group.
    subscribers: HashMap<Box<str>, HashSet<u64>>,
    interest: Interest,
    /// How many sessions need everything from there on.
    needs: HashMap<Place, u64>,
    sessions: u64,
    bad: Option<String>,
}

fn places(named: Vec<Place>) -> Named {
    named.into_iter().map(|(p, at)| (weir_log::PartitionId(p.0), weir_log::Offset(at.0))).collect()
}

fn group(key: &[u8], value: &[u8]) -> Option<Result<(Box<str>, Group), String>> {
    let name = std::str::from_utf8(key.strip_prefix(b"g/")?).ok()?;
    let error = || format!("key g/{name}: a group's value that this program cannot read");
    Some(Group::decode(value).map(|g| (name.into(), g)).ok_or_else(error))
}

fn session(key: &[u8], value: &[u8]) -> Option<Result<Session, String>> {
    let client_id = std::str::from_utf8(key.strip_prefix(b"c/")?).ok()?;
    Some(Session::decode(client_id, value).map_err(|e| format!("key c/{client_id}: {e}")))
}

impl Found {
    /// Takes one key with its tag and value; gives the end offsets that the value names.
    pub fn take(&mut self, key: &[u8], tag: u32, value: &[u8]) -> Named {
        let known = session(key, value)
            .map(|s| s.map(|s| self.session(&s, tag)))
            .or_else(|| group(key, value).map(|g| g.map(|(name, group)| self.group(name, group))))
            .or_else(|| checkpoint::read(key, value, &mut self.bases).map(|place| place.map(|p| vec![p])));
        match known {
            Some(Ok(named)) => places(named),
            Some(Err(e)) => {
                self.bad = Some(e);
                Vec::new()
            }
            None if key == clock::KEY => {
                self.reached = Reached::parse(value).unwrap_or_default();
                Vec::new()
            }
            None => {
                self.boots.read(key, value);
                Vec::new()
            }
        }
    }

    fn session(&mut self, s: &Session, tag: u32) -> Vec<Place> {
        group::subscribed(s.shared_filters(), s.sid(), &mut self.subscribers);
        self.sessions += 1;
        s.filters().iter().map(|f| &**f).chain(s.shared_filters()).for_each(|f| self.interest.add(f));
        // Connected when the process ended: at once. Else when the tag says, if it ever ends.
        let at = if s.was_connected() { Some(0) } else { (tag != 0).then(|| u64::from(tag) * 1_000) };
        self.due.extend(at.map(|at| (at, s.client_id().into())));
        let named = s.named();
        s.partitions_read().filter_map(|p| Some((p, s.needs(p)?))).for_each(|place| *self.needs.entry(place).or_default() += 1);
        named
    }

    fn group(&mut self, name: Box<str>, group: Group) -> Vec<Place> {
        let named = group.named();
        self.groups.insert(name, group);
        named
    }

    /// A value that this program cannot read is an error.
    pub fn check(&mut self) -> Result<(), RunError> {
        self.bad.take().map_or(Ok(()), |e| Err(RunError::Value(e)))
    }

    /// Groups with their subscribers; one without ends at once.
    fn take_groups(&mut self) -> HashMap<Box<str>, (Group, HashSet<u64>)> {
        let (mut groups, mut subscribers) = (std::mem::take(&mut self.groups), std::mem::take(&mut self.subscribers));
        let names: HashSet<Box<str>> = groups.keys().chain(subscribers.keys()).cloned().collect();
        let both = |name: Box<str>| {
            let both = (groups.remove(&name).unwrap_or_default(), subscribers.remove(&name).unwrap_or_default());
            (name, both)
        };
        names.into_iter().map(both).collect()
    }
}

/// The next boot begins. What is put here is durable before anything that is put later.
fn begin(engine: &dyn Engine, boots: &mut Boots, now_ms: u64) -> Result<u64, RunError> {
    let boot = boots.current();
    let (key, value) = boots.begin(boot, now_ms);
    let nobody: Arc<dyn Wake> = Arc::new(Nobody);
    let put = Put { key: key.as_bytes(), tag: 0, value: Some(&value) };
    loop {
        match engine.state().put(&[put], &nobody) {
            Ok(_) => return Ok(boot),
            Err(AppendError::Full) => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(RunError::Value(format!("key {key}: {e}"))),
        }
    }
}

/// Folds the log and begins everything but listeners. Blocks while it reads.
pub(crate) fn assemble(
    engine: Arc<dyn Engine>,
    mut found: Found,
    metrics: Arc<Metrics>,
    (limits, store_bytes_max): (Limits, u64),
    wall_ms: fn() -> u64,
) -> Result<Arc<Gateway>, RunError> {
    let retained = fold(&*engine, std::mem::take(&mut found.bases))?;
    let clock = Clock::begin(wall_ms, found.reached);
    let boot = begin(&*engine, &mut found.boots, clock.now().steady_ms)?;
    let (mut tails, mut passed) = (Vec::new(), Vec::new());
    for (nth, p) in engine.partitions().iter().enumerate() {
        let (bell, at) = (Arc::new(Bell::default()), Arc::new(Passed::default()));
        let (tx, rx) = unbounded_channel();
        let following = engine.follow(p.id, bell.clone());
        vital::spawn("a tail", Tail::new(PartitionId(p.id.0), nth, following, bell, rx, (retained[nth].clone(), at.clone())).run());
        tails.push(tx);
        passed.push(at);
    }
    let (offline, due) = Offline::new();
    std::mem::take(&mut found.due).into_iter().for_each(|(at, client_id)| offline.look(at, &client_id));
    let (groups, interests, boots) = (found.take_groups(), Interests::of(found.interest), found.boots);
    let gateway = Arc::new(Gateway::new(Parts {
        engine,
        tails,
        passed,
        retained,
        offline,
        interests,
        metrics,
        stored: found.sessions,
        boots,
        boot,
        limits,
        store_bytes_max,
        clock,
    }));
    for ((p, at), readers) in std::mem::take(&mut found.needs) {
        let cursors = gateway.partitions.iter().zip(&gateway.cursors).find(|(q, _)| **q == p && !gateway.is_system(p));
        cursors.into_iter().for_each(|(_, cursors)| cursors.add(at, readers));
    }
    Groups::restore(&gateway, groups);
    let looking = gateway.clone();
    let look = async move |client_id: Arc<str>| {
        if let Some(driver) = Driver::offline(looking.clone(), &client_id) {
            // A task of its own: if it panics, the others still have their turn.
            let _ = tokio::spawn(tcp::outlive(Box::new(driver))).await;
        }
    };
    let now_ms = {
        let gateway = gateway.clone();
        move || gateway.now().steady_ms
    };
    vital::spawn("the clock of offline sessions", offline::run(due, now_ms, look));
    Ok(gateway)
}
