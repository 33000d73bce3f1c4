//! UDP echo.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Protocol, Type};

use crate::kernel::netns::Netns;
use crate::lab::open_in;

/// How often an idle server looks whether it is to end.
const IDLE: Duration = Duration::from_millis(20);

/// A server that sends every datagram back. It ends when it is dropped.
#[derive(Debug)]
pub struct UdpServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    received: AtomicU64,
}

impl UdpServer {
    /// Starts a server in a namespace.
    ///
    /// # Errors
    /// When the address is not the namespace's, or is taken.
    pub fn start(netns: &Netns, at: SocketAddr) -> io::Result<UdpServer> {
        let socket: UdpSocket = open_in(netns, || UdpSocket::bind(at))?;
        socket.set_read_timeout(Some(IDLE))?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name(format!("udp {at}")).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let mut buffer = vec![0; 64 << 10];
                while !shared.stop.load(Ordering::SeqCst) {
                    // Errors are timeouts, and ICMP errors for answers that nobody wanted.
                    let Ok((length, client)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    // Counted first: who has the echo finds it counted.
                    shared.received.fetch_add(1, Ordering::SeqCst);
                    let _ = socket.send_to(&buffer[..length], client);
                }
            }
        })?;
        Ok(UdpServer { shared, thread: Some(thread) })
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends a datagram from a namespace and waits for its echo: its sender, or none if there was none in time
/// with the same bytes.
///
/// # Errors
/// When `from` is not the namespace's or is taken, when the kernel has no route, or when an ICMP error came
/// back (`ConnectionRefused` for an unreachable port).
pub fn udp_echo(
    netns: &Netns,
    from: Option<SocketAddr>,
    to: SocketAddr,
    datagram: &[u8],
    within: Duration,
) -> io::Result<Option<SocketAddr>> {
    let socket: UdpSocket = open_in(netns, || {
        let socket = super::open(Type::DGRAM, Protocol::UDP, to, from)?;
        // Connected, so that ICMP errors come back, and so that only `to` may answer.
        socket.connect(&to.into())?;
        Ok(socket)
    })?
    .into();
    let start = Instant::now();
    socket.send(datagram)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let left = within.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut buffer) {
            Ok((length, sender)) if buffer[..length] == *datagram => return Ok(Some(sender)),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}
