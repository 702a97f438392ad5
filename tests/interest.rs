//! A publisher of version 5 is told whether anybody subscribes, connected or not [MQTT 5, 3.4.2.1]; the message is in the log in either case.

mod support;

use std::time::Duration;
use support::{
    Weir, dir, eventually,
    raw::{PUBACK, Raw, Version},
};

const NOBODY: u8 = 0x10;

/// The reason that a publisher of QoS 1 on this topic gets.
fn ask(port: u16, topic: &str) -> u8 {
    let mut p = Raw::connect_with(port, Version::V5, "", true, &[]);
    p.publish(1, false, 1, topic, "x");
    p.expect_ack(PUBACK, 1)
}

fn unsubscribe(c: &mut Raw, filter: &str) {
    let body = [&[0, 7, 0][..], &(filter.len() as u16).to_be_bytes(), filter.as_bytes()].concat();
    c.send(0xA2, &body);
    // Behind what was published meanwhile.
    let unsuback = std::iter::repeat_with(|| c.read()).find(|p| p.head == 0xB0);
    assert_eq!(unsuback.expect("an UNSUBACK").body, [0, 7, 0, 0]);
}

#[test]
fn who_publishes_is_told_whether_anybody_subscribes() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let port = weir.mqtt;
    assert_eq!(ask(port, "a/b"), NOBODY);

    // Subscribed, offline, after SIGKILL, back, and no more.
    let mut c = Raw::connect(port, Version::V5, "c");
    c.subscribe("a/+", 1);
    assert_eq!((ask(port, "a/b"), ask(port, "a/b/c")), (0, NOBODY));
    drop(c);
    assert_eq!(ask(port, "a/b"), 0);
    let ports = weir.ports();
    weir.kill();
    weir = Weir::start_on(dir.path(), ports);
    assert_eq!((ask(port, "a/b"), ask(port, "b")), (0, NOBODY));
    let mut c = Raw::connect(port, Version::V5, "c");
    assert!(c.session_present);
    unsubscribe(&mut c, "a/+");
    assert_eq!(ask(port, "a/b"), NOBODY);

    // A clean start forgets the filters of the session before it, plain and shared.
    c.subscribe("a/b", 1);
    c.subscribe("$share/g/a/c", 1);
    drop(c);
    assert_eq!((ask(port, "a/b"), ask(port, "a/c")), (0, 0));
    let c = Raw::connect_with(port, Version::V5, "c", true, &[]);
    assert_eq!((ask(port, "a/b"), ask(port, "a/c")), (NOBODY, NOBODY));
    drop(c);

    // A session ends with its connection, or by itself after a second; one that comes back later is another.
    let mut short = Raw::connect_with(port, Version::V5, "short", true, &[]);
    short.subscribe("short/#", 0);
    let mut expires = Raw::connect_with(port, Version::V5, "expires", true, &[0x11, 0, 0, 0, 1]);
    expires.subscribe("expires/#", 0);
    expires.subscribe("$share/g/shared/#", 0);
    assert_eq!((ask(port, "short"), ask(port, "expires/x"), ask(port, "shared")), (0, 0, 0));
    drop((short, expires));
    let gone = || ask(port, "short") == NOBODY && ask(port, "expires/x") == NOBODY && ask(port, "shared") == NOBODY;
    eventually("both sessions end", Duration::from_secs(10), gone);
    drop(weir);
}
