//! What a service manager sees: ready, the configuration read again on SIGHUP, stopping, and the exit code.

mod support;

use std::{
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::Duration,
};
use support::{
    Guard, binary, dir, eventually, free_port,
    raw::{Raw, Version},
    signal,
};

#[test]
fn ready_reload_stopping() {
    let dir = dir();
    let manager = UnixDatagram::bind(dir.path().join("manager")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let heard = || {
        let mut bytes = [0; 256];
        let n = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).trim().to_owned()
    };
    let [mqtt, http, admin] = [free_port(), free_port(), free_port()];
    let file = dir.path().join("weir.toml");
    let write = |level: &str, deliveries: u32, more: &str| {
        let listen = format!("[listen]\nmqtt = \"127.0.0.1:{mqtt}\"\nhttp = \"127.0.0.1:{http}\"\nadmin = \"127.0.0.1:{admin}\"\n");
        let rest = format!(
            "[log]\ndata = {:?}\n[groups]\nmax_deliveries = {deliveries}\n[diagnostics]\nlog_level = \"{level}\"\n{more}",
            dir.path().join("data")
        );
        std::fs::write(&file, listen + &rest).unwrap();
    };
    write("warn", 5, "");
    let said = dir.path().join("said");
    let mut command = Command::new(binary());
    command.arg("run").arg("-c").arg(&file).env("NOTIFY_SOCKET", dir.path().join("manager")).env_remove("WEIR_LOG");
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&said).unwrap());
    let mut weir = Guard(command.spawn().unwrap());
    assert_eq!(heard(), "READY=1");
    // Listens, as it says.
    let violate = || {
        let mut c = Raw::connect_with(mqtt, Version::V5, "c", true, &[]);
        c.send(0xF0, &[]);
        while c.next(Duration::from_secs(5)).is_some() {}
    };
    violate();
    let words = || std::fs::read_to_string(&said).unwrap();
    assert_eq!(words(), "", "nothing is said at this level");

    write("info", 6, "[events]\nsys_interval = \"33s\"\n");
    signal(weir.0.id(), "HUP");
    let changed = "read again: diagnostics.log_level, groups.max_deliveries changed\n";
    eventually("it is read again", Duration::from_secs(5), || words().contains(changed));
    assert!(words().contains("these wait for a restart: events.sys_interval\n"), "{}", words());
    // What is in force is what is shown.
    eventually("it is in force", Duration::from_secs(5), || {
        let config = support::http_get(admin, "/api/v1/config");
        config.contains(r#""groups.max_deliveries","value":"6""#) && config.contains(r#""events.sys_interval","value":"\"10s\"""#)
    });
    violate();
    eventually("the level is in force", Duration::from_secs(5), || words().contains("closed: "));

    write("info", 6, "nonsense = 1\n");
    signal(weir.0.id(), "HUP");
    eventually("it goes on as it was", Duration::from_secs(5), || words().contains("no key diagnostics.nonsense"));
    violate();

    signal(weir.0.id(), "TERM");
    assert_eq!(heard(), "STOPPING=1");
    assert_eq!(weir.wait(Duration::from_secs(10)).code(), Some(0));
}
