//! `-D COMMAND PROPERTY VALUE`: the properties of the packets of MQTT 5.
//!
//! Names are compared without case, as mosquitto does.

use super::Failure;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, LastWillProperties, PublishProperties, SubscribeProperties, UnsubscribeProperties};
use std::str::FromStr;

/// What `-D` set, by packet.
#[derive(Clone, Debug)]
pub struct Properties {
    pub connect: ConnectProperties,
    pub publish: PublishProperties,
    pub subscribe: SubscribeProperties,
    pub unsubscribe: UnsubscribeProperties,
    pub will: LastWillProperties,
}

impl Default for Properties {
    fn default() -> Self {
        let subscribe = SubscribeProperties { id: None, user_properties: Vec::new() };
        let unsubscribe = UnsubscribeProperties { user_properties: Vec::new() };
        let will = LastWillProperties {
            delay_interval: None,
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        Self { connect: ConnectProperties::new(), publish: PublishProperties::default(), subscribe, unsubscribe, will }
    }
}

/// The properties that each packet may have (MQTT 5.0, 2.2.2.2).
const KNOWN: &[(&str, &str)] = &[
    (
        "connect",
        "authentication-data authentication-method maximum-packet-size receive-maximum request-problem-information \
         request-response-information session-expiry-interval topic-alias-maximum user-property",
    ),
    ("publish", "content-type correlation-data message-expiry-interval payload-format-indicator response-topic topic-alias user-property"),
    ("subscribe", "subscription-identifier user-property"),
    ("unsubscribe", "user-property"),
    (
        "will",
        "content-type correlation-data message-expiry-interval payload-format-indicator response-topic user-property \
         will-delay-interval",
    ),
];

/// A 4-byte length of MQTT, the largest Subscription Identifier (3.8.2.1.2).
const IDENTIFIER_MAX: usize = 268_435_455;

/// One `-D`, for its errors.
struct Said<'a> {
    command: &'a str,
    property: &'a str,
    value: &'a str,
}

impl Said<'_> {
    fn wrong(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(format!("-D {} {} {}: {why}", self.command, self.property, self.value))
    }

    fn number<N: FromStr<Err: std::fmt::Display>>(&self) -> Result<N, Failure> {
        self.value.parse().map_err(|e| self.wrong(e))
    }

    /// A value of 0 or 1.
    fn flag(&self) -> Result<u8, Failure> {
        self.number().ok().filter(|n| *n <= 1).ok_or_else(|| self.wrong("0 or 1"))
    }

    fn identifier(&self) -> Result<usize, Failure> {
        let number = self.number().ok().filter(|n| (1..=IDENTIFIER_MAX).contains(n));
        number.ok_or_else(|| self.wrong(format_args!("1 to {IDENTIFIER_MAX}")))
    }
}

impl Properties {
    /// Reads the values of all `-D` in a row: three words each, four for a user property.
    ///
    /// # Errors
    /// A packet or property that does not exist, or a value that it cannot have.
    pub fn parse(words: &[String]) -> Result<Self, Failure> {
        let mut all = Self::default();
        let mut words = words.iter().map(String::as_str);
        while let Some(command) = words.next() {
            let (command, property) = known(command, words.next().unwrap_or_default())?;
            let said = Said { command, property, value: words.next().unwrap_or_default() };
            if property == "user-property" {
                let value = words.next().ok_or_else(|| said.wrong("a user-property has a NAME and a VALUE"))?;
                all.user(command).push((said.value.into(), value.into()));
            } else {
                all.set(&said)?;
            }
        }
        Ok(all)
    }

    fn user(&mut self, command: &str) -> &mut Vec<(String, String)> {
        match command {
            "connect" => &mut self.connect.user_properties,
            "publish" => &mut self.publish.user_properties,
            "subscribe" => &mut self.subscribe.user_properties,
            "unsubscribe" => &mut self.unsubscribe.user_properties,
            _ => &mut self.will.user_properties,
        }
    }

    fn set(&mut self, said: &Said<'_>) -> Result<(), Failure> {
        let text = said.value.to_owned();
        let (connect, publish, will) = (&mut self.connect, &mut self.publish, &mut self.will);
        match (said.command, said.property) {
            ("connect", "authentication-data") => connect.authentication_data = Some(text.into()),
            ("connect", "authentication-method") => connect.authentication_method = Some(text),
            ("connect", "maximum-packet-size") => connect.max_packet_size = Some(said.number()?),
            ("connect", "receive-maximum") => connect.receive_maximum = Some(said.number()?),
            ("connect", "request-problem-information") => connect.request_problem_info = Some(said.flag()?),
            ("connect", "request-response-information") => connect.request_response_info = Some(said.flag()?),
            ("connect", "session-expiry-interval") => connect.session_expiry_interval = Some(said.number()?),
            ("connect", "topic-alias-maximum") => connect.topic_alias_max = Some(said.number()?),
            ("publish", "content-type") => publish.content_type = Some(text),
            ("publish", "correlation-data") => publish.correlation_data = Some(text.into()),
            ("publish", "message-expiry-interval") => publish.message_expiry_interval = Some(said.number()?),
            ("publish", "payload-format-indicator") => publish.payload_format_indicator = Some(said.flag()?),
            ("publish", "response-topic") => publish.response_topic = Some(text),
            ("publish", "topic-alias") => publish.topic_alias = Some(said.number()?),
            ("subscribe", _) => self.subscribe.id = Some(said.identifier()?),
            ("will", "content-type") => will.content_type = Some(text),
            ("will", "correlation-data") => will.correlation_data = Some(text.into()),
            ("will", "message-expiry-interval") => will.message_expiry_interval = Some(said.number()?),
            ("will", "payload-format-indicator") => will.payload_format_indicator = Some(said.flag()?),
            ("will", "response-topic") => will.response_topic = Some(text),
            ("will", "will-delay-interval") => will.delay_interval = Some(said.number()?),
            _ => return Err(said.wrong("not a property of this packet")),
        }
        Ok(())
    }
}

/// The names as they are written here.
fn known(command: &str, property: &str) -> Result<(&'static str, &'static str), Failure> {
    let Some((packet, properties)) = KNOWN.iter().find(|(packet, _)| packet.eq_ignore_ascii_case(command)) else {
        let packets: Vec<&str> = KNOWN.iter().map(|(packet, _)| *packet).collect();
        return Err(Failure::new(format!("-D {command}: properties can be set of {}", packets.join(", "))));
    };
    let found = properties.split(' ').find(|name| name.eq_ignore_ascii_case(property));
    let all = || properties.split(' ').collect::<Vec<_>>().join(", ");
    let name = found.ok_or_else(|| Failure::new(format!("-D {packet} {property}: {packet} has {}", all())))?;
    Ok((packet, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Properties, Failure> {
        Properties::parse(&words.split(' ').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn every_property_that_is_known_can_be_set() {
        for (packet, properties) in KNOWN {
            for property in properties.split(' ') {
                let value = if property == "user-property" { "name value" } else { "1" };
                let parsed = parse(&format!("{} {} {value}", packet.to_uppercase(), property.to_uppercase()));
                let parsed = parsed.unwrap_or_else(|e| panic!("{packet} {property}: {}", e.words));
                assert_ne!(format!("{parsed:?}"), format!("{:?}", Properties::default()), "{packet} {property}");
            }
        }
    }

    #[test]
    fn a_property_that_cannot_be_is_refused_by_its_name() {
        for (words, named) in [
            ("connack user-property a b", "connect, publish"),
            ("connect will-delay-interval 1", "receive-maximum"),
            ("publish payload-format-indicator 2", "0 or 1"),
            ("publish topic-alias 65536", "topic-alias 65536"),
            ("subscribe subscription-identifier 0", "268435455"),
            ("publish user-property a", "NAME and a VALUE"),
        ] {
            assert!(parse(words).is_err_and(|e| e.words.contains(named)), "{words}");
        }
    }
}
