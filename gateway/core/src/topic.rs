//! Topic names and topic filters: what is well formed, and which filter matches which name.
//!
//! Invariant: `filter_matches` is the specification's word; the trie must agree with it.
//! Must not know: who subscribes.

/// A topic name that can be published to: not empty, no wildcard [MQTT-4.7.1-1, MQTT-4.7.3-1], no control character. Length and UTF-8 are the
/// codec's.
#[must_use]
pub fn topic_is_valid(topic: &str) -> bool {
    !topic.is_empty() && (is_plain(topic.as_bytes()) || !(topic.contains(['+', '#']) || has_controls(topic)))
}

/// Printable ASCII without wildcards. Nearly all topics are, and this is asked of every message: eight bytes at a time.
#[must_use]
pub fn is_plain(name: &[u8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    const HIGH: u64 = each(0x80);
    // While every byte is below 0x80, none of these sums carries into the next byte; where one is not, its own high bit says so.
    let word = |w: u64| {
        let printable = w.wrapping_add(each(0x60)) & !w.wrapping_add(each(0x01));
        let no_wildcard = (w ^ each(b'+')).wrapping_add(each(0x7F)) & (w ^ each(b'#')).wrapping_add(each(0x7F));
        printable & no_wildcard & !w & HIGH
    };
    let (words, rest) = name.as_chunks::<8>();
    let all = words.iter().fold(HIGH, |all, w| all & word(u64::from_ne_bytes(*w)));
    let mut last = [b' '; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    all & word(u64::from_ne_bytes(last)) == HIGH
}

/// Those above ASCII are 0xC2 and a byte below 0xA0; only then is it worth decoding.
fn may_be_control(b: u8) -> bool {
    (b < 0x20) | (b == 0x7F) | (b == 0xC2)
}

/// Control characters, U+0001 to U+001F and U+007F to U+009F, may be refused [MQTT 5, 1.5.4]: in names they only hide.
#[must_use]
pub fn has_controls(name: &str) -> bool {
    name.bytes().any(may_be_control) && name.chars().any(char::is_control)
}

/// A filter that can be subscribed to: wildcards fill whole levels, `#` is the last [MQTT-4.7.1-1, -2]; `$share/GROUP/FILTER` names
/// a group without wildcards and a filter [MQTT-4.8.2-1, -2].
#[must_use]
pub fn filter_is_valid(filter: &str) -> bool {
    match shared(filter) {
        Some((group, rest)) => !group.is_empty() && topic_is_valid(group) && plain_filter_is_valid(rest),
        None => !filter.starts_with("$share/") && filter != "$share" && plain_filter_is_valid(filter),
    }
}

/// The stream of the gateway's own topics.
pub const SYSTEM_STREAM: &str = "system";

/// A topic of the gateway's own, or a filter that matches only such.
#[must_use]
pub fn is_system(topic: &str) -> bool {
    topic.strip_prefix("$SYS").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A topic that clients do not publish to: the gateway's own, its dead letters, and the words in front of subscriptions of another kind.
#[must_use]
pub fn is_reserved(topic: &str) -> bool {
    const WORDS: [&str; 5] = ["$SYS", "$dead", "$replay", "$share", "$queue"];
    topic.starts_with('$') && WORDS.contains(&topic.split_once('/').map_or(topic, |(first, _)| first))
}

/// Of a bridge's name: that of a host, and that of the connection.
const BRIDGE_NAME_BYTES: usize = 320;

/// What the bridge of another broker says of itself, with its defaults: whether it is connected, `1` or `0`, as its will too. It is a client like any other, and refused it does not come.
#[must_use]
pub fn is_bridge_state(topic: &str, payload: &[u8]) -> bool {
    let name = topic.strip_prefix("$SYS/broker/connection/").and_then(|rest| rest.strip_suffix("/state"));
    name.is_some_and(|name| (1..=BRIDGE_NAME_BYTES).contains(&name.len()) && !name.contains('/')) && matches!(payload, b"0" | b"1" | b"")
}

/// Group and filter of a shared subscription. `$queue/FILTER` is a group of the name `$queue`.
#[must_use]
pub fn shared(filter: &str) -> Option<(&str, &str)> {
    match filter.strip_prefix("$share/") {
        Some(rest) => rest.split_once('/'),
        None => filter.strip_prefix("$queue/").map(|rest| ("$queue", rest)),
    }
}

fn plain_filter_is_valid(filter: &str) -> bool {
    if filter.is_empty() || has_controls(filter) {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let whole = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            _ => !level.bytes().any(|b| b == b'+' || b == b'#'),
        };
        if !whole {
            return false;
        }
    }
    true
}

/// Does `filter` match `topic`? A leading wildcard does not match a topic that begins with `$` [MQTT-4.7.2-1].
#[must_use]
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let mut names = topic.split('/');
    let mut levels = filter.split('/');
    loop {
        match (levels.next(), names.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(level), Some(name)) if level == name => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// Where a scan of sorted topics goes on after one that does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// With the next topic.
    Next,
    /// With the first topic at or after what was written.
    To,
    /// Nowhere: none after it matches.
    End,
}

/// Finds the least string after `topic`, which `filter` does not match, at which a topic that it matches may stand; writes it to `to`.
///
/// Topics that share a prefix that ends with `/` adjoin in byte order, whatever stands in the levels; so the search goes down the levels that agree, and
/// where none can follow any more, back to the last `+`, whose subtree is passed as a whole (`0` is the byte after `/`).
pub fn skip(filter: &str, topic: &str, to: &mut Vec<u8>) -> Skip {
    let mut goto = |bytes: &[&[u8]]| {
        to.clear();
        bytes.iter().for_each(|b| to.extend_from_slice(b));
        if to.as_slice() > topic.as_bytes() { Skip::To } else { Skip::Next }
    };
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return goto(&[b"%"]);
    }
    // End of the topic's level at the last `+` that was passed.
    let mut plus_end = None;
    let (mut start, mut levels) = (0, filter.split('/').peekable());
    while let Some(level) = levels.next() {
        let Some(rest) = topic.get(start..) else {
            // The topic ends before the filter: its children follow it, but before them what only begins like it, and a `+` takes that too.
            return if plus_end == Some(topic.len()) { Skip::Next } else { goto(&[topic.as_bytes(), b"/"]) };
        };
        let end = start + rest.find('/').unwrap_or(rest.len());
        let prefix = &topic.as_bytes()[..start];
        match level {
            "#" => return Skip::Next,
            "+" => plus_end = Some(end),
            _ if level.as_bytes() == &topic.as_bytes()[start..end] => {}
            _ => {
                if goto(&[prefix, level.as_bytes()]) == Skip::To {
                    return Skip::To;
                }
                if levels.peek().is_some() && goto(&[prefix, level.as_bytes(), b"/"]) == Skip::To {
                    return Skip::To;
                }
                return plus_end.map_or(Skip::End, |end| goto(&[&topic.as_bytes()[..end], b"0"]));
            }
        }
        start = end + 1;
    }
    // The topic has more levels than the filter.
    plus_end.map_or(Skip::End, |end| goto(&[&topic.as_bytes()[..end], b"0"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The specification's own examples (4.7.1 to 4.7.3).
    #[test]
    fn examples_of_the_specification() {
        let yes = [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("sport/#", "sport"),
            ("#", "a/b"),
            ("#", "/"),
            ("sport/tennis/+", "sport/tennis/player1"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("$SYS/#", "$SYS/x"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
            ("a//b", "a//b"),
            ("a/+/b", "a//b"),
        ];
        for (filter, topic) in yes {
            assert!(filter_matches(filter, topic), "{filter} matches {topic}");
        }
        let no = [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("#", "$SYS/x"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("a/b", "a/b/c"),
            ("a/b", "A/b"),
            ("a/b/", "a/b"),
        ];
        for (filter, topic) in no {
            assert!(!filter_matches(filter, topic), "{filter} does not match {topic}");
        }
    }

    #[test]
    fn well_formed_and_not() {
        for filter in ["#", "+", "a/#", "+/a/#", "/", "a//b", "$SYS/#", "$share/g/a/#", "$queue/+", "$shared", "a b"] {
            assert!(filter_is_valid(filter), "{filter}");
        }
        for filter in
            ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "$share/g", "$share/", "$share", "$share//a", "$share/g+/a", "$share/g/", "$queue/"]
        {
            assert!(!filter_is_valid(filter), "{filter}");
        }
        assert!(topic_is_valid("a/b") && topic_is_valid("/") && !topic_is_valid("a/+") && !topic_is_valid("#") && !topic_is_valid(""));
    }

    #[test]
    fn plain_is_printable_ascii_without_wildcards_wherever_a_byte_stands() {
        for len in 0..=20 {
            for at in 0..len {
                for byte in 0..=255 {
                    let mut name = vec![b'a'; len];
                    name[at] = byte;
                    assert_eq!(is_plain(&name), matches!(byte, 0x20..=0x7E) && !matches!(byte, b'+' | b'#'), "{byte} at {at} of {len}");
                }
            }
            assert!(is_plain(&vec![b'~'; len]));
        }
    }

    proptest! {
        #[test]
        fn plain_is_what_each_byte_says(name: Vec<u8>) {
            prop_assert_eq!(is_plain(&name), name.iter().all(|b| matches!(b, 0x20..=0x7E) && !matches!(b, b'+' | b'#')));
        }

        /// A scan that skips finds what a plain scan finds.
        #[test]
        fn skipping_passes_nothing_that_matches(
            topics in proptest::collection::btree_set("[-/0$ab]{1,6}", 0..60),
            filter in "(\\+|[-0$ab]{1,2})(/(\\+|[-0$ab]{0,2})){0,3}(/#)?",
        ) {
            prop_assume!(filter_is_valid(&filter));
            let plain: Vec<&String> = topics.iter().filter(|t| filter_matches(&filter, t)).collect();
            let (mut found, mut to, mut at) = (Vec::new(), Vec::new(), Vec::new());
            let mut looked = 0;
            while let Some(topic) = topics.iter().find(|t| t.as_bytes() >= at.as_slice()) {
                looked += 1;
                let next = [topic.as_bytes(), &[0]].concat();
                if filter_matches(&filter, topic) {
                    found.push(topic);
                    at = next;
                    continue;
                }
                match skip(&filter, topic, &mut to) {
                    Skip::Next => at = next,
                    Skip::To => at.clone_from(&to),
                    Skip::End => break,
                }
            }
            prop_assert_eq!(found, plain);
            prop_assert!(looked <= topics.len());
        }
    }

    #[test]
    fn a_scan_skips_whole_subtrees() {
        let mut to = Vec::new();
        for (filter, topic, skip_, at) in [
            ("m/x", "a", Skip::To, "m"),
            ("m/x", "m", Skip::To, "m/"),
            ("m/x", "m/y", Skip::End, ""),
            ("a/+/c", "a/b/d", Skip::To, "a/b0"),
            ("a/+/c", "a/b/a/x", Skip::To, "a/b/c"),
            ("a/+/c", "a/b", Skip::Next, ""),
            ("a/+/c", "a-b", Skip::To, "a/"),
            ("+/b", "$SYS/x", Skip::To, "%"),
        ] {
            assert_eq!(skip(filter, topic, &mut to), skip_, "{filter} {topic}");
            if skip_ == Skip::To {
                assert_eq!(to, at.as_bytes(), "{filter} {topic}");
            }
        }
    }
}
