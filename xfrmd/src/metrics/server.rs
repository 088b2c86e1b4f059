//! As much of HTTP as a scrape needs.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::SockType;
use serde_json::Value;

use super::{Endpoint, text};
use crate::driver::client::Inside;
use crate::driver::listener::{self, Removed};

/// How long a piece of a request or of an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request, and reads that may bring them.
const MOST_BYTES: usize = 8192;
const MOST_READS: usize = 16;

enum Listener {
    Inet(TcpListener),
    Path(UnixListener),
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Listener {
    fn open(endpoint: &Endpoint) -> io::Result<Self> {
        Ok(match endpoint {
            Endpoint::Inet(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Self::Inet(listener)
            }
            Endpoint::Path(path) => {
                listener::clear(path, SockType::Stream)?;
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
                listener.set_nonblocking(true)?;
                Self::Path(listener)
            }
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Inet(listener) => listener.as_fd(),
            Self::Path(listener) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Inet(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Self::Path(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        })
    }
}

enum Command {
    Open(Endpoint, Listener),
    Close(Endpoint),
    Stop,
}

/// A thread that serves metrics, for as long as this value lives.
pub(crate) struct Server {
    /// Where it serves; a Unix socket's path goes when it does no more.
    endpoints: Vec<(Endpoint, Option<Removed>)>,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl Server {
    /// Serves nowhere yet.
    pub(crate) fn start(daemon: Inside) -> io::Result<Self> {
        let (commands, receiver) = channel();
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let woken = Arc::clone(&wake);
        std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || serve(&receiver, &daemon, &woken))?;
        Ok(Self {
            endpoints: Vec::new(),
            commands,
            wake,
        })
    }

    /// Serves at these endpoints and no others; those that are served already are not disturbed.
    pub(crate) fn set(&mut self, endpoints: &[Endpoint]) -> Result<()> {
        self.endpoints.retain(|(endpoint, _)| {
            let stays = endpoints.contains(endpoint);
            if !stays {
                tell(&self.commands, &self.wake, Command::Close(endpoint.clone()));
            }
            stays
        });
        for endpoint in endpoints {
            if self.endpoints.iter().any(|(other, _)| other == endpoint) {
                continue;
            }
            let listener =
                Listener::open(endpoint).with_context(|| format!("metrics at {endpoint}"))?;
            let path = match endpoint {
                Endpoint::Path(path) => Some(Removed(path.clone())),
                Endpoint::Inet(_) => None,
            };
            self.endpoints.push((endpoint.clone(), path));
            let open = Command::Open(endpoint.clone(), listener);
            tell(&self.commands, &self.wake, open);
        }
        Ok(())
    }
}

impl Drop for Server {
    /// The thread may be waiting for the daemon, which is who drops this: nobody waits for it.
    fn drop(&mut self) {
        tell(&self.commands, &self.wake, Command::Stop);
    }
}

fn tell(commands: &Sender<Command>, wake: &EventFd, command: Command) {
    let _ = commands.send(command);
    let _ = wake.write(1);
}

fn serve(commands: &Receiver<Command>, daemon: &Inside, wake: &EventFd) {
    let mut listeners: Vec<(Endpoint, Listener)> = Vec::new();
    loop {
        let fds = listeners.iter().map(|(_, listener)| listener.fd());
        let mut fds: Vec<_> = std::iter::once(wake.as_fd())
            .chain(fds)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut fds, PollTimeout::NONE);
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|found| !found.is_empty());
        let ready: Vec<bool> = fds.iter().map(ready).collect();
        for ((_, listener), _) in listeners
            .iter()
            .zip(ready.iter().skip(1))
            .filter(|(_, ready)| **ready)
        {
            let served = listener
                .accept()
                .and_then(|mut stream| answer(&mut *stream, || daemon.statistics()));
            if let Err(error) = served {
                tracing::debug!(%error, "a scrape");
            }
        }
        let _ = wake.read();
        for command in commands.try_iter() {
            match command {
                Command::Open(endpoint, listener) => listeners.push((endpoint, listener)),
                Command::Close(endpoint) => listeners.retain(|(other, _)| *other != endpoint),
                Command::Stop => return,
            }
        }
    }
}

/// Answers one request.
fn answer(
    stream: &mut dyn Stream,
    statistics: impl FnOnce() -> io::Result<Value>,
) -> io::Result<()> {
    let request = head(stream)?;
    let mut words = request.split_ascii_whitespace();
    let (status, body) = match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some(path), Some("HTTP/1.0" | "HTTP/1.1")) => match path.split('?').next() {
            Some("/metrics") => match statistics() {
                Ok(statistics) => ("200 OK", text(&statistics)),
                Err(_) => ("503 Service Unavailable", "the daemon is busy\n".into()),
            },
            _ => ("404 Not Found", "there is only /metrics\n".into()),
        },
        (Some(_), Some(_), Some("HTTP/1.0" | "HTTP/1.1")) => {
            ("405 Method Not Allowed", "GET only\n".into())
        }
        _ => ("400 Bad Request", "not HTTP/1.1\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// A request's lines up to the empty one.
fn head(stream: &mut dyn Stream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    for _ in 0..MOST_READS {
        let len = stream.read(&mut piece)?;
        head.extend_from_slice(piece.get(..len).unwrap_or_default());
        let is_whole = head.windows(4).any(|end| end == b"\r\n\r\n");
        if is_whole || len == 0 || head.len() > MOST_BYTES {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Pretended(io::Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Pretended {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // Byte by byte would be too many pieces; by a few it arrives.
            let most = buffer.len().min(7);
            self.0.read(&mut buffer[..most])
        }
    }

    impl Write for Pretended {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(request: &str) -> String {
        let mut stream = Pretended(io::Cursor::new(request.into()), Vec::new());
        answer(&mut stream, || Ok(json!({"clients": 3}))).unwrap();
        String::from_utf8(stream.1).unwrap()
    }

    #[test]
    fn requests() {
        let found = said("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(found.starts_with("HTTP/1.1 200 OK\r\n"));
        let (head, body) = found.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(body.contains("xfrmd_clients 3\n"));
        assert!(said("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(said("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(said("\u{16}\u{3}\u{1}").starts_with("HTTP/1.1 400"));
        assert!(said("").starts_with("HTTP/1.1 400"));
        let endless = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
        assert!(said(&endless).starts_with("HTTP/1.1 200"));
    }
}
