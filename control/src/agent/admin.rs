//! The admin socket: where `pollux get`, `pollux stats`, `pollux conntrack` and `pollux capture` ask.
//!
//! Invariants: only the agent's user may connect (mode 0600); a client can neither make the agent keep more
//! than one request and one line of an answer in memory, nor hold it up: what it sends is bounded in size,
//! every read and write in time, and the number of clients is. The worker is asked for small pieces.

use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use tracing::{debug, error, info};

use super::capture;
use super::conntrack::{self, serve::Outcome};
use super::protocol::{Filter, Line, MAX_REQUEST, Request, Resource};
use super::shared::Shared;
use super::view;
use crate::cli::Failure;

/// Clients served at a time.
const CLIENTS: usize = 16;

/// How long a client may take to send a request, or to take a line of its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Slots of the flow table that the worker looks at in one piece: some tens of µs.
const FLOWS: usize = 512;

/// A bound socket on which nobody is served yet.
pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

/// Serves clients until it is dropped.
pub(super) struct Server {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Listener {
    /// Binds the socket; its directory is made when it is missing.
    ///
    /// # Errors
    /// When somebody listens there, or something else is there; when it cannot be made.
    pub(super) fn bind(path: PathBuf) -> Result<Listener, Failure> {
        let failed =
            |error: io::Error| Failure::environment(format!("admin socket {}: {error}", path.display()));
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        remove_stale(&path)?;
        // Made under another name: nobody can connect before only its owner may.
        let draft = path.with_extension(format!("{}.tmp", std::process::id()));
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        let placed = fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&draft, &path));
        if let Err(error) = placed {
            let _ = fs::remove_file(&draft);
            return Err(failed(error));
        }
        Ok(Listener { listener, path })
    }

    pub(super) fn serve(self, shared: &Arc<Shared>) -> Result<Server, Failure> {
        info!(socket = %self.path.display(), "listening for requests");
        let stopping = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(shared), Arc::clone(&stopping));
        let listener = self.listener.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("pollux-admin".to_owned())
            .spawn(move || accept(&listener, &shared, &stop))?;
        Ok(Server { stopping, thread: Some(thread), path: self.path.clone() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.path); // so that it wakes up and sees
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread of the admin socket had panicked");
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes place for the socket where a dead process has left one.
fn remove_stale(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let there = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::environment(format!("admin socket {shown}: {error}"))),
    };
    if !there.file_type().is_socket() {
        return Err(Failure::bad_input(format!(
            "admin socket {shown}: there is something else of that name"
        )));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Failure::environment(format!(
            "admin socket {shown}: a running instance listens there: stop it, or give --admin another name"
        ))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Failure::environment(format!("admin socket {shown}: {error}"))),
        Err(error) => Err(Failure::environment(format!("admin socket {shown}: {error}"))),
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, stop: &Arc<AtomicBool>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: not to be tried again at once.
                error!("admin socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if stop.load(Ordering::Acquire) {
            return;
        }
        if clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
            clients.fetch_sub(1, Ordering::AcqRel);
            let _ = Client::new(&stream).and_then(|mut client| client.refuse("too many clients"));
            continue;
        }
        let (shared, stop, counted) = (Arc::clone(shared), Arc::clone(stop), Arc::clone(&clients));
        let started = std::thread::Builder::new().name("pollux-client".to_owned()).spawn(move || {
            if let Err(error) = converse(&stream, &shared, &stop) {
                debug!("client of the admin socket: {error}");
            }
            counted.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = started {
            error!("admin socket: {error}");
            clients.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The writing side of a connection.
pub(super) struct Client<'a> {
    output: BufWriter<&'a UnixStream>,
    items: usize,
}

impl<'a> Client<'a> {
    fn new(stream: &'a UnixStream) -> io::Result<Client<'a>> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { output: BufWriter::new(stream), items: 0 })
    }

    /// Writes one item of the answer.
    pub(super) fn item(&mut self, item: &impl Serialize) -> io::Result<()> {
        let value = serde_json::to_value(item).map_err(io::Error::other)?;
        self.items += 1;
        self.line(&Line::Item(value))
    }

    /// Sends what was written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// Whether the other side has closed.
    pub(super) fn has_gone(&self) -> bool {
        use nix::sys::socket::{MsgFlags, recv};
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.output.get_ref().as_raw_fd(), &mut [0], flags) == Ok(0)
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.output, line).map_err(io::Error::other)?;
        self.output.write_all(b"\n")
    }

    fn refuse(&mut self, why: &str) -> io::Result<()> {
        self.line(&Line::Error(why.to_owned()))?;
        self.output.flush()
    }

    fn done(&mut self) -> io::Result<()> {
        let items = std::mem::take(&mut self.items);
        self.line(&Line::Done { items })?;
        self.output.flush()
    }
}

fn converse(stream: &UnixStream, shared: &Shared, stop: &AtomicBool) -> io::Result<()> {
    let mut client = Client::new(stream)?;
    let mut input = BufReader::new(stream);
    while !stop.load(Ordering::Acquire) {
        let mut line = Vec::new();
        let read = (&mut input).take(MAX_REQUEST as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.len() > MAX_REQUEST {
            return client.refuse(&format!("a request has at most {MAX_REQUEST} bytes"));
        }
        match serde_json::from_slice::<Request>(&line) {
            Err(error) => client.refuse(&format!("not a request: {error}"))?,
            Ok(Request::Stats) => match view::stats(shared) {
                Some(stats) => {
                    client.item(&stats)?;
                    client.done()?;
                }
                None => client.refuse(STOPPED)?,
            },
            Ok(Request::Conntrack { action, filter }) => {
                match conntrack::serve::answer(&mut client, shared, &action, &filter, stop)? {
                    Outcome::Done => client.done()?,
                    Outcome::Refused(why) => client.refuse(&why)?,
                }
            }
            Ok(Request::Capture(request)) => {
                match capture::serve::answer(&mut client, shared, &request, stop)? {
                    Outcome::Done => client.done()?,
                    Outcome::Refused(why) => client.refuse(&why)?,
                }
            }
            Ok(Request::Get { resource, filter }) => match filter.check() {
                Err(problem) => client.refuse(&problem)?,
                Ok(()) => get(&mut client, shared, resource, &filter)?,
            },
        }
    }
    Ok(())
}

const STOPPED: &str = "a worker has stopped";

fn get(client: &mut Client<'_>, shared: &Shared, resource: Resource, filter: &Filter) -> io::Result<()> {
    let state = shared.state();
    let answered = match resource {
        Resource::Services => Some(client.items(view::services(&state, filter))?),
        Resource::Endpoints => Some(client.items(view::endpoints(&state, filter))?),
        Resource::Routes => Some(client.items(view::routes(&state, filter))?),
        Resource::Config => Some(client.item(&view::config(&state))?),
        Resource::Ports => match view::ports(shared, &state, filter) {
            Some(items) => Some(client.items(items)?),
            None => None,
        },
        Resource::Neighbours => match view::neighbours(shared, &state, filter) {
            Some(items) => Some(client.items(items)?),
            None => None,
        },
        Resource::Drops => match view::drops(shared, filter) {
            Some(items) => Some(client.items(items)?),
            None => None,
        },
        Resource::Flows => flows(client, shared, filter)?,
    };
    match answered {
        Some(()) => client.done(),
        None => client.refuse(STOPPED),
    }
}

impl Client<'_> {
    fn items(&mut self, items: impl IntoIterator<Item = impl Serialize>) -> io::Result<()> {
        items.into_iter().try_for_each(|item| self.item(&item))
    }
}

/// Lists connections piece by piece, so that the worker never stops forwarding for long. Nothing when the
/// worker has stopped.
fn flows(client: &mut Client<'_>, shared: &Shared, filter: &Filter) -> io::Result<Option<()>> {
    let selection = view::Selection::new(filter);
    for version in [view::Version::V4, view::Version::V6] {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let Some((flows, next)) = view::flows(shared, version, from, FLOWS) else { return Ok(None) };
            cursor = next;
            client.items(flows.into_iter().filter(|flow| selection.selects(flow)))?;
        }
    }
    Ok(Some(()))
}
