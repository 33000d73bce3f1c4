//! TCP servers that echo or count, and clients that check what they get.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Protocol, Socket, Type};

use super::payload::{Digest, Payload};
use crate::kernel::netns::Netns;
use crate::lab::open_in;
use crate::lab::sys;

/// Bytes handed to the kernel at a time.
const PIECE: usize = 256 << 10;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A server's end of a connection that says nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// What a server does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// Sends back what it gets.
    Echo,
    /// Takes everything, then sends count and digest ([`Digest::to_bytes`]).
    Sink,
}

/// A server. When it is dropped, its connections are cut and its threads have ended.
#[derive(Debug)]
pub struct TcpServer {
    listener: Socket,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    peer: SocketAddr,
    stream: TcpStream,
    thread: JoinHandle<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TcpServer {
    /// Starts a server in a namespace.
    ///
    /// # Errors
    /// When the address is not the namespace's, or is taken.
    pub fn start(netns: &Netns, at: SocketAddr, service: Service) -> io::Result<TcpServer> {
        let listener = open_in(netns, || {
            let socket = super::open(Type::STREAM, Protocol::TCP, at, Some(at))?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        })?;
        let shared = Arc::new(Shared::default());
        let accepting: TcpListener = listener.try_clone()?.into();
        let thread = std::thread::Builder::new().name(format!("tcp {at}")).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&accepting, &shared, service)
        })?;
        Ok(TcpServer { listener, shared, thread: Some(thread) })
    }

    /// The far ends of the connections accepted so far, as the server sees them.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.shared.state().connections.iter().map(|connection| connection.peer).collect()
    }
}

/// Serves every connection on a thread of its own until the listener is shut down.
fn accept(listener: &TcpListener, shared: &Shared, service: Service) {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(_) if shared.state().stopped => return,
            // The client has gone before it was accepted, or descriptors are short.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
        };
        let Ok(serving) = stream.try_clone() else { continue };
        let mut state = shared.state();
        if state.stopped {
            return;
        }
        let spawned = std::thread::Builder::new().name(format!("tcp from {peer}")).spawn(move || {
            // What goes wrong here the client sees: its stream ends early.
            let _ = serve(&serving, service);
            let _ = serving.shutdown(Shutdown::Both);
        });
        if let Ok(thread) = spawned {
            state.connections.push(Connection { peer, stream, thread });
        }
    }
}

fn serve(mut stream: &TcpStream, service: Service) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut piece = vec![0; PIECE];
    let mut digest = Digest::default();
    loop {
        let length = match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match service {
            Service::Echo => stream.write_all(&piece[..length])?,
            Service::Sink => digest.update(&piece[..length]),
        }
    }
    match service {
        Service::Echo => Ok(()),
        Service::Sink => stream.write_all(&digest.to_bytes()),
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        let connections = {
            let mut state = self.shared.state();
            state.stopped = true;
            std::mem::take(&mut state.connections)
        };
        // Wakes the thread that accepts: on Linux it gets EINVAL.
        let _ = self.listener.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for connection in connections {
            let _ = connection.stream.shutdown(Shutdown::Both);
            let _ = connection.thread.join();
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct TcpClient {
    stream: TcpStream,
}

/// A finished transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Bytes that arrived, in order and unchanged.
    pub bytes: u64,
    /// From the first byte sent to the digest received.
    pub took: Duration,
    /// Segments that the client's kernel sent again.
    pub retransmissions: u32,
    /// Those of them that the far end had already (it says so by D-SACK): nothing was lost, an answer was
    /// late because a processor was.
    pub needless: u32,
}

impl Transfer {
    /// Bytes per second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64()
    }

    /// Segments that were sent again because they had not arrived.
    pub fn lost(&self) -> u32 {
        self.retransmissions - self.needless
    }
}

impl TcpClient {
    /// Connects from a namespace, from a given address and port or from the kernel's choice.
    ///
    /// # Errors
    /// `TimedOut` when there is no answer in time; `ConnectionRefused` and others as the kernel says.
    pub fn connect(
        netns: &Netns,
        from: Option<SocketAddr>,
        to: SocketAddr,
        within: Duration,
    ) -> io::Result<TcpClient> {
        let socket = open_in(netns, || {
            let socket = super::open(Type::STREAM, Protocol::TCP, to, from)?;
            socket.connect_timeout(&to.into(), within)?;
            Ok(socket)
        })?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        Ok(TcpClient { stream })
    }

    /// Own address and port.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Address and port of the far end, as this end knows it: the Service, not its backend.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Sends `message` to a [`Service::Echo`] and reads as much back.
    ///
    /// # Errors
    /// `TimedOut` when it does not come back in time, `InvalidData` when it is not the same, others as the
    /// kernel says.
    pub fn echo(&mut self, message: &[u8], within: Duration) -> io::Result<()> {
        let deadline = Instant::now() + within;
        self.write(message, deadline)?;
        let mut answer = vec![0; message.len()];
        self.read(&mut answer, deadline)?;
        if answer == message {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs from what was sent"))
        }
    }

    /// Sends `bytes` bytes to a [`Service::Sink`], ends the stream, and compares the digest that comes back.
    ///
    /// # Errors
    /// `TimedOut` when it is not over in time, `InvalidData` when other bytes arrived than were sent, others
    /// as the kernel says.
    pub fn transfer(&mut self, bytes: u64, seed: u64, within: Duration) -> io::Result<Transfer> {
        let start = Instant::now();
        let deadline = start + within;
        let mut payload = Payload::new(seed);
        let mut sent = Digest::default();
        let mut piece = vec![0; PIECE];
        while sent.bytes() < bytes {
            let length = (bytes - sent.bytes()).min(PIECE as u64) as usize;
            payload.fill(&mut piece[..length]);
            sent.update(&piece[..length]);
            self.write(&piece[..length], deadline)?;
        }
        self.stream.shutdown(Shutdown::Write)?;
        let mut arrived = [0; Digest::LEN];
        self.read(&mut arrived, deadline)?;
        if arrived != sent.to_bytes() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes arrived than were sent"));
        }
        let took = start.elapsed();
        let mut info = sys::tcp_info(&self.stream)?;
        // The answer to a retransmission at the end may be on its way.
        let patience = Instant::now() + Duration::from_millis(50);
        while info.tcpi_dsack_dups < info.tcpi_total_retrans && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
            info = sys::tcp_info(&self.stream)?;
        }
        Ok(Transfer {
            bytes,
            took,
            retransmissions: info.tcpi_total_retrans,
            needless: info.tcpi_dsack_dups.min(info.tcpi_total_retrans),
        })
    }

    /// Segments sent again so far.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn retransmissions(&self) -> io::Result<u32> {
        Ok(sys::tcp_info(&self.stream)?.tcpi_total_retrans)
    }

    /// Ends the stream and waits until the far end has ended it too.
    ///
    /// # Errors
    /// `TimedOut` when it does not in time, `InvalidData` when it sends more instead.
    pub fn close(mut self, within: Duration) -> io::Result<()> {
        let deadline = Instant::now() + within;
        self.stream.shutdown(Shutdown::Write)?;
        match self.read_some(&mut [0; 1], deadline)? {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the end")),
        }
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left(deadline)?))?;
            match self.stream.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, mut into: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !into.is_empty() {
            match self.read_some(into, deadline)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => into = &mut into[length..],
            }
        }
        Ok(())
    }

    fn read_some(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            match self.stream.read(into) {
                Err(error) if again(&error) => {}
                result => return result,
            }
        }
    }
}

/// Time until the deadline; an error when none is left.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Whether the call is to be made again if there is time left.
fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
