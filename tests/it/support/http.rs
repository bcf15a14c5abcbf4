//! Owns plain HTTP requests to a server's port for metrics and health.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The answer to a GET: status line, headers and body. Empty if the port refuses the connection.
pub(crate) fn get(port: u16, path: &str) -> String {
    let mut answer = String::new();
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return answer;
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_ok() {
        _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        _ = stream.read_to_string(&mut answer);
    }
    answer
}

/// The value of one sample in `/metrics`. `sample` is its name, with all its labels if it has any.
pub(crate) fn metric(port: u16, sample: &str) -> Option<f64> {
    let text = get(port, "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    Some(value.trim().parse().expect("a sample is a number"))
}

/// Sum of the samples of a counter in `/metrics` whose name and labels begin with `prefix`.
pub(crate) fn sum(port: u16, prefix: &str) -> u64 {
    let text = get(port, "/metrics");
    let lines = text.lines().filter(|line| line.starts_with(prefix));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
