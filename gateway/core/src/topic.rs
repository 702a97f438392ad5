//! Topic names and topic filters: what is well formed, and which filter matches which name.
//!
//! Invariant: `filter_matches` is the specification's word; the trie must agree with it.
//! Must not know: who subscribes.

/// A topic name that can be published to: not empty, no wildcard [MQTT-4.7.1-1, MQTT-4.7.3-1], no control character. Length and UTF-8 are the
/// codec's.
#[must_use]
pub fn topic_is_valid(topic: &str) -> bool {
    !topic.is_empty() && !topic.bytes().any(|b| b == b'+' || b == b'#') && !has_controls(topic)
}

/// Control characters, U+0001 to U+001F and U+007F to U+009F, may be refused [MQTT 5, 1.5.4]: in names they only hide.
#[must_use]
pub fn has_controls(name: &str) -> bool {
    // Those above ASCII are 0xC2 and a byte below 0xA0; only then is it worth decoding.
    name.bytes().any(|b| b < 0x20 || b == 0x7F || b == 0xC2) && name.chars().any(char::is_control)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
