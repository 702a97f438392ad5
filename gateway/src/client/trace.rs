//! `-d`: a line per packet, in the words of mosquitto's clients.

use crate::terminal;
use rumqttc::Outgoing;
use std::{collections::VecDeque, fmt::Display};

/// Says what is sent and received. Silent without `-d`.
pub struct Trace {
    is_on: bool,
    client: String,
    /// PUBLISH packets that were handed over and have not left.
    queued: VecDeque<String>,
}

impl Trace {
    pub fn new(is_on: bool, client: &str) -> Self {
        let trace = Self { is_on, client: client.into(), queued: VecDeque::new() };
        trace.sending("CONNECT");
        trace
    }

    fn line(&self, text: impl Display) {
        if self.is_on {
            terminal::say(format_args!("Client {} {text}", self.client));
        }
    }

    pub fn sending(&self, packet: impl Display) {
        self.line(format_args!("sending {packet}"));
    }

    /// `packet`: its name and the numbers in it; empty for what is said elsewhere.
    pub fn received(&self, packet: impl FnOnce() -> String) {
        if self.is_on {
            let packet = packet();
            if !packet.is_empty() {
                self.line(format_args!("received {packet}"));
            }
        }
    }

    pub fn publishes(&mut self, topic: &str, qos: u8, retain: bool, bytes: usize) {
        if self.is_on {
            let retain = u8::from(retain);
            self.queued.push_back(format!("q{qos}, r{retain}, '{topic}', {bytes} bytes"));
        }
    }

    pub fn subscribes(&self, filters: &[String], qos: u8) {
        for filter in filters {
            self.sending(format_args!("SUBSCRIBE ({filter}, QoS: {qos})"));
        }
    }

    /// A packet has left.
    pub fn left(&mut self, packet: &Outgoing) {
        match packet {
            _ if !self.is_on => {}
            Outgoing::Publish(id) => {
                let what = self.queued.pop_front().unwrap_or_else(|| "again".into());
                self.sending(format_args!("PUBLISH (m{id}, {what})"));
            }
            Outgoing::PubAck(id) => self.sending(format_args!("PUBACK (m{id})")),
            Outgoing::PubRec(id) => self.sending(format_args!("PUBREC (m{id})")),
            Outgoing::PubRel(id) => self.sending(format_args!("PUBREL (m{id})")),
            Outgoing::PubComp(id) => self.sending(format_args!("PUBCOMP (m{id})")),
            Outgoing::Unsubscribe(id) => self.sending(format_args!("UNSUBSCRIBE (m{id})")),
            Outgoing::PingReq => self.sending("PINGREQ"),
            Outgoing::Disconnect => self.sending("DISCONNECT"),
            // SUBSCRIBE has said more; the rest are no packets of a client.
            Outgoing::Subscribe(_) | Outgoing::PingResp | Outgoing::AwaitAck(_) => {}
        }
    }
}
