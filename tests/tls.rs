//! `weir pub` and `weir sub` over TLS, as mosquitto's clients: against a proxy that ends TLS and asks for certificates, with an authority of its own.

mod support;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};
use support::{Guard, Weir, binary, dir, eventually, free_port};

/// PORT, PORT of the gateway, directory, "client" if clients need a certificate.
const PROXY: &str = r#"
import socket, ssl, sys, threading
port, weir, where, wants = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(where + "/server.crt", where + "/server.key")
if wants:
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(where + "/ca.crt")
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    finally:
        for s in (a, b):
            try: s.shutdown(socket.SHUT_RDWR)
            except OSError: pass
def serve(raw):
    try:
        client = context.wrap_socket(raw, server_side=True)
    except (ssl.SSLError, OSError):
        return
    server = socket.create_connection(("127.0.0.1", weir))
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)
listener = socket.create_server(("127.0.0.1", port))
while True:
    raw, _ = listener.accept()
    threading.Thread(target=serve, args=(raw,), daemon=True).start()
"#;

fn openssl(at: &Path, args: &str) {
    let out = Command::new("openssl").args(args.split(' ')).current_dir(at).output().expect("openssl is installed");
    assert!(out.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&out.stderr));
}

fn certificates(at: &Path) {
    openssl(at, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=authority");
    std::fs::write(at.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    for name in ["server", "client"] {
        openssl(at, &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(at, &format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile names"));
    }
    openssl(at, "req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -days 2 -subj /CN=other");
}

fn proxy(at: &Path, weir: u16, wants: &[&str]) -> (Guard, u16) {
    let port = free_port();
    let mut python = Command::new("python3");
    python.args(["-c", PROXY, &port.to_string(), &weir.to_string(), at.to_str().unwrap()]).args(wants).stdout(Stdio::null());
    let proxy = Guard(python.spawn().unwrap());
    eventually("the proxy listens", Duration::from_secs(10), || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (proxy, port)
}

fn ours(kind: &str, at: &Path, port: u16, args: &[&str]) -> Output {
    Command::new(binary()).args([kind, "-p", &port.to_string()]).args(args).current_dir(at).output().unwrap()
}

#[test]
fn certificates_are_checked_on_both_sides() {
    let dir = dir();
    let (at, weir) = (dir.path(), Weir::start(&dir.path().join("data")));
    certificates(at);
    let (_plain, port) = proxy(at, weir.mqtt, &[]);
    let (_asking, asking) = proxy(at, weir.mqtt, &["client"]);
    for version in ["311", "5"] {
        let message = format!("over TLS in {version}");
        let sent = ours("pub", at, port, &["--cafile", "ca.crt", "-V", version, "-t", "tls", "-m", &message, "-r", "-q", "1"]);
        assert!(sent.status.success(), "{version}: {}", String::from_utf8_lossy(&sent.stderr));
        let with = ["--cafile", "ca.crt", "--cert", "client.crt", "--key", "client.key", "-V", version, "-t", "tls", "-C", "1", "-W", "10"];
        let got = ours("sub", at, asking, &with);
        assert_eq!(String::from_utf8_lossy(&got.stdout), message + "\n", "{version}: {}", String::from_utf8_lossy(&got.stderr));
    }
    // mosquitto's client takes the same line.
    let theirs = Command::new("mosquitto_sub")
        .args([
            "-p",
            &asking.to_string(),
            "--cafile",
            "ca.crt",
            "--cert",
            "client.crt",
            "--key",
            "client.key",
            "-t",
            "tls",
            "-C",
            "1",
            "-W",
            "10",
        ])
        .current_dir(at)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&theirs.stdout), "over TLS in 5\n");
    for (port, args, words) in [
        (port, &["--cafile", "other.crt"][..], "certificate"),
        (asking, &["--cafile", "ca.crt"], ""),
        (port, &["--cafile", "nowhere.crt"], "nowhere.crt: "),
        (weir.mqtt, &["--cafile", "ca.crt"], ""),
        (port, &["--cert", "client.crt", "--key", "client.key"], "--cafile"),
    ] {
        let out = ours("pub", at, port, &[&["-t", "x", "-m", "x", "-q", "1"], args].concat());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.contains(words) && said.starts_with("weir: "), "{args:?}: {said}");
    }
}
