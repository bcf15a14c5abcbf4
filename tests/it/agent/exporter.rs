//! A stand-in for a DCGM exporter: an HTTP server that prints what an exporter of version 4.8 prints for the GPUs that a
//! test names, and that fails as a test wants.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the exporter answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// The page of these GPUs: UUID, and used, free and reserved memory in MiB.
    Gpus(Vec<(&'static str, u64, u64, Option<u64>)>),
    /// This text as its page.
    Text(String),
    /// A status other than 200.
    Status(&'static str),
    /// A page that never ends: this many bytes of comments at once, again and again.
    Endless(usize, Duration),
    /// It closes each connection at once.
    Nothing,
}

/// A listening exporter. It ends with the test.
pub(super) struct Exporter {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Exporter {
    pub(super) fn start(answer: Answer) -> Exporter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it listens").port();
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(Mutex::new(Vec::new())));
        let (of_thread, noted) = (answer.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, noted) = (of_thread.clone(), noted.clone());
                // The other side closes the connection where it has heard enough.
                std::thread::spawn(move || _ = serve(stream, &answer, &noted));
            }
        });
        Exporter { port, answer, asked }
    }

    /// Changes how it answers.
    pub(super) fn answers(&self, answer: Answer) {
        *self.answer.lock().expect("no test panics with the lock") = answer;
    }

    /// Its address without a path.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The first line of each request, and its header `Host`.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no test panics with the lock").clone()
    }
}

fn serve(mut stream: TcpStream, answer: &Mutex<Answer>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let answer = answer.lock().expect("no test panics with the lock").clone();
    if matches!(answer, Answer::Nothing) {
        return Ok(());
    }
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let is_host = line.to_ascii_lowercase().starts_with("host:");
        if request.is_empty() || is_host {
            request = format!("{request} {}", line.trim());
        }
    }
    asked.lock().expect("no test panics with the lock").push(request.trim().to_owned());
    let (status, body) = match answer {
        Answer::Gpus(gpus) => ("200 OK", page(&gpus)),
        Answer::Text(text) => ("200 OK", text),
        Answer::Status(status) => (status, "failed to gather metrics\n".to_owned()),
        Answer::Endless(size, pause) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            let comment = format!("# {}\n", "x".repeat(1022)).repeat(size.div_ceil(1024));
            loop {
                stream.write_all(comment.as_bytes())?;
                std::thread::sleep(pause);
            }
        }
        Answer::Nothing => unreachable!("it has returned"),
    };
    let kind = "text/plain; charset=utf-8";
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Content-Type-Options: nosniff\r\n");
    // Go sends a page of this size in chunks.
    write!(stream, "{head}Transfer-Encoding: chunked\r\n\r\n")?;
    for piece in body.as_bytes().chunks(700) {
        write!(stream, "{:x}\r\n", piece.len())?;
        stream.write_all(piece)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\n\r\n")
}

/// The page of an exporter with the counters that it has by default, as far as they matter here.
fn page(gpus: &[(&'static str, u64, u64, Option<u64>)]) -> String {
    let mut page = String::new();
    let mut metric = |name: &str, help: &str, of: &dyn Fn(usize) -> Option<u64>| {
        let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (index, (uuid, ..)) in gpus.iter().enumerate() {
            let Some(value) = of(index) else { continue };
            let _ = writeln!(
                page,
                "{name}{{gpu=\"{index}\",UUID=\"{uuid}\",pci_bus_id=\"00000000:0{index}:00.0\",device=\"nvidia{index}\",\
                 modelName=\"NVIDIA L4\",hostname=\"gpu-0\",DCGM_FI_DRIVER_VERSION=\"580.159.04\"}} {value}"
            );
        }
    };
    metric("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", &|_| Some(1980));
    metric("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", &|index| Some(gpus[index].2));
    metric("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", &|index| Some(gpus[index].1));
    metric("DCGM_FI_DEV_FB_RESERVED", "Framebuffer memory reserved (in MiB).", &|index| gpus[index].3);
    page
}
