//! A browser's feed of everything, over server-sent events: it goes on where it was, whatever becomes of the gateway.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

pub struct Feed {
    stopping: Arc<AtomicBool>,
    offsets: Arc<Mutex<Vec<u64>>>,
    thread: JoinHandle<()>,
}

impl Feed {
    pub fn start(port: u16) -> Self {
        let (stopping, offsets) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stop, all) = (stopping.clone(), offsets.clone());
        let thread = std::thread::spawn(move || {
            let mut last_id = None;
            while !stop.load(Ordering::SeqCst) {
                let _until_it_breaks = follow(port, &mut last_id, &all, &stop);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stopping, offsets, thread }
    }

    /// The offsets that were told, in order, once nothing more comes.
    pub fn end(self) -> Vec<u64> {
        let told = || self.offsets.lock().unwrap().len();
        let mut before = usize::MAX;
        while told() != before {
            before = told();
            std::thread::sleep(Duration::from_millis(700));
        }
        self.stopping.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        Arc::into_inner(self.offsets).unwrap().into_inner().unwrap()
    }
}

fn follow(port: u16, last_id: &mut Option<String>, all: &Mutex<Vec<u64>>, stop: &AtomicBool) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let resume = last_id.as_ref().map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
    write!(socket, "GET /events?filter=%23&from=earliest HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{resume}\r\n")?;
    let mut lines = BufReader::new(socket);
    let (mut line, mut told, mut id) = (String::new(), Vec::new(), None);
    while !stop.load(Ordering::SeqCst) {
        match lines.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // A part of a line stays.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
            Err(e) => return Err(e),
        }
        let text = line.trim();
        if let Some(data) = text.strip_prefix("data:") {
            let message: serde_json::Value = serde_json::from_str(data).unwrap();
            assert_ne!(message["type"], "lost", "{message}");
            told.extend(message["records"].as_array().into_iter().flatten().map(|r| r["offset"].as_u64().unwrap()));
        } else if let Some(text) = text.strip_prefix("id:") {
            id = Some(text.trim().to_owned());
        } else if text.is_empty() {
            // An event counts when it is whole.
            all.lock().unwrap().append(&mut told);
            *last_id = id.take().or(last_id.take());
        }
        line.clear();
    }
    Ok(())
}
