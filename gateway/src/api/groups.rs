//! Groups of shared subscriptions: members, consumer lag, what is pending.
//!
//! Invariant: each is described by itself; a group without members is there as long as a session
//! subscribes.
//! Must not know: how a group works.

use super::heavy::json;
use crate::{
    gateway::Gateway,
    group::{Description, Groups},
};
use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// A member that is connected.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MemberInfo {
    pub client_id: String,
    /// Records on their way to it.
    pub pending: usize,
}

/// How far a group has come in one partition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupPlaceInfo {
    pub stream: String,
    pub partition: u32,
    /// The record that it looks at next.
    pub next: u64,
    /// The end of the log.
    pub end: u64,
}

/// A group.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupInfo {
    /// As in `$share/GROUP/FILTER`; `$queue` of `$queue/FILTER`.
    pub group: String,
    pub filter: String,
    /// Sessions that subscribe, connected or not.
    pub subscribers: usize,
    pub members: Vec<MemberInfo>,
    /// Records that members have and have not acknowledged.
    pub pending: usize,
    /// Records that wait to be delivered again.
    pub to_redeliver: usize,
    /// Records that are about to become dead letters.
    pub dead_lettering: usize,
    /// Records between it and the end of the log, matching or not, and what is pending or to be delivered again.
    pub lag: u64,
    pub places: Vec<GroupPlaceInfo>,
}

fn info(gateway: &Gateway, d: Description) -> GroupInfo {
    let ends = gateway.ends();
    let place = |(p, next): (weir_core::ids::PartitionId, weir_core::ids::Offset)| {
        let nth = gateway.partitions.iter().position(|q| *q == p)?;
        let (stream, number) = gateway.streams.get(nth)?;
        Some(GroupPlaceInfo { stream: stream.to_string(), partition: *number, next: next.0, end: *ends.get(nth)? })
    };
    let (lag, pending) = (d.lag(gateway), d.pending());
    let places = d.places(gateway).into_iter().filter_map(place).collect();
    GroupInfo {
        group: d.name.split_once('/').map_or(&*d.name, |(group, _)| group).into(),
        filter: d.filter().into(),
        subscribers: d.subscribers,
        members: d.members.into_iter().map(|(client_id, pending)| MemberInfo { client_id, pending }).collect(),
        pending,
        to_redeliver: d.to_redeliver,
        dead_lettering: d.dead_lettering,
        lag,
        places,
    }
}

/// All groups.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupsInfo {
    pub groups: Vec<GroupInfo>,
}

/// All groups.
#[utoipa::path(get, path = "/api/v1/groups", responses((status = 200, body = GroupsInfo)))]
pub(crate) async fn groups(State(gateway): State<Arc<Gateway>>) -> Response {
    let groups = Groups::describe(&gateway).await.into_iter().map(|d| info(&gateway, d)).collect();
    json(&GroupsInfo { groups })
}
