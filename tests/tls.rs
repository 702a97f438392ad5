//! `weir pub` and `weir sub` over TLS, as mosquitto's clients: against a proxy that ends TLS and asks for certificates, with an authority of its own.

mod support;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};
use support::{Guard, Weir, binary, dir, eventually, free_port};

/// Address, PORT, PORT of the gateway, directory, "client" if clients need a certificate.
const PROXY: &str = r#"
import socket, ssl, sys, threading
host, port, weir, where, wants = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:]
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
listener = socket.create_server((host, port))
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
    proxy_at(at, "127.0.0.1", weir, wants)
}

fn proxy_at(at: &Path, host: &str, weir: u16, wants: &[&str]) -> (Guard, u16) {
    let port = free_port();
    let mut python = Command::new("python3");
    python.args(["-c", PROXY, host, &port.to_string(), &weir.to_string(), at.to_str().unwrap()]).args(wants).stdout(Stdio::null());
    let proxy = Guard(python.spawn().unwrap());
    eventually("the proxy listens", Duration::from_secs(10), || std::net::TcpStream::connect((host, port)).is_ok());
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
    // A directory of authorities, one version, one cipher suite, a protocol by name.
    let trusted = at.join("trusted");
    std::fs::create_dir(&trusted).unwrap();
    std::fs::copy(at.join("ca.crt"), trusted.join("ca.pem")).unwrap();
    std::fs::write(trusted.join("README"), "no certificate").unwrap();
    for args in [
        &["--capath", "trusted"][..],
        &["--cafile", "ca.crt", "--tls-version", "tlsv1.2", "--ciphers", "ECDHE-RSA-AES256-GCM-SHA384"],
        &["--cafile", "ca.crt", "--tls-version", "tlsv1.3", "--ciphers", "TLS_AES_128_GCM_SHA256", "--tls-alpn", "mqtt"],
    ] {
        let out = ours("pub", at, port, &[&["-t", "x", "-m", "x", "-q", "1"], args].concat());
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    // The certificate is for 127.0.0.1 and localhost alone.
    let elsewhere = ["-h", "127.0.0.2", "--cafile", "ca.crt", "-t", "x", "-m", "x", "-q", "1"];
    let (_other, other) = proxy_at(at, "127.0.0.2", weir.mqtt, &[]);
    assert_eq!(ours("pub", at, other, &elsewhere).status.code(), Some(1));
    let insecure = ours("pub", at, other, &[&elsewhere[..], &["--insecure"]].concat());
    assert!(insecure.status.success(), "{}", String::from_utf8_lossy(&insecure.stderr));
    // Its issuer is compared all the same.
    let other = ours("pub", at, port, &["--cafile", "other.crt", "--insecure", "-t", "x", "-m", "x", "-q", "1"]);
    assert_eq!(other.status.code(), Some(1));
    let with_url = ours("pub", at, port, &["-L", &format!("mqtts://127.0.0.1:{port}/x"), "--cafile", "ca.crt", "-m", "x", "-q", "1"]);
    assert_eq!(with_url.status.code(), Some(1), "-p and -L are one or the other");
    for (port, args, words) in [
        (port, &["--cafile", "other.crt"][..], "certificate"),
        (asking, &["--cafile", "ca.crt"], ""),
        (port, &["--cafile", "nowhere.crt"], "nowhere.crt: "),
        (weir.mqtt, &["--cafile", "ca.crt"], ""),
        (port, &["--cert", "client.crt", "--key", "client.key"], "--cafile"),
        (port, &["--insecure"], "--cafile"),
        (port, &["--cafile", "ca.crt", "--ciphers", "RC4"], "ECDHE-RSA-AES256-GCM-SHA384"),
        (port, &["--cafile", "ca.key"], "no certificate in PEM"),
        (port, &["--tls-use-os-certs"], "certificate"),
    ] {
        let out = ours("pub", at, port, &[&["-t", "x", "-m", "x", "-q", "1"], args].concat());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.contains(words) && said.starts_with("weir: "), "{args:?}: {said}");
    }
}
